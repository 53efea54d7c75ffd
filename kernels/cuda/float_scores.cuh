// Tiles of attention multiplied by single threads, in float whatever type came from memory.
//
// The threads stand in a rectangle, 16 to a row. What a whole row of threads needs of its scores, to weigh
// other rows with them, it finds in shared memory; as it is one half of a warp, that takes no barrier of the
// block.
#pragma once

constexpr int ROW_OF_THREADS = 16, ROWS = 4, THREADS = BLOCK_ROWS / ROWS * ROW_OF_THREADS;
constexpr int COLUMNS = BLOCK_COLUMNS / ROW_OF_THREADS, WIDTH = HEAD / ROW_OF_THREADS;
constexpr int VECTOR = WIDTH < 4 ? WIDTH : 4;  // neighbours among a thread's WIDTH numbers
constexpr int GROUP = 4;                       // numbers that a thread copies at once

// Rows in shared memory are four floats longer than they need be. So eight rows begin in eight different
// groups of four banks, and eight threads that read four floats each, from a row each, do not wait for one
// another.
using Row = float[HEAD + 4];
using Scores = float[BLOCK_COLUMNS + 4];
using Four = Pack<float, 4>;

__device__ void store_in_tile(float *place, const Pack<scalar, 4> &pack) {
    *reinterpret_cast<Four *>(place) = as_floats(pack);
}

// Where in the tile of scores a thread's number (i, j) is, and which of a row's HEAD numbers its number w.
__device__ int row_of(int i) { return threadIdx.x / ROW_OF_THREADS * ROWS + i; }
__device__ int column_of(int j) { return threadIdx.x % ROW_OF_THREADS + j * ROW_OF_THREADS; }
__device__ int number_of(int w) {
    return (threadIdx.x % ROW_OF_THREADS + w / VECTOR * ROW_OF_THREADS) * VECTOR + w % VECTOR;
}

// s = a b^T: products of whole rows.
__device__ void multiply_rows(float (&s)[ROWS][COLUMNS], const Row *a, const Row *b) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) s[i][j] = 0.0f;
#pragma unroll 4
    for (int d = 0; d < HEAD; d += 4) {
        Four x[ROWS], y[COLUMNS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) x[i] = *reinterpret_cast<const Four *>(&a[row_of(i)][d]);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) y[j] = *reinterpret_cast<const Four *>(&b[column_of(j)][d]);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int u = 0; u < 4; u++) s[i][j] += x[i].x[u] * y[j].x[u];
    }
}

// sum += weights rows: every row of `sum` is a weighted sum of the BLOCK_COLUMNS rows.
__device__ void add_weighted_rows(float (&sum)[ROWS][WIDTH], const float (&weights)[ROWS][COLUMNS],
                                  const Row *rows, Scores *shared) {
    __syncwarp();  // all have read what was there before
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) shared[row_of(i)][column_of(j)] = weights[i][j];
    __syncwarp();
#pragma unroll 2
    for (int column = 0; column < BLOCK_COLUMNS; column += 4) {
        Four weight[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            weight[i] = *reinterpret_cast<const Four *>(&shared[row_of(i)][column]);
#pragma unroll
        for (int u = 0; u < 4; u++) {
#pragma unroll
            for (int w = 0; w < WIDTH; w += VECTOR) {
                const auto numbers =
                    *reinterpret_cast<const Pack<float, VECTOR> *>(&rows[column + u][number_of(w)]);
#pragma unroll
                for (int i = 0; i < ROWS; i++)
#pragma unroll
                    for (int v = 0; v < VECTOR; v++) sum[i][w + v] += weight[i].x[u] * numbers.x[v];
            }
        }
    }
}
