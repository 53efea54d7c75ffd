// A tile of a product of 16-bit numbers by tensor cores: a warp multiplies 16 x 16 by 16 x 8 in one
// instruction, and sums in float.
//
// The warps of a block stand in a rectangle, each with WARP_M x WARP_N numbers of the tile. What a warp
// multiplies comes from shared memory in blocks of 8 x 8 by ldmatrix, and that can transpose a block on the
// way. So a slab stays as it came: line after line if its memory runs along k, k after k if it runs across
// lines.
#pragma once

#include "ladder/mma.cuh"

#ifndef WARP_M
#define WARP_M 32
#define WARP_N 32
#endif

constexpr int WARPS_N = BLOCK_N / WARP_N, THREADS = 32 * (BLOCK_M / WARP_M) * WARPS_N;
constexpr int TOGETHER = BLOCK_K / 8;  // packs of a line that neighbouring threads fetch: all of them
constexpr int AT_ONCE = 512 / THREADS;  // blocks that a processor shall hold: then a thread has 128 registers
static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0 && BLOCK_K % 16 == 0, "whole instructions");

// Eight numbers more in a row than it needs: then eight rows' pieces of 16 bytes, which ldmatrix reads at
// once, lie in different banks.
template <int BLOCK>
constexpr int SLAB = BLOCK * BLOCK_K + 8 * (BLOCK > BLOCK_K ? BLOCK : BLOCK_K);

struct alignas(16) Slabs {
    scalar a[2][SLAB<BLOCK_M>], b[2][SLAB<BLOCK_N>];
};

template <bool ALONG_K, int BLOCK>
__device__ int place_in_slab(int line, int k) {
    return ALONG_K ? line * (BLOCK_K + 8) + k : k * (BLOCK + 8) + line;
}

// Registers to shared memory.
template <bool ALONG_K, int BLOCK, int PACKS>
__device__ void stash(scalar *slab, const Pack<scalar, 8> (&packs)[PACKS]) {
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const PackPlace<ALONG_K, BLOCK, 8, TOGETHER> place(threadIdx.x + i * THREADS);
        scalar *to = slab + place_in_slab<ALONG_K, BLOCK>(place.line, place.k);
        *reinterpret_cast<Pack<scalar, 8> *>(to) = packs[i];
    }
}

// Shared memory to registers: 16 lines from `line` on, of 16 ks, in four blocks of 8 x 8. A's blocks come in
// the order lines first, B's ks first, as the instruction wants them.
template <bool ALONG_K, int BLOCK, bool LINES_FIRST>
__device__ void take_blocks(unsigned (&blocks)[4], const scalar *slab, int line, int k) {
    const int lane = threadIdx.x % 32, block = lane / 8, first = block % 2 * 8, second = block / 2 * 8;
    line += LINES_FIRST ? first : second;
    k += LINES_FIRST ? second : first;
    // Lane i tells where row i % 8 of block i / 8 is; in a slab that runs across lines, that is a row of one k.
    if (ALONG_K)
        ldmatrix(blocks, slab + place_in_slab<true, BLOCK>(line + lane % 8, k));
    else
        ldmatrix_transposed(blocks, slab + place_in_slab<false, BLOCK>(line, k + lane % 8));
}

// A thread's share of a tile. With SUM_ROWS also of a's sums along k: they are a's product with a column of
// ones.
template <bool SUM_ROWS = false>
struct Tile {
    int row, column;  // where the tile begins
    int warp = threadIdx.x / 32;
    int m = warp / WARPS_N * WARP_M, n = warp % WARPS_N * WARP_N;  // and in it, the warp's part
    float c[WARP_M / 16][WARP_N / 8][4] = {}, row_sums[WARP_M / 16][4] = {};

    __device__ explicit Tile(Corner corner) : row(corner.row * BLOCK_M), column(corner.column * BLOCK_N) {}

