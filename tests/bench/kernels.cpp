// The C ABI alone, on one thread: how fast each kernel is for each dtype and shape, in items
// (losses, logits, parameters) a second. ABSGD_CPU_LEVEL=2|3|4 lowers the instruction set; half.h's
// conversions, which are inlined everywhere, are compiled here for each.
//
//   cmake -S . -B build -DTORCH_ABSGD_BENCH=ON && cmake --build build
//   build/tests/bench/absgd_bench_kernels --benchmark_filter=softmax
#include "absgd.h"
#include "half.h"

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr const char *DTYPE_NAMES[] = {"float32", "float64", "float16", "bfloat16"};
constexpr absgd_dtype DTYPES[] = {ABSGD_FLOAT32, ABSGD_FLOAT64, ABSGD_FLOAT16, ABSGD_BFLOAT16};

void require(absgd_status status) {
    if (status == ABSGD_OK) return;
    std::fprintf(stderr, "%s\n", absgd_status_string(status));
    std::exit(1);
}

int64_t size_of(absgd_dtype dtype) {
    return dtype == ABSGD_FLOAT64 ? 8 : dtype == ABSGD_FLOAT32 ? 4 : 2;
}

int64_t arithmetic_size(absgd_dtype dtype) { return dtype == ABSGD_FLOAT64 ? 8 : 4; }

// n numbers of a dtype, uniform in [low, high).
std::vector<char> uniform(absgd_dtype dtype, int64_t n, double low, double high) {
    std::vector<char> bytes(n * size_of(dtype));
    std::mt19937 random(0);
    std::uniform_real_distribution<double> value(low, high);
    for (int64_t i = 0; i < n; i++) {
        const double x = value(random);
        const float f = static_cast<float>(x);
        const uint16_t half = dtype == ABSGD_FLOAT16 ? absgd_f16_store(f) : absgd_bf16_store(f);
        const void *from = dtype == ABSGD_FLOAT64   ? static_cast<const void *>(&x)
                           : dtype == ABSGD_FLOAT32 ? static_cast<const void *>(&f)
                                                    : &half;
        std::memcpy(&bytes[i * size_of(dtype)], from, size_of(dtype));
    }
    return bytes;
}

void count_items(benchmark::State &state, int64_t items, int64_t bytes = 0) {
    state.SetItemsProcessed(state.iterations() * items);
    if (bytes) state.SetBytesProcessed(state.iterations() * bytes);
}

// ---- weights.c: the sums of a batch, and p from them

void batch_stats(benchmark::State &state, absgd_dtype dtype) {
    const int64_t n = state.range(0);
    const auto losses = uniform(dtype, n, 0, 3);
    const double lam = 1;
    absgd_stats stats;
    for (auto _ : state) {
        require(absgd_batch_stats(dtype, losses.data(), nullptr, nullptr, n, &lam, &stats));
        benchmark::DoNotOptimize(stats);
    }
    count_items(state, n);
}

void weights(benchmark::State &state, absgd_dtype dtype) {
    const int64_t n = state.range(0);
    const auto losses = uniform(dtype, n, 0, 3);
    const double lam = 1, log_s = 2;
    const absgd_rule rule = {0.9, 1, NAN, 0, 0, 0};
    absgd_stats stats;
    require(absgd_batch_stats(dtype, losses.data(), nullptr, nullptr, n, &lam, &stats));
    std::vector<char> p(n * arithmetic_size(dtype)), coefficients(p.size());
    for (auto _ : state) {
        require(absgd_weights(dtype, losses.data(), nullptr, nullptr, n, &lam, &rule, &log_s,
                              &stats, 1, p.data(), coefficients.data(), nullptr));
        benchmark::ClobberMemory();
    }
    count_items(state, n);
}

// ---- lam_search.c: the whole search on one batch, all rounds that it takes

