// Linear splines on a uniform grid, forward and backward, for CPUs. Plain C interface, no dependency but OpenMP.
//
// Memory is a flat array in which element i belongs to curve (i / inner) % curves: (rows, curves, inner). A curve has
// cells + 1 coefficients. Elements are float, double or bfloat16, computed in float, double and float.
//
// Look-ups of 16 values at once (AVX-512): where a curve's run of elements is long and its table has at most 64 cells, the
// table lies in registers and is permuted. Otherwise the two coefficients of a cell are loaded at once, element by element,
// which is faster than the gather instruction.
//
// Coefficient gradients are histograms over the cells, private to a piece of the work, in `copies` so that neighbouring
// elements of one cell do not wait for each other. Every few thousand elements they are flushed into double sums, and these
// are added in a fixed order. The division of the work depends on the sizes alone: the same bits with any thread count.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512F__) && !defined(TAUTNET_PORTABLE)
#define TAUTNET_AVX512 1
#include <immintrin.h>
#endif

namespace {

using std::int32_t;
using std::int64_t;

constexpr int64_t kShortRun = 16;      // of shorter runs whole rows are worked on
constexpr int64_t kFlushEvery = 4096;  // elements of a curve between two flushes into double
constexpr int64_t kAhead = 1024;       // elements fetched ahead of slow look-ups
constexpr int64_t kTasks = 64;         // pieces of work aimed at
constexpr int64_t kTaskElements = 8192;

struct BFloat16 {
    std::uint16_t bits;
    operator float() const {
        const std::uint32_t wide = std::uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
};

template <class Stored> struct Computed { using type = Stored; };
template <> struct Computed<BFloat16> { using type = float; };

template <class Real> void store(Real value, Real* to) { *to = value; }
void store(float value, BFloat16* to) {
    std::uint32_t wide;
    std::memcpy(&wide, &value, 4);
    if (value != value)  // rounding could turn a NaN into infinity
        to->bits = std::uint16_t((wide >> 16) | 0x40);
    else
        to->bits = std::uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);  // to nearest, ties to even
}

// What lies in memory. A single curve has no rows of its own: it gets some, the last of which may be short.
struct Shape {
    int64_t rows, curves, inner, cells, total;
    Shape(int64_t rows, int64_t curves, int64_t inner, int64_t cells)
        : rows(rows), curves(curves), inner(inner), cells(cells), total(rows * curves * inner) {
        if (curves > 1) return;
        this->rows = (total + kFlushEvery - 1) / kFlushEvery;
        this->inner = kFlushEvery;
    }
    int64_t stride() const { return curves * inner; }
    bool short_runs() const { return inner < kShortRun; }
};

template <class Real> struct Grid {
    Real range, scale;  // position = (x + range) * scale
    int64_t cells;
};

// Sums over the elements of each cell, in copies: [copy][cell], with room for as many cells as there are knots. In a row of
// short runs the sums of its curves follow each other and there is one copy.
template <class Real> struct Sums {
    struct Entry {
        Real gradient, moment;  // of g, of g * fraction
    };
    Entry* entries;  // null: not wanted
    int64_t copies, room;
};

// A piece of memory that is worked on in one go: a run of one curve, or rows of short runs, whose columns then have a
// first knot each.
template <class Real> struct Patch {
    int64_t rows, width, stride;
    const int32_t* first_knots;  // null: one curve
    const Real* coefficients;    // of the curve, or of the first one
};

template <class Real> struct Located {
    int64_t cell;
    Real fraction;
};

template <class Real> Located<Real> locate(Real x, const Grid<Real>& grid) {
    const Real position = (x + grid.range) * grid.scale;
    const Real clamped = position > Real(0) ? std::min(position, Real(grid.cells - 1)) : Real(0);  // NaN: cell 0
    const int64_t cell = int64_t(clamped);
    return {cell, position - Real(cell)};
}

template <class Stored, class Real>
void forward_patch(const Stored* x, Stored* y, const Patch<Real>& patch, const Grid<Real>& grid) {
    for (int64_t r = 0; r < patch.rows; ++r, x += patch.stride, y += patch.stride)
        for (int64_t i = 0; i < patch.width; ++i) {
            const Located<Real> at = locate(Real(x[i]), grid);
            const Real* knots = patch.coefficients + at.cell + (patch.first_knots ? patch.first_knots[i] : 0);
            store(knots[0] + (knots[1] - knots[0]) * at.fraction, y + i);
        }
}

template <class Stored, class Real>
void backward_patch(const Stored* g, const Stored* x, Stored* gx, const Patch<Real>& patch, const Grid<Real>& grid,
                    const Sums<Real>& sums) {
    for (int64_t r = 0; r < patch.rows; ++r, g += patch.stride, x += patch.stride, gx += patch.stride)
        for (int64_t i = 0; i < patch.width; ++i) {
            const Located<Real> at = locate(Real(x[i]), grid);
            const int64_t knot = at.cell + (patch.first_knots ? patch.first_knots[i] : 0);
            const Real* knots = patch.coefficients + knot;
            const Real gradient = Real(g[i]);
            store(gradient * ((knots[1] - knots[0]) * grid.scale), gx + i);
            if (sums.entries) {
                typename Sums<Real>::Entry& entry = sums.entries[knot + i % sums.copies * sums.room];
                entry.gradient += gradient;
                entry.moment += gradient * at.fraction;
            }
        }
}

#ifdef TAUTNET_AVX512

inline __mmask16 first_lanes(int64_t count) { return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << count) - 1); }

