// Polynomials of degree TAUTNET_DEGREE, one a curve, and the standardized polynomial, forward and backward, for CPUs. Plain
// C interface, no dependency but OpenMP; a degree has a library of its own.
//
// Memory is a flat array in which element i belongs to curve (i / inner) % curves: (rows, curves, inner), float or double.
//
// The standardized polynomial of a curve is y = bias + sum_j w_j (z^j - mean_j) / sqrt(variance_j + eps), j = 1..K, with the
// mean and the variance of z^j over the curve's elements. It is one polynomial in z, and so is what its derivative adds:
//   forward:  the sums of z^i, i = 1..2K; then y.
//   backward: the sums of g z^i, i = 0..K; then dz = (g - mean of g) P'(z) + Q(z), Q of degree 2K - 1.
// All is computed in u = (z - centre) / scale, centre 0 and scale 1 at first. Where the sums tell that the mean is large
// beside the deviation (variances would be lost in it) or that the powers overflow, they are taken again in a better frame.
// What follows from the sums is computed in double.
//
// A unit is what one sum is taken over: a curve, or, where its runs of elements are short, a column; columns are worked on a
// vector at a time, a lane each. Sums are taken in Real over a patch of at most kPatch vectors, then in double in a fixed
// order. The division of the work depends on the sizes alone: the same bits with any thread count.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

