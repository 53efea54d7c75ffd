// What the three kernels of FlashAttention-2 share: tiles of q, k, v and dy in shared memory, and rows of
// scores spread over threads.
//
// A block keeps BLOCK_ROWS rows of one kind (queries, or keys) and walks along the others, BLOCK_COLUMNS at a
// time. ROW_OF_THREADS threads of one warp, neighbours, hold whole rows of scores between them: each has
// ROWS x COLUMNS of a tile of scores, and ROWS x WIDTH of what is summed up. So rows are reduced by shuffles.
// Which ones a thread has, and how tiles are multiplied, is in float_scores.cuh, for any GPU, and in
// tensor_scores.cuh, for 16 bits and tensor cores.
#pragma once

#include "pack.cuh"
#include "view.cuh"

#ifdef TENSOR_CORES
#include "tensor_scores.cuh"
#else
#include "float_scores.cuh"
#endif

// One head of an array `(B, n, H, D)`: n rows of D neighbours, `stride` apart.
struct Head {
    const scalar *data;
    int n, stride;
};

// Memory to shared memory: rows first .. first + ROWS_OF_TILE of a head, zeros for those outside.
template <int ROWS_OF_TILE>
__device__ void load_tile(Row *tile, const Head &head, int first, int D) {
    constexpr int PACKS = HEAD / GROUP;  // in a row; HEAD is D rounded up: 16, 32, 64, 128 or 256
    for (int i = threadIdx.x; i < ROWS_OF_TILE * PACKS; i += THREADS) {
        const int row = i / PACKS, column = i % PACKS * GROUP, count = first + row < head.n ? D - column : 0;
        const scalar *place = head.data + int64_t(first + row) * head.stride + column;
        store_in_tile(tile[row] + column, read_pack<GROUP>(place, count));
    }
}

// The block's sums, times a factor for each row, to the n_rows rows that there are of them.
__device__ void store_rows(scalar *first, int64_t stride, int n_rows, int D, const float (&sum)[ROWS][WIDTH],
                           const float (&factor)[ROWS]) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (row_of(i) >= n_rows) continue;
        scalar *row = first + row_of(i) * stride;
#pragma unroll
        for (int w = 0; w < WIDTH; w += VECTOR) {
            float numbers[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; v++) numbers[v] = sum[i][w + v] * factor[i];
            write_pack<VECTOR>(row + number_of(w), D - number_of(w), numbers);
        }
    }
}

// Which thread of its row this is.
__device__ int place_in_row() { return threadIdx.x % ROW_OF_THREADS; }

// Over the threads of a row; all of them get the result.
__device__ float max_of_row(float x) {
#pragma unroll
    for (int lanes = ROW_OF_THREADS / 2; lanes > 0; lanes /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}

__device__ float sum_of_row(float x) {
#pragma unroll
    for (int lanes = ROW_OF_THREADS / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}