void lam_search(benchmark::State &state, absgd_dtype dtype) {
    const int64_t n = state.range(0);
    const auto losses = uniform(dtype, n, 0, 3);
    const absgd_lam_rule rule = {ABSGD_LAM_EFFECTIVE_SAMPLES, 0.6, 1, 1, 1e-12, 1e6};
    double rounds = 0;
    for (auto _ : state) {
        absgd_lam_search search{};
        double lam = std::numeric_limits<double>::quiet_NaN();
        for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
            absgd_lam_row row;
            require(
                absgd_lam_sums(dtype, losses.data(), nullptr, nullptr, n, &rule, &search, &row));
            require(absgd_lam_round(&rule, &row, 1, &search));
            rounds++;
            if (!search.has_answer || search.low == search.high) break;
        }
        require(absgd_lam_update(&rule, &search, &lam));
        benchmark::DoNotOptimize(lam);
    }
    count_items(state, n);
    state.counters["rounds"] = benchmark::Counter(rounds, benchmark::Counter::kAvgIterations);
}

// ---- sgd.c

void sgd_step(benchmark::State &state, absgd_dtype dtype) {
    const int64_t n = state.range(0);
    auto w = uniform(dtype, n, -1, 1), v = uniform(dtype, n, -1, 1);
    const auto g = uniform(dtype, n, -1, 1);
    const absgd_tensor tensor = {w.data(), g.data(), v.data(), n, 0};
    const absgd_sgd_options options = {1e-6, 0.9, 0, 5e-4, 1, 0, 0, 0};
    for (auto _ : state) {
        require(absgd_sgd_step(dtype, &tensor, 1, &options, 0, n));
        benchmark::ClobberMemory();
    }
    count_items(state, n, 5 * n * size_of(dtype));
}

// ---- softmax_loss.c

enum Loss { CROSS_ENTROPY, FOCAL, LDAM, SMOOTHED };
constexpr const char *LOSS_NAMES[] = {"cross_entropy", "focal", "ldam", "smoothed"};

// A call's arguments: [N, C] logits, or [N, C, inner].
struct SoftmaxLoss {
    absgd_dtype dtype;
    std::vector<char> logits, margin, loss, saved, grad_loss, grad;
    std::vector<int64_t> target;
    absgd_softmax_loss spec;
    bool is_kept; // exponentials, in the gradient's memory

    SoftmaxLoss(absgd_dtype dtype_, Loss kind, int64_t rows, int64_t classes, int64_t inner,
                bool is_kept_)
        : dtype(dtype_), target(rows * inner), spec{}, is_kept(is_kept_) {
        const int64_t samples = rows * inner, item = arithmetic_size(dtype);
        const absgd_dtype real = dtype == ABSGD_FLOAT64 ? ABSGD_FLOAT64 : ABSGD_FLOAT32;
        logits = uniform(dtype, samples * classes, -1, 1);
        margin = uniform(real, classes, 0, 0.5);
        grad_loss = uniform(real, samples, 0, 1);
        loss.resize(samples * item);
        saved.resize(ABSGD_LOSS_SAVED * samples * item);
        grad.resize(logits.size());
        for (int64_t i = 0; i < samples; i++) target[i] = i * 7919 % classes;
        spec.samples = samples;
        spec.classes = classes;
        spec.inner = inner;
        spec.margin = kind == LDAM ? margin.data() : nullptr;
        spec.scale = kind == LDAM ? 30 : 1;
        spec.focal_gamma = kind == FOCAL ? 2 : 0;
        spec.label_smoothing = kind == SMOOTHED ? 0.1 : 0;
        spec.ignore_index = -100;
    }

    void *kept() { return is_kept ? grad.data() : nullptr; }

    void forward() {
        require(absgd_softmax_loss_forward(dtype, &spec, logits.data(), target.data(), nullptr,
                                           loss.data(), saved.data(), kept(), 0, spec.samples));
    }

    void backward() {
        require(absgd_softmax_loss_backward(dtype, &spec, logits.data(), target.data(), nullptr,
                                            saved.data(), kept(), grad_loss.data(), grad.data(), 0,
                                            spec.samples));
    }
};

void softmax_loss(benchmark::State &state, absgd_dtype dtype, Loss kind, bool is_kept,
                  bool is_forward) {
    SoftmaxLoss call(dtype, kind, state.range(0), state.range(1), state.range(2), is_kept);
    call.forward();
    for (auto _ : state) {
        is_forward ? call.forward() : call.backward();
        benchmark::ClobberMemory();
    }
    count_items(state, call.spec.samples * call.spec.classes);
}

// ---- half.h

template <class From, class To> using Loop = void (*)(const From *, To *, int64_t);