namespace {

using std::int64_t;

#if defined(__AVX512F__) && !defined(TAUTNET_PORTABLE)
constexpr int kBytes = 64;
#elif defined(__AVX__) && !defined(TAUTNET_PORTABLE)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

constexpr int64_t kShortRun = 64;    // elements; of shorter runs the columns are worked on
constexpr int64_t kPatch = 64;       // vectors whose sums are taken in Real
constexpr int64_t kChunk = 16384;    // elements of a curve in a piece of work
constexpr int64_t kChunkRows = 1024; // rows of columns in a piece of work, at least
constexpr int64_t kMostChunks = 64;  // of columns
constexpr int64_t kGroup = 256;      // bytes of a row of columns that are worked on together
constexpr int kDegree = TAUTNET_DEGREE;
constexpr int kAttempts = 6;         // to find a frame

template <class Real> struct Wide;
template <> struct Wide<float> { typedef float type __attribute__((vector_size(kBytes))); };
template <> struct Wide<double> { typedef double type __attribute__((vector_size(kBytes))); };
template <class Real> using Vec = typename Wide<Real>::type;
template <class Real> constexpr int64_t kLanes = kBytes / int64_t(sizeof(Real));

template <class Real> inline Vec<Real> load(const Real* from) {
    Vec<Real> value;
    std::memcpy(&value, from, kBytes);
    return value;
}

// Some elements, and `rest` in the lanes beyond them.
template <class Real> inline Vec<Real> load(const Real* from, int64_t count, Vec<Real> rest) {
    if (count == kLanes<Real>) return load(from);
    std::memcpy(&rest, from, size_t(count) * sizeof(Real));
    return rest;
}

template <class Real> inline void store(Vec<Real> value, Real* to, int64_t count) {
    std::memcpy(to, &value, count == kLanes<Real> ? size_t(kBytes) : size_t(count) * sizeof(Real));
}

// How the work is divided.
template <class Real> struct Plan {
    int64_t rows, curves, inner, total;
    bool columns;                // short runs: a unit is a column
    int64_t units, stride;       // stride: from a unit's elements in a row to those in the next
    int64_t groups, group_size;  // units that are worked on together
    int64_t group_curves;        // the curves of a group; 0: groups share curves
    int64_t chunks, chunk_rows;

    Plan(int64_t rows, int64_t curves, int64_t inner)
        : rows(rows), curves(curves), inner(inner), total(rows * curves * inner), columns(curves > 1 && inner < kShortRun) {
        if (columns) {  // as many rows as make whole vectors are taken for one
            const int64_t width = curves * inner;
            units = stride = std::lcm(width, kLanes<Real>);
            this->rows = (total + stride - 1) / stride;  // the last may be short
            group_size = kGroup / int64_t(sizeof(Real));
            group_curves = units == width && group_size % inner == 0 ? group_size / inner : 0;
            groups = (units + group_size - 1) / group_size;
            chunk_rows = std::max(kChunkRows, (this->rows + kMostChunks - 1) / kMostChunks);
        } else {
            if (curves == 1) {  // no rows of its own: it gets some, the last of which may be short
                this->inner = kPatch * kLanes<Real>;
                this->rows = (total + this->inner - 1) / this->inner;
            }
            units = groups = curves;
            group_size = group_curves = 1;
            stride = curves * this->inner;
            chunk_rows = std::max<int64_t>(1, kChunk / this->inner);
        }
        chunks = (this->rows + chunk_rows - 1) / chunk_rows;
    }
    int64_t elements() const { return total / curves; }  // of a curve
    int64_t curve_of(int64_t unit) const { return columns ? unit / inner % curves : unit; }
    template <class Use> void for_units(int64_t curve, Use use) const {
        if (!columns) return use(curve);
        for (int64_t first = curve * inner; first < units; first += curves * inner)
            for (int64_t unit = first; unit < first + inner; ++unit) use(unit);
    }
};

// Elements of one unit, or of the columns of one vector.
struct Patch {
    int64_t start, rows, stride, width;
};

// Calls work(patch, first unit) for all of a group in a chunk.
template <class Real, class Work> void for_patches(const Plan<Real>& plan, int64_t group, int64_t chunk, Work work) {
    const int64_t first = chunk * plan.chunk_rows, end = std::min(plan.rows, first + plan.chunk_rows);
    if (plan.columns) {
        const int64_t from = group * plan.group_size, to = std::min(plan.units, from + plan.group_size);
        for (int64_t r = first; r < end;) {
            const bool short_row = (r + 1) * plan.stride > plan.total;
            const int64_t whole = std::min(end, plan.total / plan.stride) - r;
            const int64_t rows = short_row ? 1 : std::min(kPatch, whole);
            for (int64_t unit = from; unit < to; unit += kLanes<Real>) {
                const int64_t start = r * plan.stride + unit;
                const int64_t width = std::min(kLanes<Real>, plan.total - start);
                if (width > 0) work(Patch{start, rows, plan.stride, width}, unit);
            }
            r += rows;
        }
        return;
    }
    const int64_t most = kPatch * kLanes<Real>, rows = std::max<int64_t>(1, most / plan.inner);
    for (int64_t r = first; r < end; r += rows)
        for (int64_t i = 0; i < plan.inner; i += most) {
            const int64_t start = r * plan.stride + group * plan.inner + i;
            const int64_t width = std::min({most, plan.inner - i, plan.total - start});
            work(Patch{start, std::min(rows, end - r), plan.stride, width}, group);
        }
}

// Calls work(offset, count) for the vectors of a patch.
template <class Real, class Work> inline void for_vectors(const Patch& patch, Work work) {
    for (int64_t r = 0; r < patch.rows; ++r) {
        const int64_t at = patch.start + r * patch.stride;
        int64_t i = 0;
        for (; i + kLanes<Real> <= patch.width; i += kLanes<Real>) work(at + i, kLanes<Real>);
        if (i < patch.width) work(at + i, patch.width - i);
    }
}

// What the kernels need to know of each unit: entry [i][unit].
template <class Real> class Table {
  public:
    Table(const Plan<Real>& plan, int64_t entries) : plan_(plan), values_(size_t(entries * plan.units)) {}
    void set(int64_t entry, int64_t curve, double value) {
        plan_.for_units(curve, [&](int64_t unit) { values_[entry * plan_.units + unit] = Real(value); });
    }
    Vec<Real> operator()(int64_t entry, int64_t unit) const {
        const Real* from = &values_[entry * plan_.units + unit];
        return plan_.columns ? load(from) : Vec<Real>{} + *from;
    }

  private:
    const Plan<Real>& plan_;
    std::vector<Real> values_;
};

// Sums in double: [chunk][unit][i].
template <class Real, int Count> class Sums {
  public:
    explicit Sums(const Plan<Real>& plan) : plan_(plan), values_(size_t(plan.chunks * plan.units * Count)) {}
    // Adds up what add(patch, first unit, partial sums) finds in a group.
    template <class Add> void take(int64_t group, int64_t chunk, Add add) {
        double* const into = &values_[(chunk * plan_.units + group * plan_.group_size) * Count];
        const int64_t columns = std::min(plan_.group_size, plan_.units - group * plan_.group_size);
        const int64_t lanes = plan_.columns ? columns : kLanes<Real>;
        alignas(64) double totals[Count][kGroup / sizeof(Real)] = {};
        for_patches(plan_, group, chunk, [&](const Patch& patch, int64_t unit) {
            Vec<Real> partial[Count] = {};
            add(patch, unit, partial);
            const int64_t first = unit - group * plan_.group_size;
            for (int i = 0; i < Count; ++i)
                for (int64_t lane = 0; lane < kLanes<Real>; ++lane) totals[i][first + lane] += double(partial[i][lane]);
        });
        std::fill_n(into, (plan_.columns ? lanes : 1) * Count, 0.0);
        for (int64_t lane = 0; lane < lanes; ++lane)
            for (int i = 0; i < Count; ++i) into[(plan_.columns ? lane : 0) * Count + i] += totals[i][lane];
    }
    std::array<double, Count> of(int64_t curve) const {
        std::array<double, Count> sums{};
        for (int64_t chunk = 0; chunk < plan_.chunks; ++chunk)
            plan_.for_units(curve, [&](int64_t unit) {
                for (int i = 0; i < Count; ++i) sums[i] += values_[(chunk * plan_.units + unit) * Count + i];
            });
        return sums;
    }

  private:
    const Plan<Real>& plan_;
    std::vector<double> values_;
};

// The three steps: sum(group, chunk); solve(curve), which says whether the sums are wanted again; apply(group, chunk).
template <class Real, class Sum, class Solve, class Apply>
void run(const Plan<Real>& plan, int threads, Sum sum, Solve solve, Apply apply) {
    std::vector<char> open(size_t(plan.curves), 1);
    if (plan.group_curves && plan.groups >= 2 * threads) {  // one group at a time: its elements stay in the cache
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t g = 0; g < plan.groups; ++g) {
            const int64_t first = g * plan.group_curves, end = std::min(plan.curves, first + plan.group_curves);
            for (bool any = true; any;) {
                for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) sum(g, chunk);
                any = false;
                for (int64_t c = first; c < end; ++c)
                    if (open[c] && (open[c] = solve(c))) any = true;
            }
            for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) apply(g, chunk);
        }
        return;
    }
    const int64_t tasks = plan.groups * plan.chunks;
    std::vector<char> open_groups(size_t(plan.groups), 1);
    for (bool any = true; any;) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t t = 0; t < tasks; ++t)
            if (open_groups[t / plan.chunks]) sum(t / plan.chunks, t % plan.chunks);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t c = 0; c < plan.curves; ++c)
            if (open[c]) open[c] = solve(c);
        any = std::find(open.begin(), open.end(), 1) != open.end();
        std::fill(open_groups.begin(), open_groups.end(), 0);
        for (int64_t unit = 0; any && unit < plan.units; ++unit)
            if (open[plan.curve_of(unit)]) open_groups[unit / plan.group_size] = 1;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < tasks; ++t) apply(t / plan.chunks, t % plan.chunks);
}

