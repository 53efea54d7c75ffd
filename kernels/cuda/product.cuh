// A block's share of a matrix product C = A B: one tile of C, in the registers of the block's threads.
//
//     c(m, n) = sum over k of a(m, k) b(k, n)
//
// A thread that computed one number of C would read two numbers for every multiplication. Here a number
// is read from memory once for a whole tile, and used again at two levels:
//
// - A block computes BLOCK_M x BLOCK_N numbers of C. It walks along K in steps of BLOCK_K, and copies a slab
//   of A and a slab of B to shared memory: each number there serves BLOCK_N or BLOCK_M products.
// - A thread computes THREAD_M x THREAD_N of them, in registers. For each k it takes THREAD_M + THREAD_N
//   numbers from shared memory, and makes THREAD_M * THREAD_N products of them.
//
// Two slabs take turns: while one is multiplied, the next one is on its way from memory.
#pragma once

#include "four.cuh"

#ifndef BLOCK_M
#define BLOCK_M 64
#define BLOCK_N 64
#define BLOCK_K 16
#define THREAD_M 4
#define THREAD_N 4
#endif

constexpr int THREADS_M = BLOCK_M / THREAD_M, THREADS_N = BLOCK_N / THREAD_N;
constexpr int THREADS = THREADS_M * THREADS_N;
constexpr int AT_ONCE = 512 / THREADS;  // blocks that a processor shall hold: then a thread has 128 registers
static_assert(THREAD_M % 4 == 0 && THREAD_N % 4 == 0, "numbers are read four at a time");

// One factor of a product, seen the same way for both: A as its M rows, B as its N columns, each a line of K
// numbers. Its two strides say where they lie: a transposed matrix is the same memory with its strides exchanged.
struct Lines {
    const scalar *data;
    int count;     // M or N
    int stride;    // from a line to the next
    int k_stride;  // from a number of a line to the next
};

// Where a group of four numbers of a slab belongs: four neighbours in memory, if there are any.
struct Group {
    int line, k;
};

template <int BLOCK>
__device__ Group group_of(int i, bool along_k) {
    // Neighbouring threads take neighbouring groups, so that a warp reads whole stretches of memory.
    return along_k ? Group{i / (BLOCK_K / 4), i % (BLOCK_K / 4) * 4} : Group{i % (BLOCK / 4) * 4, i / (BLOCK / 4)};
}

// Memory to registers: this thread's groups of the slab of BLOCK lines that begins at (line, k).
template <int BLOCK, int GROUPS>
__device__ void fetch(Pack<scalar> (&groups)[GROUPS], const Lines &lines, int line, int k, int k_end) {
    const bool along_k = lines.k_stride == 1;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        const Group g = group_of<BLOCK>(threadIdx.x + i * THREADS, along_k);
        const int lines_left = lines.count - line - g.line, ks_left = k_end - k - g.k;
        const scalar *place =
            lines.data + int64_t(line + g.line) * lines.stride + int64_t(k + g.k) * lines.k_stride;
        if (along_k)
            groups[i] = read_four(place, lines_left > 0 ? ks_left : 0);
        else
            groups[i] = read_four(place, ks_left > 0 ? lines_left : 0, lines.stride);
    }
}

// Registers to shared memory, as float: the slab lies there line beside line, whichever way it came.
// Four columns more than there are lines put the numbers of one line into different banks.
template <int BLOCK, int GROUPS>
__device__ void stash(float (&slab)[BLOCK_K][BLOCK + 4], const Pack<scalar> (&groups)[GROUPS],
                      const Lines &lines) {
    const bool along_k = lines.k_stride == 1;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        const Group g = group_of<BLOCK>(threadIdx.x + i * THREADS, along_k);
        if (along_k) {
#pragma unroll
            for (int j = 0; j < 4; j++) slab[g.k + j][g.line] = float(groups[i].x[j]);
        } else {
            *reinterpret_cast<Pack<float> *>(&slab[g.k][g.line]) = as_floats(groups[i]);
        }
    }
}

// Number i of a thread's share of a tile's rows (or columns): groups of four, THREADS apart, so that threads
// side by side read pieces of shared memory side by side.
template <int THREADS>
__device__ int share(int thread, int i) {
    return 4 * (thread + i / 4 * THREADS) + i % 4;
}