struct Located16 {
    __m512i cell;
    __m512 fraction;
};

inline Located16 locate(__m512 x, const Grid<float>& grid) {
    const __m512 position = _mm512_mul_ps(_mm512_add_ps(x, _mm512_set1_ps(grid.range)), _mm512_set1_ps(grid.scale));
    const __m512 from_0 = _mm512_max_ps(position, _mm512_setzero_ps());  // of a NaN and 0 this is 0
    const __m512i cell = _mm512_cvttps_epi32(_mm512_min_ps(from_0, _mm512_set1_ps(float(grid.cells - 1))));
    return {cell, _mm512_sub_ps(position, _mm512_cvtepi32_ps(cell))};
}

// A table of up to 16 * Registers floats.
template <int Registers> struct Table {
    __m512 part[Registers];
    __m512 operator()(__m512i cell) const {
        if constexpr (Registers == 1) return _mm512_permutexvar_ps(cell, part[0]);
        const __m512 low = _mm512_permutex2var_ps(part[0], cell, part[1 % Registers]);
        if constexpr (Registers == 2) return low;
        const __m512 high = _mm512_permutex2var_ps(part[2 % Registers], cell, part[3 % Registers]);
        return _mm512_mask_blend_ps(_mm512_test_epi32_mask(cell, _mm512_set1_epi32(32)), low, high);
    }
};

template <int Registers> struct Tables {
    Table<Registers> values, rises;
    Tables(const float* coefficients, int64_t cells) {
        for (int r = 0; r < Registers; ++r) {
            const __mmask16 mask = first_lanes(std::max<int64_t>(0, cells - 16 * r));
            values.part[r] = _mm512_maskz_loadu_ps(mask, coefficients + 16 * r);
            rises.part[r] = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, coefficients + 16 * r + 1), values.part[r]);
        }
    }
};

inline __m128d load_two_cells(const float* coefficients, const int32_t* cells) {
    const __m128d first = _mm_castsi128_pd(_mm_loadu_si64(coefficients + cells[0]));
    return _mm_loadh_pd(first, reinterpret_cast<const double*>(coefficients + cells[1]));
}

inline __m512 load_cells(const float* coefficients, const int32_t* cells) {  // both coefficients of 8 of them
    const __m256d low = _mm256_insertf128_pd(_mm256_castpd128_pd256(load_two_cells(coefficients, cells)),
                                             load_two_cells(coefficients, cells + 2), 1);
    const __m256d high = _mm256_insertf128_pd(_mm256_castpd128_pd256(load_two_cells(coefficients, cells + 4)),
                                              load_two_cells(coefficients, cells + 6), 1);
    return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1));
}

// Values and rises of 16 cells.
struct Looked {
    __m512 values, rises;
    Looked(const float* coefficients, const int32_t* cells) {
        const __m512 first = load_cells(coefficients, cells), second = load_cells(coefficients, cells + 8);
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        values = _mm512_permutex2var_ps(first, even, second);
        rises = _mm512_sub_ps(_mm512_permutex2var_ps(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second), values);
    }
};

// The vectors of a patch, up to 8 at a time: enough that what the first ones store has landed when it is loaded again.
struct Vectors {
    static constexpr int kMost = 8;
    struct Vector {
        int64_t offset, column;
        __mmask16 mask;  // lanes inside the patch
    } at[kMost];
    int count;

