// Unitize with a norm over the channels of each position, forward and backward, for CPUs. Plain C interface, no dependency
// but OpenMP. The formulas are at the head of functional/pixel_unitize.py.
//
// Memory is (samples, channels, positions), float or double. Where positions = 1, as in dense layers, these are rows whose
// channels are neighbours, and the lanes of a vector are channels; else they are positions. A *unit* is what a vector covers
// of the channels: as many as it has lanes, or one. A *step* is what it covers of the positions: one, or as many as it has
// lanes. A *tile* of kSteps steps and all units is small enough to be read twice from the cache: for the sums over channels,
// and for what follows from them. A *block* of kTiles tiles is a piece of work.
//
// Sums are taken in Real over at most kSteps * kTiles steps or kUnits units, then in double in a fixed order. The division of
// the work depends on the sizes alone: the same bits with any thread count. Moments are taken around a value near the mean: no
// digits are lost where that is large beside the deviation.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
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

constexpr int kSteps = 4;
constexpr int64_t kTiles = 16;
constexpr int64_t kUnits = 64;

// The loops below reach full speed where what they call knows its pointers, as copies: [a] rather than [&].
#define INLINE __attribute__((always_inline))

template <class Real> struct Wide;
template <> struct Wide<float> { typedef float type __attribute__((vector_size(kBytes))); };
template <> struct Wide<double> { typedef double type __attribute__((vector_size(kBytes))); };
template <class Real> using Vec = typename Wide<Real>::type;
template <class Real> constexpr int64_t kLanes = kBytes / int64_t(sizeof(Real));

// The first elements, and `rest` in the lanes beyond them.
template <class Real> inline Vec<Real> load(const Real* from, int64_t count = kLanes<Real>, Vec<Real> rest = Vec<Real>{}) {
    std::memcpy(&rest, from, count == kLanes<Real> ? size_t(kBytes) : size_t(count) * sizeof(Real));
    return rest;
}

template <class Real> inline void store(Vec<Real> value, Real* to, int64_t count = kLanes<Real>) {
    std::memcpy(to, &value, count == kLanes<Real> ? size_t(kBytes) : size_t(count) * sizeof(Real));
}