template <class Real> struct Frame {
    Vec<Real> centre, factor;
    Frame(const Table<Real>& table, int64_t unit) : centre(table(0, unit)), factor(table(1, unit)) {}
    Vec<Real> operator()(const Real* z, int64_t count) const { return (load(z, count, centre) - centre) * factor; }
};
constexpr int kFrame = 2;  // entries of a table

template <class Real, int Count> struct Horner {
    Vec<Real> coefficients[Count];
    Horner(const Table<Real>& table, int64_t entry, int64_t unit) {
#pragma GCC unroll 32
        for (int i = 0; i < Count; ++i) coefficients[i] = table(entry + i, unit);
    }
    Vec<Real> operator()(Vec<Real> u) const {
        Vec<Real> value = coefficients[Count - 1];
#pragma GCC unroll 32
        for (int i = Count - 2; i >= 0; --i) value = value * u + coefficients[i];
        return value;
    }
};

template <class Real, int Count>
void add_powers(const Real* z, const Patch& patch, const Frame<Real>& frame, Vec<Real>* sums) {
    Vec<Real> total[Count] = {};
    for_vectors<Real>(patch, [&](int64_t at, int64_t count) {
        const Vec<Real> u = frame(z + at, count);
        Vec<Real> power = u;
        total[0] += power;
#pragma GCC unroll 32
        for (int i = 1; i < Count; ++i) total[i] += power *= u;
    });
#pragma GCC unroll 32
    for (int i = 0; i < Count; ++i) sums[i] = total[i];
}

template <class Real, int Count>
void add_moments(const Real* g, const Real* z, const Patch& patch, const Frame<Real>& frame, Vec<Real>* sums) {
    Vec<Real> total[Count] = {};
    for_vectors<Real>(patch, [&](int64_t at, int64_t count) {
        const Vec<Real> u = frame(z + at, count);
        Vec<Real> product = load(g + at, count, Vec<Real>{});
        total[0] += product;
#pragma GCC unroll 32
        for (int i = 1; i < Count; ++i) total[i] += product *= u;
    });
#pragma GCC unroll 32
    for (int i = 0; i < Count; ++i) sums[i] = total[i];
}

