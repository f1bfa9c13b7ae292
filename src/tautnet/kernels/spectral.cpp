// What scaling a matrix by its largest singular value takes beside products of matrices, for CPUs: a step of power iteration,
// the division by u^T A v, and that division's derivative. Plain C interface, no dependency but OpenMP.
//
// Matrices are (rows, columns), contiguous, float or double. Every sum is taken in a fixed order, by lanes that compilers
// make vectors of and in double beyond them: the same bits with any thread count.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using std::int64_t;

constexpr int64_t kLanes = 64;    // partial sums
constexpr int64_t kBlock = 256;   // columns that are summed over the rows at a time
constexpr double kLeast = 1e-12;  // length that a vector is divided by, at least

template <class Real> double dot(const Real* a, const Real* b, int64_t count) {
    Real lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
    double total = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) total += double(lanes[lane]);
    for (; i < count; ++i) total += double(a[i]) * double(b[i]);
    return total;
}

template <class Real> struct Matrix {
    const Real* values;
    int64_t rows, columns;
    int threads;

    const Real* row(int64_t r) const { return values + r * columns; }

    // Calls work(row) for all of them.
    template <class Work> void for_rows(Work work) const {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t r = 0; r < rows; ++r) work(r);
    }
    void times(const Real* v, Real* product) const {
        for_rows([&](int64_t r) { product[r] = Real(dot(row(r), v, columns)); });
    }
    void transposed_times(const Real* u, Real* product) const {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t first = 0; first < columns; first += kBlock) {
            const int64_t count = std::min(kBlock, columns - first);
            Real sums[kBlock] = {};
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < count; ++c) sums[c] += u[r] * row(r)[first + c];
            std::copy_n(sums, count, product + first);
        }
    }
    // Sum over the rows of weight[r] * <row, other's row>; without weights 1.
    double sum_of_dots(const Real* weight, const Real* other, int64_t other_stride) const {
        std::vector<double> dots(size_t(rows), 0.0);
        for_rows([&](int64_t r) { dots[r] = dot(row(r), other + r * other_stride, columns); });
        double total = 0;
        for (int64_t r = 0; r < rows; ++r) total += weight ? double(weight[r]) * dots[r] : dots[r];
        return total;
    }
};

template <class Real> void scale(const Real* from, double factor, int64_t count, Real* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = Real(double(from[i]) * factor);
}

// The new vector at length 1; one of length 0, or that is not finite, leaves the old one.
template <class Real> void replace_by_unit(const std::vector<Real>& fresh, Real* vector) {
    const int64_t count = int64_t(fresh.size());
    const double length = std::sqrt(dot(fresh.data(), fresh.data(), count));
    if (length > 0 && std::isfinite(length)) scale(fresh.data(), 1 / length, count, vector);
}

template <class Real>
void follow(const Matrix<Real>& matrix, const Real* probe, Real* seen, Real* u, Real* v, Real* unit_u, Real* unit_v,
            int64_t iterations) {
    std::vector<Real> of_rows(size_t(matrix.rows)), of_columns(size_t(matrix.columns));
    matrix.times(probe, of_rows.data());
    const bool changed = !std::equal(of_rows.begin(), of_rows.end(), seen);
    std::copy(of_rows.begin(), of_rows.end(), seen);
    for (int64_t i = 0; changed && i < iterations; ++i) {
        matrix.times(v, of_rows.data());
        replace_by_unit(of_rows, u);
        matrix.transposed_times(u, of_columns.data());
        replace_by_unit(of_columns, v);
    }
    scale(u, 1 / std::max(kLeast, std::sqrt(dot(u, u, matrix.rows))), matrix.rows, unit_u);
    scale(v, 1 / std::max(kLeast, std::sqrt(dot(v, v, matrix.columns))), matrix.columns, unit_v);
}

// result = A / divisor, the divisor |u^T A v|, or 1 where that is at most eps. Returns u^T A v. The result may be A.
template <class Real>
double divide(const Matrix<Real>& matrix, const Real* u, const Real* v, Real* result, double eps) {
    const double value = matrix.sum_of_dots(u, v, 0);
    const double factor = std::abs(value) > eps ? 1 / std::abs(value) : 1.0;
    matrix.for_rows([&](int64_t r) { scale(matrix.row(r), factor, matrix.columns, result + r * matrix.columns); });
    return value;
}

// The gradient of A from that of the quotient; with `constant` that of a constant divisor. The result may be the gradient.
template <class Real>
void divide_backward(const Matrix<Real>& grad, const Real* quotient, const Real* u, const Real* v, Real* result, double value,
                     double eps, bool constant) {
    const bool divided = std::abs(value) > eps;
    const double factor = divided ? 1 / std::abs(value) : 1.0;
    const double along = divided && !constant ? grad.sum_of_dots(nullptr, quotient, grad.columns) / value : 0.0;
    grad.for_rows([&](int64_t r) {
        const Real own = Real(factor), less = Real(along * double(u[r]));
        const Real* const from = grad.row(r);
        Real* const to = result + r * grad.columns;
        for (int64_t c = 0; c < grad.columns; ++c) to[c] = from[c] * own - less * v[c];
    });
}

}  // namespace

#define DEFINE(Real)                                                                                                         \
    void spectral_follow_##Real(const Real* matrix, const Real* probe, Real* seen, Real* u, Real* v, Real* unit_u,           \
                                Real* unit_v, int64_t rows, int64_t columns, int threads, int64_t iterations) {              \
        follow(Matrix<Real>{matrix, rows, columns, threads}, probe, seen, u, v, unit_u, unit_v, iterations);                 \
    }                                                                                                                        \
    double spectral_divide_##Real(const Real* matrix, const Real* u, const Real* v, Real* result, int64_t rows,              \
                                  int64_t columns, int threads, double eps) {                                                \
        return divide(Matrix<Real>{matrix, rows, columns, threads}, u, v, result, eps);                                      \
    }                                                                                                                        \
    void spectral_divide_backward_##Real(const Real* grad, const Real* quotient, const Real* u, const Real* v, Real* result, \
                                         int64_t rows, int64_t columns, int threads, double value, double eps,               \
                                         int constant) {                                                                     \
        divide_backward(Matrix<Real>{grad, rows, columns, threads}, quotient, u, v, result, value, eps, constant != 0);      \
    }

extern "C" {
DEFINE(float)
DEFINE(double)
}