template <class Real> inline double sum_of_lanes(Vec<Real> value) {
    Real reals[kLanes<Real>];
    double lanes[kLanes<Real>];
    store<Real>(value, reals);
    std::copy_n(reals, kLanes<Real>, lanes);
    for (int64_t half = kLanes<Real> / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// Room for numbers, 0 at first, as vectors: in memory none of them straddles two cache lines.
template <class Real> std::vector<Vec<Real>> room_for(int64_t count) {
    return std::vector<Vec<Real>>((count + kLanes<Real> - 1) / kLanes<Real>);
}

struct Tile {
    int64_t start, position, positions;  // its first element; its first position of all, and how many
};

// How the work is divided.
template <class Real, bool kRows> struct Plan {
    static constexpr int64_t L = kLanes<Real>, kAcross = kRows ? 1 : L;  // kAcross: positions of a step
    const int64_t samples, channels, positions, units, unit, step;       // unit, step: from one to the next in memory
    const int64_t tiles, blocks, all_positions;                          // tiles: of a sample
    const int threads;

    Plan(int64_t samples_, int64_t channels_, int64_t positions_, int threads_)
        : samples(kRows ? 1 : samples_), channels(channels_), positions(kRows ? samples_ : positions_),
          units(kRows ? (channels + L - 1) / L : channels), unit(kRows ? L : positions), step(kRows ? channels : L),
          tiles((positions + kSteps * kAcross - 1) / (kSteps * kAcross)), blocks((samples * tiles + kTiles - 1) / kTiles),
          all_positions(samples * positions), threads(threads_) {}

    template <class Work> void for_blocks(Work work) const {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t b = 0; b < blocks; ++b) work(b);
    }
    // Calls work(tile, its steps) for the tiles of a block; what does not fill kSteps steps comes in tiles of one.
    template <class Work> INLINE void for_tiles(int64_t block, Work work) const {
        constexpr int64_t kMost = kSteps * kAcross;
        for (int64_t t = block * kTiles; t < std::min(samples * tiles, (block + 1) * kTiles); ++t) {
            const int64_t n = t / tiles, first = t % tiles * kMost, rest = std::min(kMost, positions - first);
            const auto tile = [&](int64_t p, int64_t count) {
                return Tile{n * channels * positions + (kRows ? p * channels : p), n * positions + p, count};
            };
            if (rest == kMost)
                work(tile(first, kMost), std::integral_constant<int, kSteps>{});
            else
                for (int64_t p = 0; p < rest; p += kAcross)
                    work(tile(first + p, std::min(kAcross, rest - p)), std::integral_constant<int, 1>{});
        }
    }
    // Calls work(unit, where it starts, how many lanes it has) for some units of a tile.
    template <class Work> INLINE void for_units(const Tile& tile, int64_t from, int64_t to, Work work) const {
        const int64_t whole = kRows ? std::min(to, channels / L) : tile.positions < L ? from : to;
        for (; from < whole; ++from) work(from, tile.start + from * unit, std::integral_constant<int64_t, L>{});
        for (; from < to; ++from) work(from, tile.start + from * unit, kRows ? channels - from * L : tile.positions);
    }
    // One of a tile's numbers for each position, as a vector.
    static Vec<Real> of_step(const Real* values, int s) { return kRows ? Vec<Real>{} + values[s] : load(values + s * L); }
};

// What the formulas need to know of each channel, and loops that know it. 0 in the lanes beyond the last channel.
template <class Real, bool kRows> class Table {
  public:
    // mean and the digits that it lacks, 1 / deviation, gamma / deviation, gamma alpha / deviation; two of which see below
    enum { kMean, kDigits, kInverse, kScale, kMix, kFirst, kSecond, kEntries };
    struct Unit {
        Vec<Real> mean, digits, inverse, scale, mix, first, second;
        Vec<Real> centred(const Real* x, int64_t lanes) const { return load(x, lanes) - mean - digits; }
        Vec<Real> factor(Vec<Real> r_less_1) const { return scale + mix * r_less_1; }
    };
    const Plan<Real, kRows>& plan;

    explicit Table(const Plan<Real, kRows>& plan_)
        : plan(plan_), width_(plan.units * (kRows ? plan.L : 1)), values_(room_for<Real>(kEntries * width_)) {}
    // statistics: the first three, (3, channels).
    void set(const Real* statistics, const Real* alpha, const Real* weight) {
        const int64_t channels = plan.channels;
        for (int i = 0; i < 3; ++i) std::copy_n(statistics + i * channels, channels, row(i));
        Real *const scale = row(kScale), *const mix = row(kMix);
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c)
            scale[c] = weight[c] * statistics[2 * channels + c], mix[c] = scale[c] * alpha[c];
    }
    Real* row(int entry) { return reinterpret_cast<Real*>(values_.data()) + entry * width_; }
    // Calls work(unit, step, where it starts, how many lanes it has) for the vectors of some units of a tile.
    template <int Steps, class Work> INLINE void for_vectors(const Tile& tile, int64_t from, int64_t to, Work work) const {
        plan.for_units(tile, from, to, [&](int64_t u, int64_t at, auto lanes) {
            const Unit known = unit(u);
            const int64_t step = plan.step;
#pragma GCC unroll 4
            for (int s = 0; s < Steps; ++s) work(known, s, at + s * step, lanes);
        });
    }
    // Sums of value(unit, start, lanes) over the channels, for each position of a tile.
    template <int Steps, class Value> void over_channels(const Tile& tile, double* sums, Value value) const {
        std::fill_n(sums, Steps * plan.kAcross, 0.0);
        for (int64_t first = 0; first < plan.units; first += kUnits) {
            Vec<Real> part[Steps] = {};
            for_vectors<Steps>(tile, first, std::min(plan.units, first + kUnits),
                               [&](const Unit& unit, int s, int64_t at, auto lanes) { part[s] += value(unit, at, lanes); });
            for (int s = 0; s < Steps; ++s)
                for (int64_t i = 0; i < plan.kAcross; ++i)
                    sums[s * plan.kAcross + i] += kRows ? sum_of_lanes<Real>(part[s]) : double(part[s][i]);
        }
    }
    // Sums over the positions, (Count, channels), of what add(numbers, unit, step, start, lanes, sums) adds up. numbers: what
    // prepare(tile, steps) says of each position of a tile.
    template <int Count, class Prepare, class Add> std::vector<double> over_positions(Prepare prepare, Add add) const {
        const int64_t channels = plan.channels, width = plan.units * plan.L;
        std::vector<double> parts(plan.blocks * Count * channels);
        plan.for_blocks([&](int64_t b) {
            auto room = room_for<Real>(Count * width);
            Real* const sums = reinterpret_cast<Real*>(room.data());
            plan.for_tiles(b, [&](const Tile& tile, auto steps) {
                const auto numbers = prepare(tile, steps);
                plan.for_units(tile, 0, plan.units, [&](int64_t u, int64_t at, auto lanes) {
                    const Unit known = unit(u);
                    const int64_t step = plan.step;
                    Real* const into = sums + u * plan.L;
                    Vec<Real> sum[Count];
                    for (int i = 0; i < Count; ++i) sum[i] = load(into + i * width);
#pragma GCC unroll 4
                    for (int s = 0; s < steps; ++s) add(numbers, known, s, at + s * step, lanes, sum);
                    for (int i = 0; i < Count; ++i) store<Real>(sum[i], into + i * width);
                });
            });
            for (int i = 0; i < Count; ++i) to_channels(sums + i * width, channels, &parts[(b * Count + i) * channels]);
        });
        const int64_t count = Count * channels;
        for (int64_t b = 1; b < plan.blocks; ++b) add_to(parts.data(), &parts[b * count], count);
        parts.resize(count);
        return parts;
    }

  private:
    const int64_t width_;
    std::vector<Vec<Real>> values_;

    Vec<Real> of(int64_t entry, int64_t u) const {
        const Real* const from = reinterpret_cast<const Real*>(values_.data()) + entry * width_;
        return kRows ? load(from + u * plan.L) : Vec<Real>{} + from[u];
    }
    Unit unit(int64_t u) const { return {of(0, u), of(1, u), of(2, u), of(3, u), of(4, u), of(5, u), of(6, u)}; }
    static void to_channels(const Real* sums, int64_t count, double* into) {
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) into[c] = kRows ? double(sums[c]) : sum_of_lanes<Real>(load(sums + c * kLanes<Real>));
    }
    static void add_to(double* totals, const double* from, int64_t count) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) totals[i] += from[i];
    }
};

