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
    const int64_t chunks = n > 0 ? ceil_div(n, ABSGD_CUDA_CHUNK) : 1;
    return {blockIdx.x, chunks < gridDim.x ? static_cast<unsigned>(chunks) : gridDim.x};
}

/* The union of rows, by a block. */
template <class Row, class Join>
__device__ Row join_all(const Row *rows, int64_t n_rows, Row whole, const Join &join) {
    for (int64_t i = threadIdx.x; i < n_rows; i += blockDim.x) whole = join(whole, rows[i]);
    return reduce(whole, n_rows > WARP ? blockDim.x : WARP, join);
}

/* The union of the rows of(begin, end) of a batch's chunks, in the first thread of each block. With
 * several chunks each has a place in scratch, and the blocks meet. */
template <class Row, class Of, class Join>
__device__ Row of_chunks(int64_t n, const team &blocks, Row *scratch, const Row &none, const Of &of,
                         const Join &join) {
    if (n <= ABSGD_CUDA_CHUNK) return of(0, n);
    const int64_t chunks = ceil_div(n, ABSGD_CUDA_CHUNK);
    for (int64_t c = blocks.block; c < chunks; c += blocks.blocks) {
        const int64_t begin = c * ABSGD_CUDA_CHUNK, rest = n - begin;
        const Row row = of(begin, begin + (rest < ABSGD_CUDA_CHUNK ? rest : ABSGD_CUDA_CHUNK));
        if (threadIdx.x == 0) scratch[c] = row;
    }
    blocks.sync();
    return join_all(scratch, chunks, none, join);
}

} // namespace absgd
#endif