    template <class Patch> explicit Vectors(const Patch& patch) : rows_(patch.rows), width_(patch.width), stride_(patch.stride) {}
    bool next() {
        for (count = 0; count < kMost && row_ < rows_; ++count) {
            at[count] = {row_ * stride_ + column_, column_, first_lanes(width_ - column_)};
            column_ += 16;
            if (column_ >= width_) column_ = 0, ++row_;
        }
        return count > 0;
    }

  private:
    int64_t rows_, width_, stride_, row_ = 0, column_ = 0;
};

// What is known of the elements of up to 8 vectors. Lanes outside the patch count as x = 0 and g = 0.
struct Elements {
    alignas(64) int32_t cells[16 * Vectors::kMost];
    alignas(64) float fractions[16 * Vectors::kMost];

    void locate_all(const float* x, const Vectors& vectors, const Patch<float>& patch, const Grid<float>& grid) {
        for (int v = 0; v < vectors.count; ++v) {
            const Vectors::Vector& vector = vectors.at[v];
            _mm_prefetch(reinterpret_cast<const char*>(x + vector.offset + kAhead), _MM_HINT_T0);
            Located16 at = locate(_mm512_maskz_loadu_ps(vector.mask, x + vector.offset), grid);
            if (patch.first_knots)
                at.cell = _mm512_add_epi32(at.cell, _mm512_maskz_loadu_epi32(vector.mask, patch.first_knots + vector.column));
            _mm512_store_si512(cells + 16 * v, at.cell);
            _mm512_store_ps(fractions + 16 * v, at.fraction);
        }
    }
};

// Their way into the sums: which entry, and (g, g * fraction).
struct Contributions {
    alignas(64) int32_t entries[16 * Vectors::kMost];
    alignas(64) float pairs[32 * Vectors::kMost];

    void put(int v, __m512i entry, __m512 gradient, __m512 fraction) {
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        const __m512 moment = _mm512_mul_ps(gradient, fraction);
        _mm512_store_si512(entries + 16 * v, entry);
        _mm512_store_ps(pairs + 32 * v, _mm512_permutex2var_ps(gradient, low, moment));
        _mm512_store_ps(pairs + 32 * v + 16, _mm512_permutex2var_ps(gradient, high, moment));
    }

    void add_to(Sums<float>::Entry* sums, int num_vectors) const {
        const double* from = reinterpret_cast<const double*>(pairs);
        double* into = reinterpret_cast<double*>(sums);
#pragma GCC unroll 16
        for (int i = 0; i < 16 * num_vectors; ++i) {
            double* entry = into + entries[i];
            const __m128 total = _mm_add_ps(_mm_castpd_ps(_mm_load_sd(entry)), _mm_castpd_ps(_mm_load_sd(from + i)));
            _mm_store_sd(entry, _mm_castps_pd(total));
        }
    }
};

inline __m512i copy_offsets(const Sums<float>& sums) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i copy = _mm512_and_si512(lane, _mm512_set1_epi32(int32_t(sums.copies - 1)));
    return _mm512_mullo_epi32(copy, _mm512_set1_epi32(int32_t(sums.room)));
}

template <int Registers>
void forward_permuted(const float* x, float* y, const Patch<float>& patch, const Grid<float>& grid) {
    const Tables<Registers> tables(patch.coefficients, grid.cells);
    for (int64_t i = 0; i < patch.width; i += 16) {
        const __mmask16 mask = first_lanes(patch.width - i);
        const Located16 at = locate(_mm512_maskz_loadu_ps(mask, x + i), grid);
        _mm512_mask_storeu_ps(y + i, mask, _mm512_fmadd_ps(tables.rises(at.cell), at.fraction, tables.values(at.cell)));
    }
}

void forward_loaded(const float* x, float* y, const Patch<float>& patch, const Grid<float>& grid) {
    Elements elements;
    for (Vectors vectors(patch); vectors.next();) {
        elements.locate_all(x, vectors, patch, grid);
        for (int v = 0; v < vectors.count; ++v) {
            const Looked at(patch.coefficients, elements.cells + 16 * v);
            const __m512 result = _mm512_fmadd_ps(at.rises, _mm512_load_ps(elements.fractions + 16 * v), at.values);
            _mm512_mask_storeu_ps(y + vectors.at[v].offset, vectors.at[v].mask, result);
        }
    }
}