// Mean and variance of each channel, around the mean of its first positions or, if that is far away, once more.
template <class Real, bool kRows> void take_moments(Table<Real, kRows>& table, const Real* x, double* mean, double* var) {
    const Plan<Real, kRows>& plan = table.plan;
    const int64_t channels = plan.channels, few = std::min<int64_t>(kSteps, plan.positions);
    Real* const centre = table.row(table.kMean);
    for (int64_t p = 0; p < few; ++p)
        for (int64_t c = 0; c < channels; ++c) centre[c] += x[kRows ? p * channels + c : c * plan.positions + p] / Real(few);
    for (int attempt = 0; attempt < 2; ++attempt) {
        const std::vector<double> sums = table.template over_positions<2>(
            [](const Tile&, auto) { return 0; },
            [&](int, const auto& unit, int, int64_t at, auto lanes, Vec<Real>* sum) {
                const Vec<Real> away = load(x + at, lanes, unit.mean) - unit.mean;
                sum[0] += away, sum[1] += away * away;
            });
        bool far = false;
        for (int64_t c = 0; c < channels; ++c) {
            const double away = sums[c] / double(plan.all_positions);
            mean[c] = double(centre[c]) + away;
            var[c] = sums[channels + c] / double(plan.all_positions) - away * away;
            if (var[c] < 0) var[c] = 0;
            far = far || away * away > 16 * var[c];
        }
        if (!far) return;
        for (int64_t c = 0; c < channels; ++c) centre[c] = Real(mean[c]);
    }
}

template <class Real> struct Forward {
    const Real *x, *alpha, *weight, *bias;
    Real *running_mean, *running_var, *y, *state;
    double kappa, eps, momentum;  // momentum: 0 to normalise by the running statistics, else they follow the batch's
};