template <int THREADS, int COUNT>
__device__ void take_share(float (&numbers)[COUNT], const float *row, int thread) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const Pack<float> four = *reinterpret_cast<const Pack<float> *>(row + share<THREADS>(thread, i));
#pragma unroll
        for (int j = 0; j < 4; j++) numbers[i + j] = four.x[j];
    }
}

// Which tile of C a block computes. Blocks that run at the same time get neighbours in both directions, eight
// rows of tiles high: they read the same lines of A and of B, and find them in the L2 cache.
struct Corner {
    int row, column;  // counted in tiles
};

__device__ Corner corner(int tile, int M, int N) {
    const int rows = (M + BLOCK_M - 1) / BLOCK_M, columns = (N + BLOCK_N - 1) / BLOCK_N;
    const int first = tile / (8 * columns) * 8, height = min(8, rows - first), rest = tile - first * columns;
    return {first + rest % height, rest / height};
}

// The tile of a product that begins at (row, column), summed over k from k_begin to k_end: a thread's share
// of it. With SUM_ROWS also a's sums along k, of the share's rows: the numbers pass through here anyway.
template <bool SUM_ROWS = false>
struct Tile {
    int row, column;
    int m, n;  // which thread of the tile this is
    float c[THREAD_M][THREAD_N] = {};
    float row_sums[THREAD_M] = {};

    __device__ explicit Tile(Corner corner)
        : row(corner.row * BLOCK_M),
          column(corner.column * BLOCK_N),
          m(threadIdx.x / THREADS_N),
          n(threadIdx.x % THREADS_N) {}

    __device__ void multiply(const Lines &a, const Lines &b, int k_begin, int k_end) {
        __shared__ float slabs_a[2][BLOCK_K][BLOCK_M + 4], slabs_b[2][BLOCK_K][BLOCK_N + 4];
        Pack<scalar> next_a[BLOCK_M * BLOCK_K / 4 / THREADS], next_b[BLOCK_N * BLOCK_K / 4 / THREADS];
        fetch<BLOCK_M>(next_a, a, row, k_begin, k_end);
        fetch<BLOCK_N>(next_b, b, column, k_begin, k_end);
        int now = 0;
        for (int k = k_begin; k < k_end; k += BLOCK_K) {
            stash<BLOCK_M>(slabs_a[now], next_a, a);
            stash<BLOCK_N>(slabs_b[now], next_b, b);
            // One barrier a step is enough: who stashes the next slab overwrites the one before this, and
            // has waited here for all those who multiplied it.
            __syncthreads();
            if (k + BLOCK_K < k_end) {  // asked for now, needed when this slab is multiplied
                fetch<BLOCK_M>(next_a, a, row, k + BLOCK_K, k_end);
                fetch<BLOCK_N>(next_b, b, column, k + BLOCK_K, k_end);
            }
            add_products(slabs_a[now], slabs_b[now]);
            now ^= 1;
        }
    }

    __device__ void add_products(const float (&slab_a)[BLOCK_K][BLOCK_M + 4],
                                 const float (&slab_b)[BLOCK_K][BLOCK_N + 4]) {
#pragma unroll
        for (int k = 0; k < BLOCK_K; k++) {
            float a[THREAD_M], b[THREAD_N];
            take_share<THREADS_M>(a, slab_a[k], m);
            take_share<THREADS_N>(b, slab_b[k], n);
#pragma unroll
            for (int i = 0; i < THREAD_M; i++) {
                if (SUM_ROWS) row_sums[i] += a[i];
#pragma unroll
                for (int j = 0; j < THREAD_N; j++) c[i][j] += a[i] * b[j];
            }
        }
    }

    // finish(i, j, row, column): what becomes of c[i][j] .. c[i][j + 3], which are C's numbers at that row
    // from that column on.
    template <class Finish>
    __device__ void finish(int M, int N, Finish finish_four) {
#pragma unroll
        for (int i = 0; i < THREAD_M; i++) {
            const int at_row = row + share<THREADS_M>(m, i);
#pragma unroll
            for (int j = 0; j < THREAD_N; j += 4) {
                const int at_column = column + share<THREADS_N>(n, j);
                if (at_row < M && at_column < N) finish_four(c[i] + j, at_row, at_column);
            }
        }
    }
};
