// A block's share of a matrix product C = A B: one tile of C, in the registers of the block's threads.
//
//     c(m, n) = sum over k of a(m, k) b(k, n)
//
// A thread that computed one number of C would read two numbers for every multiplication. Here a number is
// read from memory once for a whole tile, and used again at two levels:
//
// - A block computes BLOCK_M x BLOCK_N numbers of C. It walks along K in steps of BLOCK_K, and copies a slab
//   of A and a slab of B to shared memory: each number there serves BLOCK_N or BLOCK_M products.
// - A thread computes its share of the tile in registers, from a few numbers of the slabs for each k.
//
// Two slabs take turns: while one is multiplied, the next one is on its way from memory.
//
// This file has what comes before the multiplying: which tile, and how its slabs are fetched. How a tile is
// multiplied is in float_tile.cuh, for any GPU, and in tensor_tile.cuh, for 16 bits and tensor cores.
#pragma once

#include "pack.cuh"

#ifndef BLOCK_M
#define BLOCK_M 64
#define BLOCK_N 64
#define BLOCK_K 16
#define WHOLE 0
#endif

// Which tile of C a block computes. Blocks that run at the same time get neighbours in both directions, eight
// rows of tiles high: they read the same lines of A and of B, and find them in the L2 cache.
struct Corner {
    int row, column;  // counted in tiles
};

__device__ int tiles_of(int M, int N) {
    return ((M + BLOCK_M - 1) / BLOCK_M) * ((N + BLOCK_N - 1) / BLOCK_N);
}

__device__ Corner corner(int tile, int M, int N) {
    const int rows = (M + BLOCK_M - 1) / BLOCK_M, columns = (N + BLOCK_N - 1) / BLOCK_N;
    const int first = tile / (8 * columns) * 8, height = min(8, rows - first), rest = tile - first * columns;
    return {first + rest % height, rest / height};
}

// One factor of a product, seen the same way for both: A as its M rows, B as its N columns, each a line of K
// numbers. Two strides say where they lie: a transposed matrix is the same memory with its strides exchanged.
// ALONG_K: the numbers of a line are neighbours in memory, k_stride is 1.
template <bool ALONG_K>
struct Lines {
    const scalar *data;
    int count;     // M or N
    int stride;    // from a line to the next
    int k_stride;  // from a number of a line to the next

    __device__ const scalar *at(int line, int k) const {
        return data + int64_t(line) * stride + (ALONG_K ? int64_t(k) : int64_t(k) * k_stride);
    }
};

// A slab is fetched in packs of GROUP numbers, neighbours in memory if there are any: along k, or across
// lines. Neighbouring threads take neighbouring packs, so that a warp reads whole stretches of memory; along
// k, TOGETHER packs of a line and then those of the next one.
template <bool ALONG_K, int BLOCK, int GROUP, int TOGETHER>
struct PackPlace {
    int line, k;  // in the slab

    __device__ explicit PackPlace(int i)
        : line(ALONG_K ? i / TOGETHER % BLOCK : i % (BLOCK / GROUP) * GROUP),
          k(ALONG_K ? (i / (TOGETHER * BLOCK) * TOGETHER + i % TOGETHER) * GROUP : i / (BLOCK / GROUP)) {}
};

// Memory to registers: this thread's packs of the slab of BLOCK lines that begins at (line, k). WHOLE: the
// host has seen that no pack is cut by an end of the matrix, and that each lies so that one instruction moves
// it; then nothing has to be asked here but whether the matrix has it.
template <int BLOCK, int THREADS, int TOGETHER, bool ALONG_K, int GROUP, int PACKS>
__device__ void fetch(Pack<scalar, GROUP> (&packs)[PACKS], const Lines<ALONG_K> &lines, int line, int k,
                      int k_end) {
    static_assert(PACKS * GROUP * THREADS == BLOCK * BLOCK_K, "every thread fetches as much of a slab");
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const PackPlace<ALONG_K, BLOCK, GROUP, TOGETHER> in_slab(threadIdx.x + i * THREADS);
        const int its_line = line + in_slab.line, its_k = k + in_slab.k;
        const int lines_left = lines.count - its_line, ks_left = k_end - its_k;
        const bool exists = lines_left > 0 && ks_left > 0;
        const scalar *place = lines.at(its_line, its_k);
        if (WHOLE)
            packs[i] = exists ? *reinterpret_cast<const Pack<scalar, GROUP> *>(place) : Pack<scalar, GROUP>{};
        else if (ALONG_K)
            packs[i] = read_pack<GROUP>(place, exists ? ks_left : 0);
        else
            packs[i] = read_pack<GROUP>(place, exists ? lines_left : 0, lines.stride);
    }
}

#ifdef TENSOR_CORES
#include "tensor_tile.cuh"
#else
#include "float_tile.cuh"
#endif