template <class Real, bool kRows> void run(const Plan<Real, kRows>& plan, const Forward<Real>& a) {
    using P = Plan<Real, kRows>;
    const int64_t channels = plan.channels;
    const double unbiased = double(plan.all_positions) / double(plan.all_positions - 1);
    std::vector<double> mean(channels), var(channels);
    Table<Real, kRows> table(plan);
    std::copy_n(a.running_mean, channels, mean.data()), std::copy_n(a.running_var, channels, var.data());
    if (a.momentum != 0) {
        const std::vector<double> old_mean = mean, old_var = var;
        take_moments(table, a.x, mean.data(), var.data());
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
            a.running_mean[c] = Real(old_mean[c] + a.momentum * (mean[c] - old_mean[c]));
            a.running_var[c] = Real(old_var[c] + a.momentum * (var[c] * unbiased - old_var[c]));
        }
    }
    Real* const statistics = a.state + plan.all_positions;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
        statistics[c] = Real(mean[c]), statistics[channels + c] = Real(mean[c] - double(statistics[c]));
        statistics[2 * channels + c] = Real(1 / std::sqrt(var[c] + a.eps));
    }
    table.set(statistics, a.alpha, a.weight);
    std::copy_n(a.bias, channels, table.row(table.kFirst));
    plan.for_blocks([&](int64_t b) {
        plan.for_tiles(b, [&](const Tile& tile, auto steps) {
            double squares[steps * P::kAcross];
            Real r_less_1[steps * P::kAcross], *const r = a.state + tile.position;
            table.template over_channels<steps>(tile, squares, [a](const auto& unit, int64_t at, auto lanes) {
                const Vec<Real> value = unit.centred(a.x + at, lanes) * unit.inverse;
                return value * value;
            });
            for (int64_t i = 0; i < steps * P::kAcross; ++i) {
                const double inverse_norm = 1 / std::sqrt(a.kappa * squares[i] + a.eps);
                r_less_1[i] = Real(inverse_norm - 1);
                if (i < tile.positions) r[i] = Real(inverse_norm);
            }
            table.template for_vectors<steps>(tile, 0, plan.units, [&, a](const auto& unit, int s, int64_t at, auto lanes) {
                const Vec<Real> factor = unit.factor(P::of_step(r_less_1, s));
                store<Real>(factor * unit.centred(a.x + at, lanes) + unit.first, a.y + at, lanes);
            });
        });
    });
}

template <class Real> struct Backward {
    const Real *x, *g, *state, *alpha, *weight;
    Real *gx, *galpha, *gweight, *gbias;
    double kappa, in_batch;
};

// Of the positions of a tile; pull: -kappa r^3 sum_c gamma_c alpha_c t.
template <class Real, int64_t Count> struct Pulls {
    Real r_less_1[Count] = {}, pull[Count] = {};
};

