// Tiles of attention multiplied by tensor cores, numbers of 16 bits with sums in float.
//
// A warp has 16 rows. Of every 8 columns of its sums, the instruction leaves each thread two neighbours in
// two rows, 8 apart; and it takes the same numbers of its first factor from the same threads. So scores that
// were a result become a factor without leaving the registers.
#pragma once

#include "ladder/mma.cuh"

constexpr int ROW_OF_THREADS = 4, THREADS = BLOCK_ROWS / 16 * 32;
constexpr int ROWS = 2, COLUMNS = BLOCK_COLUMNS / ROW_OF_THREADS, WIDTH = HEAD / ROW_OF_THREADS;
constexpr int VECTOR = 2;  // neighbours among a thread's WIDTH numbers
constexpr int GROUP = 8;   // numbers that a thread copies at once

// Rows in shared memory are eight numbers longer than they need be: then eight rows' pieces of 16 bytes,
// which ldmatrix reads at once, lie in different banks.
using Row = scalar[HEAD + 8];
using Scores = Row;  // there are none in shared memory

__device__ void store_in_tile(scalar *place, const Pack<scalar, 8> &pack) {
    *reinterpret_cast<Pack<scalar, 8> *>(place) = pack;
}

// Where in the tile of scores a thread's number (i, j) is, and which of a row's HEAD numbers its number w.
__device__ int row_of(int i) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i * 8; }
__device__ int column_of(int j) { return j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2; }
__device__ int number_of(int w) { return column_of(w); }

// s = a b^T: products of whole rows.
__device__ void multiply_rows(float (&s)[ROWS][COLUMNS], const Row *a, const Row *b) {
    const int lane = threadIdx.x % 32, in_block = lane % 8, block = lane / 8;
    const Row *a_row = a + threadIdx.x / 32 * 16 + block % 2 * 8 + in_block;
    float sums[COLUMNS / 2][4] = {};
#pragma unroll
    for (int d = 0; d < HEAD; d += 16) {
        unsigned x[4];
        ldmatrix(x, &(*a_row)[d + block / 2 * 8]);
#pragma unroll
        for (int j = 0; j < COLUMNS / 2; j += 2) {  // 16 columns
            unsigned y[4];
            ldmatrix(y, &b[j * 8 + block / 2 * 8 + in_block][d + block % 2 * 8]);
            mma(sums[j], x, y, scalar());
            mma(sums[j + 1], x, y + 2, scalar());
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) s[i][j] = sums[j / 2][i * 2 + j % 2];
}

__device__ unsigned two(float first, float second) {
    const scalar numbers[2] = {scalar(first), scalar(second)};
    unsigned both;
    memcpy(&both, numbers, sizeof(both));
    return both;
}

// sum += weights rows: every row of `sum` is a weighted sum of the BLOCK_COLUMNS rows.
__device__ void add_weighted_rows(float (&sum)[ROWS][WIDTH], const float (&weights)[ROWS][COLUMNS],
                                  const Row *rows, Scores *) {
    const int lane = threadIdx.x % 32, in_block = lane % 8, block = lane / 8;
#pragma unroll
    for (int j = 0; j < COLUMNS; j += 4) {  // 16 columns
        const float *upper = weights[0] + j, *lower = weights[1] + j;
        const unsigned x[4] = {two(upper[0], upper[1]), two(lower[0], lower[1]), two(upper[2], upper[3]),
                               two(lower[2], lower[3])};
#pragma unroll
        for (int w = 0; w < WIDTH; w += 4) {  // 16 numbers of each of these 16 rows
            unsigned y[4];
            ldmatrix_transposed(y, &rows[j * 4 + block % 2 * 8 + in_block][w * 4 + block / 2 * 8]);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float *upper = sum[0] + w + half * 2, *lower = sum[1] + w + half * 2;
                float four[4] = {upper[0], upper[1], lower[0], lower[1]};
                mma(four, x, y + half * 2, scalar());
                upper[0] = four[0], upper[1] = four[1], lower[0] = four[2], lower[1] = four[3];
            }
        }
    }
}
