// What the three kernels of FlashAttention-2 share: tiles of q, k, v and dy in shared memory, and the two kinds
// of products between them.
//
// A block keeps BLOCK_ROWS rows of one kind (queries, or keys) and walks along the others, BLOCK_COLUMNS at a
// time. Its threads stand in a rectangle, 16 to a row: a thread has ROWS x COLUMNS of a tile of scores, and
// ROWS x WIDTH of what is summed up. The 16 threads of a row are neighbours in one warp: they hold whole rows of
// scores between them, reduce those by shuffles, and need no barrier to hand them to each other.
#pragma once

#include "pack.cuh"
#include "view.cuh"

constexpr int ROW_OF_THREADS = 16;
constexpr int THREADS = BLOCK_ROWS / ROWS * ROW_OF_THREADS;
constexpr int COLUMNS = BLOCK_COLUMNS / ROW_OF_THREADS;
constexpr int WIDTH = HEAD / ROW_OF_THREADS;   // HEAD is D rounded up: 16, 32, 64, 128 or 256
constexpr int VECTOR = WIDTH < 4 ? WIDTH : 4;  // neighbours among a thread's WIDTH numbers

// Rows in shared memory are four floats longer than they need be. So eight rows begin in eight different groups
// of four banks, and eight threads that read four floats each, from a row each, do not wait for one another.
using Row = float[HEAD + 4];
using Scores = float[BLOCK_COLUMNS + 4];

// One head of an array `(B, n, H, D)`: n rows of D neighbours, `stride` apart.
struct Head {
    const scalar *data;
    int n, stride;
};

// Memory to shared memory, as float: rows first .. first + ROWS_OF_TILE of a head, zeros for those outside.
template <int ROWS_OF_TILE>
__device__ void load_tile(Row *tile, const Head &head, int first, int D) {
    for (int i = threadIdx.x; i < ROWS_OF_TILE * (HEAD / 4); i += THREADS) {
        const int row = i / (HEAD / 4), column = i % (HEAD / 4) * 4;
        const int count = first + row < head.n ? D - column : 0;
        const scalar *place = head.data + int64_t(first + row) * head.stride + column;
        *reinterpret_cast<Pack<float, 4> *>(&tile[row][column]) = as_floats(read_pack<4>(place, count));
    }
}

// Which part of a tile is this thread's: rows row() + i, columns column() + 16 j.
__device__ int my_row() { return threadIdx.x / ROW_OF_THREADS * ROWS; }
__device__ int my_column() { return threadIdx.x % ROW_OF_THREADS; }

// s = a b^T: products of whole rows, this thread's share of them.
__device__ void multiply_rows(float (&s)[ROWS][COLUMNS], const Row *a, const Row *b) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) s[i][j] = 0.0f;
#pragma unroll 4
    for (int d = 0; d < HEAD; d += 4) {
        Pack<float, 4> x[ROWS], y[COLUMNS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) x[i] = *reinterpret_cast<const Pack<float, 4> *>(&a[my_row() + i][d]);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            y[j] = *reinterpret_cast<const Pack<float, 4> *>(&b[my_column() + j * ROW_OF_THREADS][d]);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int u = 0; u < 4; u++) s[i][j] += x[i].x[u] * y[j].x[u];
    }
}

// A tile of scores to shared memory, where the whole row of threads finds it.
__device__ void share_scores(Scores *shared, const float (&s)[ROWS][COLUMNS]) {
    __syncwarp();  // all have read what was there before
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) shared[my_row() + i][my_column() + j * ROW_OF_THREADS] = s[i][j];
    __syncwarp();
}

// Which number of a row is number w of a thread's WIDTH.
__device__ int my_number(int w) { return (my_column() + w / VECTOR * ROW_OF_THREADS) * VECTOR + w % VECTOR; }

// sum += scores rows: every row of `sum` is a weighted sum of the BLOCK_COLUMNS rows.
__device__ void add_weighted_rows(float (&sum)[ROWS][WIDTH], const Scores *scores, const Row *rows) {
#pragma unroll 2
    for (int column = 0; column < BLOCK_COLUMNS; column += 4) {
        Pack<float, 4> weight[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            weight[i] = *reinterpret_cast<const Pack<float, 4> *>(&scores[my_row() + i][column]);
#pragma unroll
        for (int u = 0; u < 4; u++) {
#pragma unroll
            for (int w = 0; w < WIDTH; w += VECTOR) {
                const auto numbers =
                    *reinterpret_cast<const Pack<float, VECTOR> *>(&rows[column + u][my_number(w)]);
#pragma unroll
                for (int i = 0; i < ROWS; i++)
#pragma unroll
                    for (int v = 0; v < VECTOR; v++) sum[i][w + v] += weight[i].x[u] * numbers.x[v];
            }
        }
    }
}

// The block's sums, times a factor for each row, to the n_rows rows that there are of them.
__device__ void store_rows(scalar *first, int64_t stride, int n_rows, int D, const float (&sum)[ROWS][WIDTH],
                           const float (&factor)[ROWS]) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (my_row() + i >= n_rows) continue;
        scalar *row = first + (my_row() + i) * stride;
#pragma unroll
        for (int w = 0; w < WIDTH; w += VECTOR) {
            float numbers[4] = {};
#pragma unroll
            for (int v = 0; v < VECTOR; v++) numbers[v] = sum[i][w + v] * factor[i];
            write_pack<4>(row + my_number(w), min(VECTOR, D - my_number(w)), numbers);
        }
    }
}

// Over the 16 threads of a row; all of them get the result.
__device__ float max_of_row(float x) {
#pragma unroll
    for (int lanes = ROW_OF_THREADS / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}

__device__ float sum_of_row(float x) {
#pragma unroll
    for (int lanes = ROW_OF_THREADS / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}