template <>
void forward_patch<float, float>(const float* x, float* y, const Patch<float>& patch, const Grid<float>& grid) {
    if (patch.first_knots || grid.cells > 64) return forward_loaded(x, y, patch, grid);
    if (grid.cells <= 16) return forward_permuted<1>(x, y, patch, grid);
    if (grid.cells <= 32) return forward_permuted<2>(x, y, patch, grid);
    return forward_permuted<4>(x, y, patch, grid);
}

template <int Registers>
void backward_permuted(const float* g, const float* x, float* gx, const Patch<float>& patch, const Grid<float>& grid,
                       const Sums<float>& sums) {
    const Table<Registers> rises = Tables<Registers>(patch.coefficients, grid.cells).rises;
    const __m512i copies = copy_offsets(sums);
    const __m512 scale = _mm512_set1_ps(grid.scale);
    Contributions contributions;
    for (Vectors vectors(patch); vectors.next();) {
        for (int v = 0; v < vectors.count; ++v) {
            const Vectors::Vector& vector = vectors.at[v];
            const Located16 at = locate(_mm512_maskz_loadu_ps(vector.mask, x + vector.offset), grid);
            const __m512 gradient = _mm512_maskz_loadu_ps(vector.mask, g + vector.offset);
            const __m512 slope = _mm512_mul_ps(rises(at.cell), scale);
            _mm512_mask_storeu_ps(gx + vector.offset, vector.mask, _mm512_mul_ps(gradient, slope));
            if (sums.entries) contributions.put(v, _mm512_add_epi32(at.cell, copies), gradient, at.fraction);
        }
        if (sums.entries) contributions.add_to(sums.entries, vectors.count);
    }
}

void backward_loaded(const float* g, const float* x, float* gx, const Patch<float>& patch, const Grid<float>& grid,
                     const Sums<float>& sums) {
    const __m512i copies = copy_offsets(sums);
    const __m512 scale = _mm512_set1_ps(grid.scale);
    Elements elements;
    Contributions contributions;
    for (Vectors vectors(patch); vectors.next();) {
        elements.locate_all(x, vectors, patch, grid);
        for (int v = 0; v < vectors.count; ++v) {
            const Vectors::Vector& vector = vectors.at[v];
            const int32_t* cells = elements.cells + 16 * v;
            const __m512 gradient = _mm512_maskz_loadu_ps(vector.mask, g + vector.offset);
            _mm_prefetch(reinterpret_cast<const char*>(g + vector.offset + kAhead), _MM_HINT_T0);
            const __m512 slope = _mm512_mul_ps(Looked(patch.coefficients, cells).rises, scale);
            _mm512_mask_storeu_ps(gx + vector.offset, vector.mask, _mm512_mul_ps(gradient, slope));
            const __m512 fraction = _mm512_load_ps(elements.fractions + 16 * v);
            if (sums.entries) contributions.put(v, _mm512_add_epi32(_mm512_load_si512(cells), copies), gradient, fraction);
        }
        if (sums.entries) contributions.add_to(sums.entries, vectors.count);
    }
}

template <>
void backward_patch<float, float>(const float* g, const float* x, float* gx, const Patch<float>& patch,
                                  const Grid<float>& grid, const Sums<float>& sums) {
    if (patch.first_knots || grid.cells > 64) return backward_loaded(g, x, gx, patch, grid, sums);
    if (grid.cells <= 16) return backward_permuted<1>(g, x, gx, patch, grid, sums);
    if (grid.cells <= 32) return backward_permuted<2>(g, x, gx, patch, grid, sums);
    return backward_permuted<4>(g, x, gx, patch, grid, sums);
}

#endif  // TAUTNET_AVX512

// Piece of the work: neighbouring curves, some of their rows.
struct Task {
    int64_t first_curve, curves, first_row, rows;
};

struct Plan {
    int64_t all_curves, group, row_parts, copies;

    explicit Plan(const Shape& s) : all_curves(s.curves) {
        copies = s.short_runs() || s.cells > 64 ? 1 : s.cells > 16 ? 2 : 8;
        // Curves side by side in memory are worked on together, as far as their coefficients and sums stay in the first cache.
        const int64_t in_cache = std::max<int64_t>(1, 32768 / ((4 + 8 * copies) * s.cells));
        const int64_t cache_line = (kShortRun + s.inner - 1) / s.inner, enough = std::max<int64_t>(1, 16384 / s.inner);
        group = s.short_runs() ? std::clamp(in_cache / cache_line, int64_t(1), int64_t(4)) * cache_line
                               : std::min(in_cache, enough);
        group = std::min(group, s.curves);
        const int64_t wanted = (kTasks + groups() - 1) / groups(), elements = s.rows * group * s.inner;
        row_parts = std::max<int64_t>(1, std::min({wanted, elements / kTaskElements, s.rows}));
    }
    int64_t groups() const { return (all_curves + group - 1) / group; }
    int64_t tasks() const { return groups() * row_parts; }
    int64_t row_part(int64_t number) const { return number / groups(); }
    Task task(int64_t number, int64_t rows) const {
        const int64_t curve = number % groups() * group, part = row_part(number), first = rows * part / row_parts;
        return {curve, std::min(group, all_curves - curve), first, rows * (part + 1) / row_parts - first};
    }
};

