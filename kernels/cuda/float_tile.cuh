// A tile of a product by multiply-adds of single threads, in float whatever type came from memory.
//
// A thread computes THREAD_M x THREAD_N numbers. For each k it takes THREAD_M + THREAD_N numbers from shared
// memory and makes THREAD_M * THREAD_N products of them. Where a product is too small to have many tiles, the
// threads of a block stand in SLICES groups: each multiplies every SLICES-th part of the slabs' ks for the
// whole tile, and in the end their sums are added.
#pragma once

#ifndef THREAD_M
#define THREAD_M 4
#define THREAD_N 4
#define SLICES 1
#endif

constexpr int THREADS_M = BLOCK_M / THREAD_M, THREADS_N = BLOCK_N / THREAD_N;
constexpr int THREADS_OF_SLICE = THREADS_M * THREADS_N, THREADS = THREADS_OF_SLICE * SLICES;
constexpr int AT_ONCE = 512 / THREADS;  // blocks that a processor shall hold: then a thread has 128 registers
static_assert(THREAD_M % 4 == 0 && THREAD_N % 4 == 0, "numbers are taken four at a time");

// The slabs lie line beside line, whichever way they came: all numbers of one k are neighbours. What comes
// along k is stored a number at a time, by a warp that holds two packs each of 16 lines (32 bytes, the least
// that memory is read by): four columns more than there are lines put these 32 numbers into 32 different
// banks.
constexpr int TOGETHER = 2;
constexpr int SUMS = THREAD_M * (THREAD_N + 1);  // of a thread: its share of the tile, and of a's row sums
union Slabs {
    struct {
        float a[2][BLOCK_K][BLOCK_M + 4], b[2][BLOCK_K][BLOCK_N + 4];
    };
    float sums[(SLICES - 1) * SUMS * THREADS_OF_SLICE + 1];  // in the end, of all slices but the first
};

using Four = Pack<float, 4>;

// Registers to shared memory.
template <bool ALONG_K, int BLOCK, int PACKS>
__device__ void stash(float (&slab)[BLOCK_K][BLOCK + 4], const Pack<scalar, 4> (&packs)[PACKS]) {
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const PackPlace<ALONG_K, BLOCK, 4, TOGETHER> place(threadIdx.x + i * THREADS);
        const Four four = as_floats(packs[i]);
        if (ALONG_K) {
#pragma unroll
            for (int j = 0; j < 4; j++) slab[place.k + j][place.line] = four.x[j];
        } else {
            *reinterpret_cast<Four *>(&slab[place.k][place.line]) = four;
        }
    }
}

// Number i of a thread's share of a tile's rows (or columns): groups of four, ACROSS threads apart, so that
// threads side by side take pieces of shared memory side by side.
template <int ACROSS>
__device__ int share(int thread, int i) {
    return 4 * (thread + i / 4 * ACROSS) + i % 4;
}

template <int ACROSS, int COUNT>
__device__ void take_share(float (&numbers)[COUNT], const float *row, int thread) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const Four four = *reinterpret_cast<const Four *>(row + share<ACROSS>(thread, i));
#pragma unroll
        for (int j = 0; j < 4; j++) numbers[i + j] = four.x[j];
    }
}

// A thread's share of a tile. With SUM_ROWS also of a's sums along k: its numbers pass through here anyway.
template <bool SUM_ROWS = false>
struct Tile {
    int row, column;  // where the tile begins
    int slice = SLICES > 1 ? threadIdx.x / THREADS_OF_SLICE : 0;
    int thread = threadIdx.x - slice * THREADS_OF_SLICE;
    int m = thread / THREADS_N, n = thread % THREADS_N;
    float c[THREAD_M][THREAD_N] = {}, row_sums[THREAD_M] = {};

    __device__ explicit Tile(Corner corner) : row(corner.row * BLOCK_M), column(corner.column * BLOCK_N) {}

    // Add the products of k_begin .. k_end. Once for each Tile.
    template <bool A_ALONG_K, bool B_ALONG_K>
    __device__ void multiply(Slabs &slabs, const Lines<A_ALONG_K> &a, const Lines<B_ALONG_K> &b, int k_begin,
                             int k_end) {
        Pack<scalar, 4> next_a[BLOCK_M * BLOCK_K / 4 / THREADS], next_b[BLOCK_N * BLOCK_K / 4 / THREADS];
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
            add_products(slabs.a[now], slabs.b[now]);
            now ^= 1;
        }
        if (SLICES > 1) add_slices(slabs);
    }

    __device__ void add_products(const float (&slab_a)[BLOCK_K][BLOCK_M + 4],
                                 const float (&slab_b)[BLOCK_K][BLOCK_N + 4]) {
#pragma unroll
        for (int k = 0; k < BLOCK_K / SLICES; k++) {
            float a[THREAD_M], b[THREAD_N];
            take_share<THREADS_M>(a, slab_a[k * SLICES + slice], m);
            take_share<THREADS_N>(b, slab_b[k * SLICES + slice], n);
#pragma unroll
            for (int i = 0; i < THREAD_M; i++) {
                if (SUM_ROWS) row_sums[i] += a[i];
#pragma unroll
                for (int j = 0; j < THREAD_N; j++) c[i][j] += a[i] * b[j];
            }
        }
    }

    // The first slice gets the sums of all, always added in the same order.
    __device__ void add_slices(Slabs &slabs) {
        float *sums = slabs.sums + thread;
        __syncthreads();  // the slabs have been multiplied
        if (slice > 0) {
#pragma unroll
            for (int i = 0; i < SUMS; i++) sums[((slice - 1) * SUMS + i) * THREADS_OF_SLICE] = sum(i);
        }
        __syncthreads();
        for (int other = 0; slice == 0 && other < SLICES - 1; other++) {
#pragma unroll
            for (int i = 0; i < SUMS; i++) sum(i) += sums[(other * SUMS + i) * THREADS_OF_SLICE];
        }
    }

    __device__ float &sum(int i) {
        return i < THREAD_M * THREAD_N ? c[i / THREAD_N][i % THREAD_N] : row_sums[i - THREAD_M * THREAD_N];
    }

    // use(sums, row, column): what becomes of four sums, C's numbers at that row from that column on.
    template <class Use>
    __device__ void finish(int M, int N, Use use) {
        if (slice > 0) return;
#pragma unroll
        for (int i = 0; i < THREAD_M; i++) {
            const int at_row = row + share<THREADS_M>(m, i);
#pragma unroll
            for (int j = 0; j < THREAD_N; j += 4) {
                const int at_column = column + share<THREADS_N>(n, j);
                if (at_row < M && at_column < N) use(c[i] + j, at_row, at_column);
            }
        }
    }

    // use(sum, row), once for each of C's rows: all the tiles of a row of tiles have summed the same numbers,
    // and so have all the threads of a row of threads.
    template <class Use>
    __device__ void finish_row_sums(int M, Use use) {
        if (slice > 0 || column > 0 || n > 0) return;
#pragma unroll
        for (int i = 0; i < THREAD_M; i++) {
            const int at_row = row + share<THREADS_M>(m, i);
            if (at_row < M) use(row_sums[i], at_row);
        }
    }
};