    // Add the products of k_begin .. k_end. Once for each Tile.
    template <bool A_ALONG_K, bool B_ALONG_K>
    __device__ void multiply(Slabs &slabs, const Lines<A_ALONG_K> &a, const Lines<B_ALONG_K> &b, int k_begin,
                             int k_end) {
        Pack<scalar, 8> next_a[BLOCK_M * BLOCK_K / 8 / THREADS], next_b[BLOCK_N * BLOCK_K / 8 / THREADS];
        fetch<BLOCK_M, THREADS, TOGETHER>(next_a, a, row, k_begin, k_end);
        fetch<BLOCK_N, THREADS, TOGETHER>(next_b, b, column, k_begin, k_end);
        int now = 0;
        for (int k = k_begin; k < k_end; k += BLOCK_K) {
            stash<A_ALONG_K, BLOCK_M>(slabs.a[now], next_a);
            stash<B_ALONG_K, BLOCK_N>(slabs.b[now], next_b);
            // One barrier a step is enough: who stashes the next slab overwrites the one before this, and
            // has waited here for all those who multiplied it.
            __syncthreads();
            if (k + BLOCK_K < k_end) {  // asked for now, needed when this slab is multiplied
                fetch<BLOCK_M, THREADS, TOGETHER>(next_a, a, row, k + BLOCK_K, k_end);
                fetch<BLOCK_N, THREADS, TOGETHER>(next_b, b, column, k + BLOCK_K, k_end);
            }
            add_products<A_ALONG_K, B_ALONG_K>(slabs.a[now], slabs.b[now]);
            now ^= 1;
        }
    }

    template <bool A_ALONG_K, bool B_ALONG_K>
    __device__ void add_products(const scalar *slab_a, const scalar *slab_b) {
        const Pack<scalar, 4> one = {scalar(1.0f), scalar(1.0f), scalar(1.0f), scalar(1.0f)};
        const unsigned *ones = reinterpret_cast<const unsigned *>(&one);
#pragma unroll
        for (int k = 0; k < BLOCK_K; k += 16) {
            unsigned a[WARP_M / 16][4], b[WARP_N / 16][4];
#pragma unroll
            for (int i = 0; i < WARP_M / 16; i++)
                take_blocks<A_ALONG_K, BLOCK_M, true>(a[i], slab_a, m + i * 16, k);
#pragma unroll
            for (int j = 0; j < WARP_N / 16; j++)
                take_blocks<B_ALONG_K, BLOCK_N, false>(b[j], slab_b, n + j * 16, k);
#pragma unroll
            for (int i = 0; i < WARP_M / 16; i++) {
                if (SUM_ROWS) mma(row_sums[i], a[i], ones, scalar());
#pragma unroll
                for (int j = 0; j < WARP_N / 8; j++)
                    mma(c[i][j], a[i], b[j / 2] + j % 2 * 2, scalar());
            }
        }
    }

    // use(sums, row, column): what becomes of four sums, C's numbers at that row from that column on.
    template <class Use>
    __device__ void finish(int M, int N, Use use) {
        // A lane has two neighbours each of two rows, 8 apart: it gives one pair to the lane beside it, and
        // has four neighbours of one row.
        const int lane = threadIdx.x % 32, odd = lane % 2;
#pragma unroll
        for (int i = 0; i < WARP_M / 16; i++) {
            const int at_row = row + m + i * 16 + lane / 4 + odd * 8;
#pragma unroll
            for (int j = 0; j < WARP_N / 8; j++) {
                float four[4];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float kept = odd ? c[i][j][2 + e] : c[i][j][e];
                    const float got = __shfl_xor_sync(0xffffffffu, odd ? c[i][j][e] : c[i][j][2 + e], 1);
                    four[e] = odd ? got : kept;
                    four[2 + e] = odd ? kept : got;
                }
                const int at_column = column + n + j * 8 + lane % 4 / 2 * 4;
                if (at_row < M && at_column < N) use(four, at_row, at_column);
            }
        }
    }

    // use(sum, row), once for each of C's rows: all the tiles of a row of tiles have summed the same numbers,
    // and so have all the warps of a row of warps, and all the columns of ones.
    template <class Use>
    __device__ void finish_row_sums(int M, Use use) {
        if (column > 0 || n > 0 || threadIdx.x % 4 > 0) return;
#pragma unroll
        for (int i = 0; i < WARP_M / 16; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int at_row = row + m + i * 16 + threadIdx.x % 32 / 4 + half * 8;
                if (at_row < M) use(row_sums[i][half * 2], at_row);
            }
    }
};