// A task's curves.
template <class Real> class Curves {
  public:
    Curves(const Real* coefficients, const Shape& s, const Task& task)
        : coefficients_(coefficients + task.first_curve * (s.cells + 1)), knots_(s.cells + 1),
          first_knots_(s.short_runs() ? task.curves * s.inner : 0) {
        for (std::size_t i = 0; i < first_knots_.size(); ++i) first_knots_[i] = int32_t(int64_t(i) / s.inner * knots_);
    }
    Patch<Real> run(int64_t curve, int64_t size) const {
        return {1, size, size, nullptr, coefficients_ + curve * knots_};
    }
    Patch<Real> short_runs(int64_t rows, int64_t stride) const {
        return {rows, int64_t(first_knots_.size()), stride, first_knots_.data(), coefficients_};
    }

  private:
    const Real* coefficients_;
    int64_t knots_;
    std::vector<int32_t> first_knots_;
};

// What the cells give to their knots, from the totals [cell][2] of g and g * fraction.
template <class Real> void to_knots(const double* totals, int64_t cells, Real* gc) {
    double carried = 0.0;  // from the cell on the left
    for (int64_t k = 0; k < cells; ++k) {
        gc[k] = Real(carried + (totals[2 * k] - totals[2 * k + 1]));
        carried = totals[2 * k + 1];
    }
    gc[cells] = Real(carried);
}

// The sums of a task's curves, flushed into doubles: [curve][cell][2].
template <class Real> class Accumulator {
  public:
    Accumulator(const Shape& s, const Plan& plan, const Task& task, bool wanted)
        : copies_(plan.copies), cells_(s.cells), curves_(task.curves), entries_(wanted ? curves_ * copies_ * (cells_ + 1) : 0),
          totals_(wanted ? 2 * curves_ * cells_ : 0) {}
    Sums<Real> of(int64_t curve) {
        const int64_t room = cells_ + 1;
        return {entries_.empty() ? nullptr : entries_.data() + curve * copies_ * room, copies_, room};
    }
    // To be told after `elements` of each curve.
    void count(int64_t elements) {
        since_flush_ += elements;
        if (since_flush_ >= kFlushEvery) flush();
    }
    const std::vector<double>& totals() {
        flush();
        return totals_;
    }

  private:
    void flush() {
        since_flush_ = 0;
        if (entries_.empty()) return;
        for (int64_t c = 0; c < curves_; ++c) {
            const Real* from = &of(c).entries->gradient;
            double* into = totals_.data() + c * 2 * cells_;
            for (int64_t copy = 0; copy < copies_; ++copy, from += 2 * (cells_ + 1))
                for (int64_t i = 0; i < 2 * cells_; ++i) into[i] += double(from[i]);
        }
        std::fill(entries_.begin(), entries_.end(), typename Sums<Real>::Entry{});
    }

    int64_t copies_, cells_, curves_;
    std::vector<typename Sums<Real>::Entry> entries_;
    std::vector<double> totals_;
    int64_t since_flush_ = 0;
};

// Calls work(offset, patch, first curve of the patch) for all of a task, in pieces of at most kFlushEvery elements a curve,
// and done(elements a curve) after each round of curves.
template <class Real, class Work, class Done>
void for_patches(const Shape& s, const Task& task, const Curves<Real>& curves, Work work, Done done) {
    const int64_t end = task.first_row + task.rows, rows = s.short_runs() ? kFlushEvery / s.inner : 1;
    for (int64_t r = task.first_row; r < end; r += rows) {
        int64_t at = r * s.stride() + task.first_curve * s.inner;
        if (s.short_runs()) {
            const int64_t count = std::min(rows, end - r);
            work(at, curves.short_runs(count, s.stride()), 0);
            done(count * s.inner);
            continue;
        }
        for (int64_t start = 0; start < s.inner; start += kFlushEvery) {
            const int64_t size = std::min(kFlushEvery, s.inner - start);
            for (int64_t c = 0; c < task.curves; ++c) {
                const int64_t from = at + c * s.inner + start;
                work(from, curves.run(c, std::min(size, s.total - from)), c);
            }
            done(size);
        }
    }
}