template <class Real, int K>
void take_moments(const Real* g, const Real* z, const Table<Real>& table, Sums<Real, K + 1>& sums, int64_t group,
                  int64_t chunk) {
    sums.take(group, chunk, [&](const Patch& patch, int64_t unit, Vec<Real>* partial) {
        add_moments<Real, K + 1>(g, z, patch, Frame<Real>(table, unit), partial);
    });
}

template <class Real, int K>
void put_values(const Real* z, Real* y, const Plan<Real>& plan, const Table<Real>& table, int64_t group, int64_t chunk) {
    for_patches(plan, group, chunk, [&](const Patch& patch, int64_t unit) {
        const Frame<Real> frame(table, unit);
        const Horner<Real, K + 1> value(table, kFrame, unit);
        for_vectors<Real>(patch, [&](int64_t at, int64_t count) { store(value(frame(z + at, count)), y + at, count); });
    });
}

// How the powers of z follow from those of u: z^j = sum_i t[j][i] u^i.
template <int K> struct Shift {
    double t[K + 1][K + 1] = {};
    bool centred;
    Shift(double centre, double scale) : centred(centre != 0) {
        t[0][0] = 1;
        for (int j = 1; j <= K; ++j)
            for (int i = first(j); i <= j; ++i)
                t[j][i] = (i < j ? centre * t[j - 1][i] : 0) + (i > 0 ? scale * t[j - 1][i - 1] : 0);
    }
    int first(int j) const { return centred ? 0 : j; }  // all before it are 0
};

// What the backward pass has to know of a curve beside z.
template <int K> struct State {
    double centre, scale, moments[K + 1], inverse_deviations[K];  // moments: means of u^i, i = 0..K
};

// A better frame for sums that are not to be trusted, if there is one.
template <int K> bool improve(State<K>& state, const double* moments, int attempt) {
    const double variance = moments[2] - moments[1] * moments[1];
    if (std::isnan(moments[1]) || attempt >= kAttempts) return false;
    if (std::isfinite(moments[2 * K])) {
        if (16 * variance >= moments[2]) return false;
        state.centre += state.scale * moments[1];
        return true;
    }
    const bool known = std::isfinite(moments[2]);
    state.scale *= std::exp2(known ? std::max(4.0, std::ceil(std::log2(moments[2]) / 2)) : 40.0);
    return true;
}

template <class Real> struct Standardize {
    const Real *z, *weights, *bias;
    Real *y, *mean, *variance;
    double* state;
    double eps;
};

template <class Real, int K> void standardize(const Plan<Real>& plan, const Standardize<Real>& a, int threads) {
    Table<Real> table(plan, kFrame + K + 1);
    Sums<Real, 2 * K> sums(plan);
    State<K>* const states = reinterpret_cast<State<K>*>(a.state);
    std::vector<int> attempts(size_t(plan.curves), 0);
    const auto set_frame = [&](int64_t curve) {
        State<K>& state = states[curve];
        state.centre = double(Real(state.centre));
        table.set(0, curve, state.centre);
        table.set(1, curve, 1 / state.scale);
    };
    for (int64_t c = 0; c < plan.curves; ++c) {
        states[c].centre = 0, states[c].scale = 1;
        set_frame(c);
    }
    const auto solve = [&](int64_t c) {
        const std::array<double, 2 * K> total = sums.of(c);
        double moments[2 * K + 1] = {1.0};
        for (int i = 1; i <= 2 * K; ++i) moments[i] = total[i - 1] / double(plan.elements());
        State<K>& state = states[c];
        if (improve<K>(state, moments, attempts[c]++)) {
            set_frame(c);
            return true;
        }
        std::copy_n(moments, K + 1, state.moments);
        const Shift<K> shift(state.centre, state.scale);
        double coefficients[K + 1] = {double(a.bias[c])};
        for (int j = 1; j <= K; ++j) {
            double mean = shift.t[j][0], variance = 0;
            const int first = std::max(1, shift.first(j));
            for (int i = first; i <= j; ++i) {
                mean += shift.t[j][i] * moments[i];
                for (int l = first; l <= j; ++l)
                    variance += shift.t[j][i] * shift.t[j][l] * (moments[i + l] - moments[i] * moments[l]);
            }
            variance = variance < 0 ? 0 : variance;
            state.inverse_deviations[j - 1] = 1 / std::sqrt(variance + a.eps);
            a.mean[c * K + j - 1] = Real(mean), a.variance[c * K + j - 1] = Real(variance);
            const double factor = double(a.weights[c * K + j - 1]) * state.inverse_deviations[j - 1];
            for (int i = first; i <= j; ++i) coefficients[i] += factor * shift.t[j][i];
        }
        for (int i = 1; i <= K; ++i) coefficients[0] -= coefficients[i] * moments[i];
        for (int i = 0; i <= K; ++i) table.set(kFrame + i, c, coefficients[i]);
        return false;
    };
    run(
        plan, threads,
        [&](int64_t group, int64_t chunk) {
            sums.take(group, chunk, [&](const Patch& patch, int64_t unit, Vec<Real>* partial) {
                add_powers<Real, 2 * K>(a.z, patch, Frame<Real>(table, unit), partial);
            });
        },
        solve, [&](int64_t group, int64_t chunk) { put_values<Real, K>(a.z, a.y, plan, table, group, chunk); });
}

