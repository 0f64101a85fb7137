/* What the CUDA sources of this project mean on a CPU, for tests without a card.
 *
 * The very same .cuh and .cu files are compiled by g++; this header stands in for cuda_runtime.h,
 * cuda_fp16.h, cuda_bf16.h and cooperative_groups.h. A launch runs to its end before it returns.
 * Each CUDA thread is a fibre with a stack of its own; barriers and shuffles switch between them,
 * in an order that changes from launch to launch. As many blocks as fit are alive at once.
 *
 * The sanitizers know of the fibres. To ThreadSanitizer each is a thread, which only barriers,
 * shuffles and the launch's start and end order: a missing __syncthreads, or two blocks that write
 * to one place, is a data race. To AddressSanitizer each has a stack, and each block's shared
 * variables are fresh heap memory with guards around it, filled with NaN.
 *
 * A barrier or shuffle that not all of its threads reach aborts, with a message. */
#ifndef CUDA_ON_CPU_H
#define CUDA_ON_CPU_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"

/* ---- the language ---- */

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x;
    dim3(unsigned x_ = 1) : x(x_) {}
};

namespace cuda_on_cpu {

/* The number of the running fibre's thread in its block, of its block, and their sizes. */
unsigned thread_number();
unsigned block_number();
unsigned block_size();
unsigned grid_size();

void sync_block();
void sync_grid();
int exchange(unsigned mask, int value, int source_lane);

/* The memory that all threads of the running block find under key. */
void *shared_memory(const void *key, size_t size);

template <class T> T &shared_variable(const void *key) {
    return *static_cast<T *>(shared_memory(key, sizeof(T)));
}

/* Runs body(argument) as every thread of the grid. Returns what cudaLaunchKernelEx is to return. */
int run(unsigned grid, unsigned block, bool cooperative, void (*body)(void *), void *argument);

/* What launches are told of the device; tests change it. */
extern int multiprocessors;
/* The next launch fails, if it is not 0, with this error. */
extern int next_error;
/* How many launches there were. */
extern int launches;
/* Whether __syncthreads does nothing: to see that its absence is noticed. */
extern bool without_barriers;

} // namespace cuda_on_cpu

template <unsigned (*get)()> struct cuda_on_cpu_index {
    struct axis {
        operator unsigned() const { return get(); }
    } x;
};
inline const cuda_on_cpu_index<cuda_on_cpu::thread_number> threadIdx;
inline const cuda_on_cpu_index<cuda_on_cpu::block_number> blockIdx;
inline const cuda_on_cpu_index<cuda_on_cpu::block_size> blockDim;
inline const cuda_on_cpu_index<cuda_on_cpu::grid_size> gridDim;

/* The address of a static, one for each place (and instantiation), is the key. */
#define ABSGD_SHARED(T, name)                                                                      \
    static const char name##_key = 0;                                                              \
    T &name = cuda_on_cpu::shared_variable<T>(&name##_key)

inline void __syncthreads() { cuda_on_cpu::sync_block(); }

inline int __shfl_xor_sync(unsigned mask, int value, int lane_mask) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    return cuda_on_cpu::exchange(mask, value, lane ^ lane_mask);
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    cuda_on_cpu::exchange(mask, 0, static_cast<int>(threadIdx.x % 32));
}

template <class T> T atomicAdd(T *address, T value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

namespace cooperative_groups {
struct grid_group {
    void sync() const { cuda_on_cpu::sync_grid(); }
};
inline grid_group this_grid() { return {}; }
} // namespace cooperative_groups

/* ---- half precision ---- */

struct __half {
    absgd_f16 bits;
};
struct __nv_bfloat16 {
    absgd_bf16 bits;
};

inline float __half2float(__half x) { return absgd_f16_load(x.bits); }
inline float __bfloat162float(__nv_bfloat16 x) { return absgd_bf16_load(x.bits); }
inline __half __float2half_rn(float x) { return {absgd_f16_store(x)}; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {absgd_bf16_store(x)}; }

/* ---- the runtime ---- */

typedef int cudaError_t;
typedef void *cudaStream_t;

enum { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
enum { cudaErrorCooperativeLaunchTooLarge = 720 };
enum { cudaLaunchAttributeCooperative = 2 };
enum { cudaDevAttrMultiProcessorCount = 16 };

struct cudaLaunchAttribute {
    int id;
    union {
        int cooperative;
    } val;
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    cudaStream_t stream = nullptr;
    cudaLaunchAttribute *attrs = nullptr;
    unsigned numAttrs = 0;
};

enum cudaMemcpyKind { cudaMemcpyDefault };

inline cudaError_t cudaMalloc(void **memory, size_t size) {
    *memory = malloc(size);
    return cudaSuccess;
}

inline cudaError_t cudaFree(void *memory) {
    free(memory);
    return cudaSuccess;
}

inline cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind) {
    memcpy(to, from, size);
    return cudaSuccess;
}

inline const char *cudaGetErrorString(cudaError_t) { return "an error of cuda_on_cpu"; }

inline cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int *value, int, int) {
    *value = cuda_on_cpu::multiprocessors;
    return cudaSuccess;
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...),
                               const A &...arguments) {
    auto call = [&] { kernel(arguments...); };
    using Call = decltype(call);
    return cuda_on_cpu::run(
        config->gridDim.x, config->blockDim.x, config->numAttrs != 0,
        [](void *f) { (*static_cast<Call *>(f))(); }, &call);
}

#endif
