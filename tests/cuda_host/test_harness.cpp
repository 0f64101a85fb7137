/* cuda_on_cpu itself: that launches, barriers and shuffles mean what CUDA says. */
#include "absgd_cuda.h"
#include "device.cuh"
#include "device_array.h"

namespace {

using absgd::launch;

#if defined(CUDA_ON_CPU_TSAN)
constexpr int MANY = 128; /* threads; each costs a clock */
#else
constexpr int MANY = 1024;
#endif

void count_visits(int *visits) { atomicAdd(&visits[blockIdx.x * blockDim.x + threadIdx.x], 1); }

TEST(Harness, EveryThreadRunsOnce) {
    for (int blocks : {1, 3, 70}) {
        for (int threads : {1, 32, 48, MANY}) {
            const DeviceArray<int> visits(std::vector<int>(blocks * threads));
            ASSERT_EQ(launch(count_visits, {blocks, threads}, nullptr, visits.data()), ABSGD_OK);
            EXPECT_EQ(visits.get(), std::vector<int>(blocks * threads, 1));
        }
    }
}

void rotate(const int *in, int *out) {
    struct numbers {
        int of[MANY];
    };
    ABSGD_SHARED(numbers, shared);
    shared.of[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = shared.of[(threadIdx.x + 1) % blockDim.x];
}

TEST(Harness, ABarrierOrdersABlock) {
    std::vector<int> in(MANY), wanted(MANY);
    for (int i = 0; i < MANY; i++) {
        in[i] = i * i;
        wanted[i] = (i + 1) % MANY * ((i + 1) % MANY);
    }
    const DeviceArray<int> from(in), to(in);
    launch(rotate, {1, MANY}, nullptr, from.data(), to.data());
    EXPECT_EQ(to.get(), wanted);
}

void sum_of_grid(int *parts, int *totals) {
    const int sum = absgd::reduce(static_cast<int>(threadIdx.x), blockDim.x,
                                  [](int a, int b) { return a + b; });
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
    absgd::sync_grid();
    int total = 0;
    for (unsigned b = 0; b < gridDim.x; b++) total += parts[b];
    totals[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

TEST(Harness, ReductionsAndTheGridBarrier) {
    for (int blocks : {1, 2, 4}) {
        for (int threads : {32, 96, MANY < 256 ? MANY : 256}) {
            const DeviceArray<int> parts(std::vector<int>(blocks, 0));
            const DeviceArray<int> totals(std::vector<int>(blocks * threads));
            ASSERT_EQ(
                launch(sum_of_grid, {blocks, threads, true}, nullptr, parts.data(), totals.data()),
                ABSGD_OK);
            EXPECT_EQ(totals.get(),
                      std::vector<int>(blocks * threads, blocks * threads * (threads - 1) / 2));
        }
    }
}

#if !defined(CUDA_ON_CPU_TSAN) /* which would call this kernel what it is: a race */
void last_of_block(int *last) { last[blockIdx.x] = static_cast<int>(threadIdx.x); }

TEST(Harness, TheOrderOfThreadsChanges) {
    std::vector<int> seen;
    for (int i = 0; i < 10; i++) {
        const DeviceArray<int> last(0);
        launch(last_of_block, {1, 64}, nullptr, last.data());
        seen.push_back(last.get()[0]);
    }
    EXPECT_NE(seen, std::vector<int>(10, seen[0]));
}
#endif

void read_unset(float *out) {
    ABSGD_SHARED(float, never_written);
    *out = never_written;
}

TEST(Harness, SharedMemoryBeginsAsNan) {
    const DeviceArray<float> out(0.0f);
    launch(read_unset, {1, 1}, nullptr, out.data());
    EXPECT_TRUE(std::isnan(out.get()[0]));
}

void diverging_barrier() {
    if (threadIdx.x < 5) __syncthreads();
}

void diverging_shuffle() {
    if (threadIdx.x < 5) __syncwarp();
}

TEST(HarnessDeathTest, ABarrierThatIsNotReachedByAllAborts) {
    EXPECT_DEATH(launch(diverging_barrier, {1, 64}, nullptr), "not reached by all");
    EXPECT_DEATH(launch(diverging_shuffle, {1, 64}, nullptr), "not reached by all");
}

void meet() { cooperative_groups::this_grid().sync(); }

TEST(HarnessDeathTest, AGridBarrierNeedsACooperativeLaunch) {
    EXPECT_DEATH(launch(meet, {2, 32}, nullptr), "not cooperative");
}

TEST(Harness, AGridThatIsNotResidentAtOnceIsRefused) {
    EXPECT_EQ(launch(meet, {100, 1024, true}, nullptr), ABSGD_CUDA_ERROR);
}

/* ---- what only the launchers' surroundings can show ---- */

TEST(Launches, AFailureIsReported) {
    const DeviceArray<double> d(std::vector<double>(32));
    const absgd_rule rule = {0.9, 1.0, NAN, 0, 0, 0};
    cuda_on_cpu::next_error = 1;
    EXPECT_EQ(absgd_carry_log_s_cuda(d.data(), &rule, d.data(), d.data() + 1, nullptr),
              ABSGD_CUDA_ERROR);
    EXPECT_EQ(absgd_carry_log_s_cuda(d.data(), &rule, d.data() + 1, d.data() + 2, nullptr),
              ABSGD_OK);
}

TEST(Launches, WeighIsOneAtEveryBatchSize) {
    const absgd_rule rule = {0.9, 1.0, NAN, 0, 0, 0};
    for (int64_t n : {1, 2048, 20000}) {
        const DeviceArray<float> losses(std::vector<float>(n, 1.0f)), weights(losses.get()),
            coefficients(losses.get());
        const DeviceArray<double> lam(1.0), log_s(NAN), log_s_lam(1.0);
        const DeviceArray<absgd_report> reports(std::vector<absgd_report>(2));
        const DeviceArray<absgd_stats> scratch(std::vector<absgd_stats>(10));
        const int before = cuda_on_cpu::launches;
        ASSERT_EQ(absgd_weigh_cuda(ABSGD_FLOAT32, losses.data(), nullptr, nullptr, n, nullptr, 0,
                                   scratch.data(), lam.data(), &rule, log_s.data(),
                                   log_s_lam.data(), reports.data(), 1.0, weights.data(),
                                   coefficients.data(), nullptr),
                  ABSGD_OK);
        EXPECT_EQ(cuda_on_cpu::launches, before + 1);
        EXPECT_EQ(weights.get(), std::vector<float>(n, 1.0f)); /* exp(L − logmeanexp L) */
    }
}

TEST(Launches, AStepIsOneForSixHundredAndFortyTensors) {
    float w[700] = {}, g[700] = {};
    std::vector<absgd_tensor> tensors;
    for (int i = 0; i < 700; i++) tensors.push_back({&w[i], &g[i], nullptr, i % 2, 0});
    const absgd_sgd_options options = {0.1, 0, 0, 0, 1, 0, 0, 0};
    const auto launches = [&](int64_t n) {
        const int before = cuda_on_cpu::launches;
        EXPECT_EQ(absgd_sgd_step_cuda(ABSGD_FLOAT32, tensors.data(), n, &options, nullptr, nullptr,
                                      nullptr, nullptr),
                  ABSGD_OK);
        return cuda_on_cpu::launches - before;
    };
    for (int64_t n : {0, 1, 2, 640, 700}) {
        EXPECT_EQ(launches(n), n < 2 ? 0 : 1); /* empty tensors do not count */
    }
    for (absgd_tensor &t : tensors) t.numel = 1;
    EXPECT_EQ(launches(640), 1); /* the list's capacity */
    for (float &x : g) x = 1.0f;
    EXPECT_EQ(launches(641), 2);
    for (int i = 0; i < 700; i++) EXPECT_EQ(w[i], i < 641 ? -0.1f : 0.0f);
}

TEST(Launches, AWeightedLossIsOne) {
    const int64_t n = 3000; /* two chunks */
    const DeviceArray<float> logits(std::vector<float>(2 * n, 0.0f)),
        loss(std::vector<float>(n, 0.0f)), saved(std::vector<float>(ABSGD_LOSS_SAVED * n, 0.0f)),
        weights(loss.get()), coefficients(loss.get()), total(0.0f);
    const DeviceArray<int64_t> target(std::vector<int64_t>(n, 1));
    const DeviceArray<uint8_t> counts(std::vector<uint8_t>(n, 0));
    const DeviceArray<double> lam(1.0), log_s(NAN), log_s_lam(1.0);
    const DeviceArray<absgd_report> reports(std::vector<absgd_report>(2));
    const DeviceArray<absgd_stats> scratch(std::vector<absgd_stats>(2));
    const absgd_rule rule = {0.9, 1.0, NAN, 2.0, 0, 0};
    const absgd_softmax_loss spec = {n, 2, 1, nullptr, nullptr, nullptr, 1.0, 0.0, 0.0, -100};
    absgd_weighting w = {};
    w.lam = lam.data();
    w.rule = &rule;
    w.log_s = log_s.data();
    w.log_s_lam = log_s_lam.data();
    w.reports = reports.data();
    w.counts = counts.data();
    w.scratch = scratch.data();
    w.weights = weights.data();
    w.coefficients = coefficients.data();
    w.total = total.data();
    const int before = cuda_on_cpu::launches;
    ASSERT_EQ(absgd_weighted_softmax_loss_cuda(ABSGD_FLOAT32, &spec, logits.data(), target.data(),
                                               nullptr, &w, loss.data(), saved.data(), nullptr),
              ABSGD_OK);
    EXPECT_EQ(cuda_on_cpu::launches, before + 1);
    EXPECT_NEAR(total.get()[0], std::log(2.0), 1e-6); /* all losses alike, all weights 1 */
}

} // namespace
