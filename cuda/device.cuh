/* What the kernels share: element types, 16-byte loads and stores, reductions in a fixed order, and
 * the launch. */
#ifndef ABSGD_DEVICE_CUH
#define ABSGD_DEVICE_CUH

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "absgd_cuda.h"
#include "absgd_math.h"

/* A variable of type T that the threads of a block share. tests/cuda_host gives it a meaning of its
 * own, under which every block has fresh memory with guards around it. */
#ifndef ABSGD_SHARED
#define ABSGD_SHARED(T, name) __shared__ T name
#endif

/* Threads of a block; kernels take what blockDim says, in whole warps. Fewer in tests/cuda_host
 * under ThreadSanitizer, where each costs a clock. */
#ifndef ABSGD_THREADS
#define ABSGD_THREADS 256
#endif

namespace absgd {

constexpr int WARP = 32;
constexpr int THREADS = ABSGD_THREADS;
/* Blocks of a multiprocessor, as __launch_bounds__ of kernels that meet: leaves a thread 80
 * registers, so that none spills. */
constexpr int RESIDENT = 3;

/* ---- element types ---- */

/* A, the type that values stored as S are computed in. */
template <class S> struct arithmetic {
    using type = float;
};
template <> struct arithmetic<double> {
    using type = double;
};

__device__ inline float to_real(float x) { return x; }
__device__ inline double to_real(double x) { return x; }
__device__ inline float to_real(__half x) { return __half2float(x); }
__device__ inline float to_real(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class S> __device__ inline S from_real(typename arithmetic<S>::type x) { return x; }
template <> __device__ inline __half from_real<__half>(float x) { return __float2half_rn(x); }
template <> __device__ inline __nv_bfloat16 from_real<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

/* f(S{}) for the type S that dtype names. */
template <class F> absgd_status with_type(absgd_dtype dtype, const F &f) {
    switch (dtype) {
        case ABSGD_FLOAT32: return f(float{});
        case ABSGD_FLOAT64: return f(double{});
        case ABSGD_FLOAT16: return f(__half{});
        case ABSGD_BFLOAT16: return f(__nv_bfloat16{});
    }
    return ABSGD_INVALID_DTYPE;
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- memory ---- */

/* V elements that are read or written at once. */
template <class S, int V> struct alignas(V * sizeof(S)) pack {
    S of[V];
};

template <class S> constexpr int PER_16_BYTES = 16 / sizeof(S);

template <int V, class S> __device__ inline pack<S, V> read(const S *x) {
    return *reinterpret_cast<const pack<S, V> *>(x);
}

template <int V, class S> __device__ inline void write(S *x, const pack<S, V> &values) {
    *reinterpret_cast<pack<S, V> *>(x) = values;
}

__host__ __device__ inline bool is_aligned(const void *x) {
    return reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

/* Losses with their mask and base measure, which may be NULL. */
template <class S> struct masked_losses {
    const S *losses;
    const uint8_t *mask;
    const typename arithmetic<S>::type *weights;
    int64_t n;

    __device__ bool counts(int64_t i) const { return !mask || mask[i]; }
    __device__ double loss(int64_t i) const { return static_cast<double>(to_real(losses[i])); }

    /* of a sample that counts */
    __device__ double weight(int64_t i) const {
        return weights ? static_cast<double>(weights[i]) : 1.0;
    }
};

__device__ inline bool is_weight(double w) { return w >= 0.0 && isfinite(w); }

/* ---- reductions ---- */

/* The value of the lane whose number differs from this one's in the bits of mask. */
template <class T> __device__ inline T exchange(const T &value, int mask) {
    static_assert(sizeof(T) % sizeof(int) == 0, "exchanged word by word");
    union words {
        T value;
        int word[sizeof(T) / sizeof(int)];
        __device__ words() {}
    } mine, other;
    mine.value = value;
#pragma unroll
    for (unsigned i = 0; i < sizeof(T) / sizeof(int); i++) {
        other.word[i] = __shfl_xor_sync(0xffffffffu, mine.word[i], mask);
    }
    return other.value;
}

/* What join makes of the values of `lanes` adjacent threads, in each of them: a power of two up to
 * a warp, or the whole block. The tree is fixed, so each thread's result has the same bits on every
 * run; they are the same in all threads only if join commutes to the bit. */
template <class T, class Join> __device__ T reduce(T value, int lanes, const Join &join) {
    for (int mask = 1; mask < lanes && mask < WARP; mask *= 2) {
        value = join(value, exchange(value, mask));
    }
    if (lanes <= WARP) return value;
    struct of_warps {
        T value[1024 / WARP];
    };
    ABSGD_SHARED(of_warps, shared);
    if (threadIdx.x % WARP == 0) shared.value[threadIdx.x / WARP] = value;
    __syncthreads();
    value = shared.value[0];
    for (unsigned w = 1; w < blockDim.x / WARP; w++) value = join(value, shared.value[w]);
    __syncthreads(); /* before the next reduction writes there */
    return value;
}

/* ---- launching ---- */

/* All threads of the grid; needs a cooperative launch unless it is one block. */
__device__ inline void sync_grid() {
    if (gridDim.x == 1) {
        __syncthreads();
    } else {
        cooperative_groups::this_grid().sync();
    }
}

struct shape {
    int64_t blocks;
    int threads = THREADS;
    bool cooperative = false; /* the blocks meet in sync_grid */
};

template <class... P, class... A>
absgd_status launch(void (*kernel)(P...), shape shape, void *stream, const A &...arguments) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = shape.cooperative ? 1 : 0;
    const cudaError_t launched = cudaLaunchKernelEx(&config, kernel, arguments...);
    return launched == cudaSuccess ? ABSGD_OK : ABSGD_CUDA_ERROR;
}

inline int64_t multiprocessors() {
    int device = 0, n = 1;
    const bool known =
        cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
    return known ? n : 1;
}

/* As many blocks as are wanted and fit on the device at once, `resident` on a multiprocessor. */
inline shape shape_that_meets(int64_t wanted, int resident = RESIDENT) {
    if (wanted <= 1) return {1};
    const int64_t most = resident * multiprocessors();
    const int64_t blocks = wanted < most ? wanted : most;
    return {blocks, THREADS, blocks > 1};
}

/* One block for each chunk. */
inline shape shape_for_batch(int64_t n) { return shape_that_meets(ceil_div(n, ABSGD_CUDA_CHUNK)); }

} // namespace absgd
#endif
