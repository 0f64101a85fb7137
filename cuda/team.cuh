/* The blocks that work on a batch together, as their code sees them: all of a grid, or its first.
 */
#ifndef ABSGD_TEAM_CUH
#define ABSGD_TEAM_CUH

#include "device.cuh"

namespace absgd {

/* Of several, those beyond `blocks` do no work, but meet the others. */
struct team {
    unsigned block, blocks; /* this one's number, and how many there are */

    __device__ bool has_work() const { return block < blocks; }
    __device__ int64_t thread() const {
        return static_cast<int64_t>(block) * blockDim.x + threadIdx.x;
    }
    __device__ int64_t threads() const { return static_cast<int64_t>(blocks) * blockDim.x; }

    /* All threads of one block, or of the grid, whose launch then has to be cooperative. */
    __device__ void sync() const {
        if (blocks == 1) {
            __syncthreads();
        } else {
            sync_grid();
        }
    }
};

__device__ inline team whole_grid() { return {blockIdx.x, gridDim.x}; }

/* One for each chunk of n losses. Where that is one, it meets nobody, and the others can go. */
__device__ inline team team_for(int64_t n) {
    const int64_t chunks = n > 0 ? (n + ABSGD_CUDA_CHUNK - 1) / ABSGD_CUDA_CHUNK : 1;
    return {blockIdx.x, chunks < gridDim.x ? static_cast<unsigned>(chunks) : gridDim.x};
}

} // namespace absgd
#endif