template <class Real> struct StandardizeBackward {
    const Real *g, *z, *weights;
    const double* state;
    Real *gz, *gweights, *gbias;
};

template <class Real, int K>
void standardize_backward(const Plan<Real>& plan, const StandardizeBackward<Real>& a, int threads) {
    constexpr int kMean = kFrame, kSlope = kMean + 1, kRest = kSlope + K;
    Table<Real> table(plan, kRest + 2 * K);
    Sums<Real, K + 1> sums(plan);
    const State<K>* const states = reinterpret_cast<const State<K>*>(a.state);
    for (int64_t c = 0; c < plan.curves; ++c) {
        table.set(0, c, states[c].centre);
        table.set(1, c, 1 / states[c].scale);
    }
    const auto solve = [&](int64_t c) {
        const State<K>& state = states[c];
        const std::array<double, K + 1> moments = sums.of(c);  // of g u^i
        const Shift<K> shift(state.centre, state.scale);
        double slope[K] = {}, rest[2 * K] = {};
        for (int j = 1; j <= K; ++j) {
            double centred[K + 1] = {}, gradient = 0;  // z^j - mean in powers of u
            const int first = std::max(1, shift.first(j));
            for (int i = first; i <= j; ++i) {
                centred[i] = shift.t[j][i];
                centred[0] -= shift.t[j][i] * state.moments[i];
                gradient += shift.t[j][i] * (moments[i] - state.moments[i] * moments[0]);
            }
            const double inverse = state.inverse_deviations[j - 1];
            gradient *= inverse;
            a.gweights[c * K + j - 1] = Real(gradient);
            const double factor = j * double(a.weights[c * K + j - 1]) * inverse;
            const double drag = factor * gradient * inverse / double(plan.elements());
            for (int i = shift.first(j - 1); i < j; ++i) {
                slope[i] += factor * shift.t[j - 1][i];
                rest[i] -= drag * shift.t[j - 1][i] * centred[0];
                for (int l = first; l <= j; ++l) rest[i + l] -= drag * shift.t[j - 1][i] * centred[l];
            }
        }
        a.gbias[c] = Real(moments[0]);
        table.set(kMean, c, moments[0] / double(plan.elements()));
        for (int i = 0; i < K; ++i) table.set(kSlope + i, c, slope[i]);
        for (int i = 0; i < 2 * K; ++i) table.set(kRest + i, c, rest[i]);
        return false;
    };
    run(
        plan, threads,
        [&](int64_t group, int64_t chunk) { take_moments<Real, K>(a.g, a.z, table, sums, group, chunk); }, solve,
        [&](int64_t group, int64_t chunk) {
            for_patches(plan, group, chunk, [&](const Patch& patch, int64_t unit) {
                const Frame<Real> frame(table, unit);
                const Vec<Real> mean = table(kMean, unit);
                const Horner<Real, K> slope(table, kSlope, unit);
                const Horner<Real, 2 * K> rest(table, kRest, unit);
                for_vectors<Real>(patch, [&](int64_t at, int64_t count) {
                    const Vec<Real> u = frame(a.z + at, count);
                    const Vec<Real> g = load(a.g + at, count, Vec<Real>{});
                    store((g - mean) * slope(u) + rest(u), a.gz + at, count);
                });
            });
        });
}