template <class Real, bool kRows> void run(const Plan<Real, kRows>& plan, const Backward<Real>& a) {
    using V = Vec<Real>;
    using P = Plan<Real, kRows>;
    const int64_t channels = plan.channels;
    const double share = a.in_batch / double(plan.all_positions);
    const Real *const mean = a.state + plan.all_positions, *const inverse = mean + 2 * channels;
    Table<Real, kRows> table(plan);
    table.set(mean, a.alpha, a.weight);
    std::vector<Real> pulls(plan.all_positions);
    const auto prepare = [&](const Tile& tile, auto steps) {
        Pulls<Real, steps * P::kAcross> of;
        double along[steps * P::kAcross];
        table.template over_channels<steps>(tile, along, [a](const auto& unit, int64_t at, auto lanes) {
            return unit.mix * (load(a.g + at, lanes) * unit.centred(a.x + at, lanes));
        });
        for (int64_t i = 0; i < tile.positions; ++i) {
            const double r = a.state[tile.position + i];
            of.r_less_1[i] = Real(r - 1);
            of.pull[i] = pulls[tile.position + i] = Real(-a.kappa * along[i] * r * r * r);
        }
        return of;
    };
    // With d = x - mean and q = r - 1 the sums of g, g d, q g, q g d, pull d, pull d^2.
    const auto sums = table.template over_positions<6>(
        prepare, [a](const auto& of, const auto& unit, int s, int64_t at, auto lanes, V* sum) {
            const V g = load(a.g + at, lanes), d = unit.centred(a.x + at, lanes), product = g * d;
            const V q = P::of_step(of.r_less_1, s), pulled = P::of_step(of.pull, s) * d;
            sum[0] += g, sum[1] += product, sum[2] += q * g, sum[3] += q * product, sum[4] += pulled, sum[5] += pulled * d;
        });
    const double* const total = sums.data();
    Real *const square = table.row(table.kInverse), *const first = table.row(table.kFirst), *const second = table.row(table.kSecond);
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
        const double* const sum = total + c;
        const double i = inverse[c], gamma = a.weight[c], mix = gamma * a.alpha[c];
        const double t = i * sum[channels], q_t = i * sum[3 * channels];  // sums of t = g xh and of q t
        const double h = gamma * sum[0] + mix * sum[2 * channels] + i * sum[4 * channels];
        const double h_xh = gamma * t + mix * q_t + i * i * sum[5 * channels];
        a.galpha[c] = Real(gamma * q_t), a.gweight[c] = Real(t + a.alpha[c] * q_t), a.gbias[c] = Real(sum[0]);
        first[c] = Real(share * i * h), second[c] = Real(share * i * i * h_xh), square[c] = Real(i * i);
    }
    plan.for_blocks([&](int64_t b) {
        plan.for_tiles(b, [&](const Tile& tile, auto steps) {
            Pulls<Real, steps * P::kAcross> of;
            for (int64_t i = 0; i < tile.positions; ++i)
                of.r_less_1[i] = a.state[tile.position + i] - 1, of.pull[i] = pulls[tile.position + i];
            table.template for_vectors<steps>(tile, 0, plan.units, [&, a](const auto& unit, int s, int64_t at, auto lanes) {
                const V slope = unit.inverse * P::of_step(of.pull, s) - unit.second;
                const V along_g = unit.factor(P::of_step(of.r_less_1, s)) * load(a.g + at, lanes);
                store<Real>(along_g + slope * unit.centred(a.x + at, lanes) - unit.first, a.gx + at, lanes);
            });
        });
    });
}

template <class Real, class Given> void run(int64_t samples, int64_t channels, int64_t positions, const Given& a, int threads) {
    if (positions == 1) run(Plan<Real, true>(samples, channels, positions, threads), a);
    else run(Plan<Real, false>(samples, channels, positions, threads), a);
}

}  // namespace

// x, y, g, gx: samples * channels * positions elements. state, written by the forward pass for the backward pass: r of each
// position, then three of each channel. All others: channels.
#define TAUTNET_UNITIZE(NAME, REAL)                                                                                        \
    extern "C" void unitize_forward_##NAME(                                                                                \
        const REAL* x, const REAL* alpha, const REAL* weight, const REAL* bias, REAL* running_mean, REAL* running_var,     \
        REAL* y, REAL* state, double kappa, double eps, double momentum, int64_t samples, int64_t channels,                \
        int64_t positions, int threads) {                                                                                  \
        const Forward<REAL> a{x, alpha, weight, bias, running_mean, running_var, y, state, kappa, eps, momentum};          \
        run<REAL>(samples, channels, positions, a, threads);                                                               \
    }                                                                                                                      \
    extern "C" void unitize_backward_##NAME(                                                                               \
        const REAL* x, const REAL* g, const REAL* state, const REAL* alpha, const REAL* weight, REAL* gx, REAL* galpha,    \
        REAL* gweight, REAL* gbias, double kappa, double in_batch, int64_t samples, int64_t channels, int64_t positions,   \
        int threads) {                                                                                                     \
        const Backward<REAL> a{x, g, state, alpha, weight, gx, galpha, gweight, gbias, kappa, in_batch};                   \
        run<REAL>(samples, channels, positions, a, threads);                                                               \
    }

TAUTNET_UNITIZE(float32, float)
TAUTNET_UNITIZE(float64, double)