template <class From, class To>
void convert(benchmark::State &state, From value, Loop<From, To> loop) {
    const int64_t n = state.range(0);
    std::vector<From> from(n, value);
    std::vector<To> to(n);
    for (auto _ : state) {
        loop(from.data(), to.data(), n);
        benchmark::ClobberMemory();
    }
    count_items(state, n);
}

#define DEFINE_LOOP(convert, From, To, level, target)                                              \
    target void convert##_##level(const From *from, To *to, int64_t n) {                           \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) to[i] = convert(from[i]);              \
    }
#define DEFINE_LOOPS(level, target)                                                                \
    DEFINE_LOOP(absgd_f16_load, uint16_t, float, level, target)                                    \
    DEFINE_LOOP(absgd_f16_store, float, uint16_t, level, target)                                   \
    DEFINE_LOOP(absgd_bf16_load, uint16_t, float, level, target)                                   \
    DEFINE_LOOP(absgd_bf16_store, float, uint16_t, level, target)                                  \
    void register_half_##level() {                                                                 \
        const auto add = [](const char *name, auto value, auto loop) {                             \
            const auto run = [=](auto &state) { convert(state, value, loop); };                    \
            benchmark::RegisterBenchmark(name, run)->Arg(4096);                                    \
        };                                                                                         \
        const uint16_t one_f16 = 0x3c00, subnormal_f16 = 0x0123, one_bf16 = 0x3f80;                \
        add("half/load/float16/" #level, one_f16, absgd_f16_load_##level);                         \
        add("half/load/subnormal_float16/" #level, subnormal_f16, absgd_f16_load_##level);         \
        add("half/store/float16/" #level, 1.0f, absgd_f16_store_##level);                          \
        add("half/store/subnormal_float16/" #level, 1e-6f, absgd_f16_store_##level);               \
        add("half/load/bfloat16/" #level, one_bf16, absgd_bf16_load_##level);                      \
        add("half/store/bfloat16/" #level, 1.0f, absgd_bf16_store_##level);                        \
    }

#if defined(__x86_64__)
DEFINE_LOOPS(v2, __attribute__((target("arch=x86-64-v2"))))
DEFINE_LOOPS(v3, __attribute__((target("arch=x86-64-v3"))))
DEFINE_LOOPS(v4, __attribute__((target("arch=x86-64-v4"))))

void register_half() {
    register_half_v2();
    if (__builtin_cpu_supports("x86-64-v3")) register_half_v3();
    if (__builtin_cpu_supports("x86-64-v4")) register_half_v4();
}
#else
DEFINE_LOOPS(v1, )

void register_half() { register_half_v1(); }
#endif

void register_all() {
    for (const absgd_dtype dtype : DTYPES) {
        const std::string suffix = std::string("/") + DTYPE_NAMES[dtype];
        const auto add = [&](const std::string &name, auto function, auto... options) {
            return benchmark::RegisterBenchmark((name + suffix).c_str(), function, dtype,
                                                options...);
        };
        for (const int64_t n : {64, 512, 4096, 262144}) {
            add("batch_stats", batch_stats)->Arg(n);
            add("weights", weights)->Arg(n);
            add("lam_search", lam_search)->Arg(n);
        }
        for (const int64_t n : {4096, 464154, 25557032}) add("sgd_step", sgd_step)->Arg(n);
        for (const Loss kind : {CROSS_ENTROPY, FOCAL, LDAM, SMOOTHED}) {
            for (const int pass : {0, 1, 2, 3}) {
                const bool is_kept = pass & 1, is_forward = pass & 2;
                const std::string name = std::string("softmax_loss/") + LOSS_NAMES[kind] +
                                         (is_forward ? "/forward" : "/backward") +
                                         (is_kept ? "/kept" : "");
                auto *b = add(name, softmax_loss, kind, is_kept, is_forward);
                b->ArgNames({"N", "C", "inner"});
                b->Args({128, 2, 1})->Args({128, 10, 1})->Args({512, 365, 1})->Args({512, 1000, 1});
                b->Args({512, 8142, 1})->Args({2, 21, 16384});
            }
        }
    }
    register_half();
}

} // namespace

int main(int argc, char **argv) {
    register_all();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
}
