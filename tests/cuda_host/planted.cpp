/* Faults on purpose: `planted NAME` must make the sanitizer speak, and `planted none` must not. */
#include "absgd_cuda.h"
#include "device.cuh"

#include <stdio.h>

#include <string>
#include <vector>

namespace {

using absgd::launch;

struct numbers {
    int of[64];
};

/* The sum of each block's threads' numbers, down a tree. */
template <bool with_barrier> void sum_of_block(int *sums) {
    ABSGD_SHARED(numbers, shared);
    shared.of[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared.of[threadIdx.x] += shared.of[threadIdx.x + half];
        if (with_barrier) __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = shared.of[0];
}

void all_to_one(int *sum) {
    if (threadIdx.x == 0) *sum = static_cast<int>(blockIdx.x);
}

void beyond_shared(int *out) {
    ABSGD_SHARED(numbers, shared);
    shared.of[threadIdx.x] = 1;
    __syncthreads();
    const numbers *s = &shared;
    out[threadIdx.x] = *(s->of + threadIdx.x + 1); /* the last thread's is not there */
}

/* A kernel of the project, on a heap of exactly the size that is asked for, or less. */
void weigh(int64_t n, int64_t room) {
    std::vector<float> losses(n, 1.0f), weights(room), coefficients(room);
    std::vector<absgd_stats> scratch(4);
    const double lam = 1.0;
    double log_s = NAN, log_s_lam = 1.0;
    absgd_report reports[2] = {};
    const absgd_rule rule = {0.9, 1.0, NAN, 1.0, 0, 0};
    absgd_weigh_cuda(ABSGD_FLOAT32, losses.data(), nullptr, nullptr, n, nullptr, 0, scratch.data(),
                     &lam, &rule, &log_s, &log_s_lam, reports, 1.0, weights.data(),
                     coefficients.data(), nullptr);
}

} // namespace

int main(int argc, char **argv) {
    const std::string fault = argc > 1 ? argv[1] : "none";
    std::vector<int> out(64);
    if (fault == "none") {
        launch(sum_of_block<true>, {3, 64}, nullptr, out.data());
        weigh(5000, 5000);
    } else if (fault == "missing_barrier") {
        launch(sum_of_block<false>, {3, 64}, nullptr, out.data());
    } else if (fault == "racing_blocks") {
        launch(all_to_one, {3, 64}, nullptr, out.data());
    } else if (fault == "weigh_without_barriers") {
        cuda_on_cpu::without_barriers = true;
        weigh(1000, 1000);
    } else if (fault == "beyond_shared") {
        launch(beyond_shared, {1, 64}, nullptr, out.data());
    } else if (fault == "weights_too_short") {
        weigh(1000, 999);
    } else {
        fprintf(stderr, "no such fault: %s\n", fault.c_str());
        return 2;
    }
    puts("the sanitizer said nothing");
    return 0;
}