template <class Real> struct Evaluate {
    const Real *g, *z, *coefficients;
    Real *result, *gcoefficients;  // gcoefficients: null where not wanted
};

template <class Real, int K> void forward(const Plan<Real>& plan, const Evaluate<Real>& a, int threads) {
    Table<Real> table(plan, kFrame + K + 1);
    const auto nothing = [](int64_t, int64_t) {};
    const auto solve = [&](int64_t c) {
        table.set(1, c, 1);
        for (int i = 0; i <= K; ++i) table.set(kFrame + i, c, double(a.coefficients[c * (K + 1) + i]));
        return false;
    };
    run(plan, threads, nothing, solve,
        [&](int64_t group, int64_t chunk) { put_values<Real, K>(a.z, a.result, plan, table, group, chunk); });
}

template <class Real, int K> void backward(const Plan<Real>& plan, const Evaluate<Real>& a, int threads) {
    Table<Real> table(plan, kFrame + K);
    Sums<Real, K + 1> sums(plan);
    for (int64_t c = 0; c < plan.curves; ++c) table.set(1, c, 1);
    const auto sum = [&](int64_t group, int64_t chunk) {
        if (a.gcoefficients) take_moments<Real, K>(a.g, a.z, table, sums, group, chunk);
    };
    const auto solve = [&](int64_t c) {
        for (int i = 1; i <= K; ++i) table.set(kFrame + i - 1, c, i * double(a.coefficients[c * (K + 1) + i]));
        if (!a.gcoefficients) return false;
        const std::array<double, K + 1> total = sums.of(c);
        for (int i = 0; i <= K; ++i) a.gcoefficients[c * (K + 1) + i] = Real(total[i]);
        return false;
    };
    run(plan, threads, sum, solve, [&](int64_t group, int64_t chunk) {
        for_patches(plan, group, chunk, [&](const Patch& patch, int64_t unit) {
            const Frame<Real> frame(table, unit);
            const Horner<Real, K> slope(table, kFrame, unit);
            for_vectors<Real>(patch, [&](int64_t at, int64_t count) {
                store(load(a.g + at, count, Vec<Real>{}) * slope(frame(a.z + at, count)), a.result + at, count);
            });
        });
    });
}

}  // namespace

// z, y, g, gz: rows * curves * inner elements. weights, mean, variance: curves * kDegree. state: curves * (2 * kDegree + 3),
// written by the forward pass and read by the backward pass. coefficients: curves * (kDegree + 1), the constant first.
#define TAUTNET_POLYNOMIAL(NAME, REAL)                                                                                    \
    extern "C" void polynomial_standardize_##NAME(const REAL* z, const REAL* weights, const REAL* bias, REAL* y,         \
                                                  REAL* mean, REAL* variance, double* state, double eps, int64_t rows,    \
                                                  int64_t curves, int64_t inner, int threads) {                           \
        const Plan<REAL> plan(rows, curves, inner);                                                                       \
        standardize<REAL, kDegree>(plan, {z, weights, bias, y, mean, variance, state, eps}, threads);                     \
    }                                                                                                                     \
    extern "C" void polynomial_standardize_backward_##NAME(                                                              \
        const REAL* g, const REAL* z, const REAL* weights, const double* state, REAL* gz, REAL* gweights, REAL* gbias,    \
        int64_t rows, int64_t curves, int64_t inner, int threads) {                                                       \
        const Plan<REAL> plan(rows, curves, inner);                                                                       \
        standardize_backward<REAL, kDegree>(plan, {g, z, weights, state, gz, gweights, gbias}, threads);                  \
    }                                                                                                                     \
    extern "C" void polynomial_forward_##NAME(const REAL* z, const REAL* coefficients, REAL* y, int64_t rows,             \
                                              int64_t curves, int64_t inner, int threads) {                               \
        forward<REAL, kDegree>(Plan<REAL>(rows, curves, inner), {nullptr, z, coefficients, y, nullptr}, threads);         \
    }                                                                                                                     \
    extern "C" void polynomial_backward_##NAME(const REAL* g, const REAL* z, const REAL* coefficients, REAL* gz,          \
                                               REAL* gcoefficients, int64_t rows, int64_t curves, int64_t inner,          \
                                               int threads) {                                                             \
        backward<REAL, kDegree>(Plan<REAL>(rows, curves, inner), {g, z, coefficients, gz, gcoefficients}, threads);       \
    }

TAUTNET_POLYNOMIAL(float32, float)
TAUTNET_POLYNOMIAL(float64, double)