template <class Stored, class Real>
void forward_task(const Stored* x, Stored* y, const Shape& s, const Task& task, const Real* coefficients,
                  const Grid<Real>& grid) {
    const Curves<Real> curves(coefficients, s, task);
    for_patches(s, task, curves,
                [&](int64_t at, const Patch<Real>& patch, int64_t) { forward_patch(x + at, y + at, patch, grid); },
                [](int64_t) {});
}

template <class Stored, class Real>
void backward_task(const Stored* g, const Stored* x, Stored* gx, const Shape& s, const Task& task,
                   const Real* coefficients, const Grid<Real>& grid, Accumulator<Real>& accumulator) {
    const Curves<Real> curves(coefficients, s, task);
    for_patches(s, task, curves,
                [&](int64_t at, const Patch<Real>& patch, int64_t curve) {
                    backward_patch(g + at, x + at, gx + at, patch, grid, accumulator.of(curve));
                },
                [&](int64_t elements) { accumulator.count(elements); });
}

template <class Stored, class Real = typename Computed<Stored>::type>
void forward(const Stored* x, const Real* coefficients, Stored* y, const Shape& s, double range, double scale, int threads) {
    const Grid<Real> grid{Real(range), Real(scale), s.cells};
    const Plan plan(s);
    const int64_t tasks = plan.tasks();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < tasks; ++t) forward_task(x, y, s, plan.task(t, s.rows), coefficients, grid);
}

template <class Stored, class Real = typename Computed<Stored>::type>
void backward(const Stored* g, const Stored* x, const Real* coefficients, Stored* gx, Real* gc, const Shape& s,
              double range, double scale, int threads) {
    const Grid<Real> grid{Real(range), Real(scale), s.cells};
    const Plan plan(s);
    const int64_t tasks = plan.tasks(), knots = s.cells + 1, part = s.curves * 2 * s.cells;
    // [row part][curve][cell][2], where several tasks share curves
    std::vector<double> shared(gc && plan.row_parts > 1 ? plan.row_parts * part : 0);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < tasks; ++t) {
        const Task task = plan.task(t, s.rows);
        Accumulator<Real> accumulator(s, plan, task, gc != nullptr);
        backward_task(g, x, gx, s, task, coefficients, grid, accumulator);
        const std::vector<double>& totals = accumulator.totals();
        if (!shared.empty())
            std::copy(totals.begin(), totals.end(), &shared[plan.row_part(t) * part + task.first_curve * 2 * s.cells]);
        else if (gc)
            for (int64_t c = 0; c < task.curves; ++c)
                to_knots(&totals[c * 2 * s.cells], s.cells, gc + (task.first_curve + c) * knots);
    }
    if (shared.empty()) return;
    for (int64_t p = 1; p < plan.row_parts; ++p)
        for (int64_t i = 0; i < part; ++i) shared[i] += shared[p * part + i];
    for (int64_t c = 0; c < s.curves; ++c) to_knots(&shared[c * 2 * s.cells], s.cells, gc + c * knots);
}

}  // namespace

// x, y, g, gx: rows * curves * inner elements. coefficients, gc: curves * (cells + 1). gc may be null.
#define TAUTNET_SPLINE(NAME, STORED, REAL)                                                                             \
    extern "C" void spline_forward_##NAME(const STORED* x, const REAL* coefficients, STORED* y, int64_t rows,          \
                                          int64_t curves, int64_t inner, int64_t cells, double range, double scale,    \
                                          int threads) {                                                               \
        forward(x, coefficients, y, Shape(rows, curves, inner, cells), range, scale, threads);                         \
    }                                                                                                                  \
    extern "C" void spline_backward_##NAME(const STORED* g, const STORED* x, const REAL* coefficients, STORED* gx,     \
                                           REAL* gc, int64_t rows, int64_t curves, int64_t inner, int64_t cells,       \
                                           double range, double scale, int threads) {                                  \
        backward(g, x, coefficients, gx, gc, Shape(rows, curves, inner, cells), range, scale, threads);                \
    }

TAUTNET_SPLINE(float32, float, float)
TAUTNET_SPLINE(float64, double, double)
TAUTNET_SPLINE(bfloat16, BFloat16, float)
