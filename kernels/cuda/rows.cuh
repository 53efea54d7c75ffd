// How threads share a row of an array (rows, C): what softmax, the norms and the losses have in common.
//
// A row is read from memory once, into the registers of the ROW_THREADS threads that work on it: a warp for a
// narrow row, a whole block for a wide one. Memory is fast for those who ask for neighbouring bytes together.
// So a thread moves VECTOR neighbours at once (16 bytes of them), and the threads beside it move those beside
// these:
//
//     column   0 ... VECTOR-1 | VECTOR ...  |  ...  | STEP ...       STEP = ROW_THREADS * VECTOR
//     thread         0        |      1      |  ...  |    0
//
// After PIECES such steps the threads hold CHUNK numbers. The host makes that the whole row, but for the
// widest ones: then a row is HELD. Where nothing of the chunk is left over it is EXACT, and nobody has to ask
// which columns exist. Both are known as the kernel is compiled, or the compiler would prepare for the other
// case. Where rows do not begin at multiples of 16 bytes the host takes VECTOR 1, else a VECTOR that divides C.
#pragma once
#include "neighbours.cuh"

#ifndef ROW_THREADS
#define ROW_THREADS 32  // or more, for wider rows: then they are the whole block
#define BLOCK_ROWS 4    // rows that a block works on at a time
#define PIECES 1
#define HELD 0
#define EXACT 0
#endif

constexpr int STEP = ROW_THREADS * VECTOR, CHUNK = PIECES * STEP, ROW_WARPS = ROW_THREADS / 32;
static_assert(ROW_THREADS == 32 || BLOCK_ROWS == 1, "a row has one warp or the whole block");
static_assert((ROW_WARPS & (ROW_WARPS - 1)) == 0, "warps are added up in pairs");

constexpr int BLOCK = ROW_THREADS * BLOCK_ROWS;

// How many blocks a processor shall have room for. A block waits while it reads, and again at a barrier;
// meanwhile others must have their reads on their way. So the compiler is told to keep a thread's registers
// few enough: for 1024 threads of blocks of one row, or 512. (Of 0 it makes nothing; a warp that holds a row
// needs its registers.)
constexpr int ROOM_FOR_1024 = BLOCK_ROWS > 1 ? 0 : 1024 / BLOCK;
constexpr int ROOM_FOR_512 = BLOCK_ROWS > 1 ? 0 : 512 / BLOCK;

// The row that these threads begin with, and how many rows all threads work on at a time.
__device__ inline int64_t first_row() { return int64_t(blockIdx.x) * BLOCK_ROWS + threadIdx.x / ROW_THREADS; }
__device__ inline int64_t row_step() { return int64_t(gridDim.x) * BLOCK_ROWS; }

// The first column of a piece of this thread, counted from the chunk's beginning.
__device__ inline int column_of(int piece) { return piece * STEP + threadIdx.x % ROW_THREADS * VECTOR; }

// Whether the row has a piece. VECTOR divides C: it has all of it, or nothing.
__device__ inline bool has(int start, int piece, int C) { return EXACT || start + column_of(piece) < C; }

// use(start) for the first column of every chunk of a row.
template <class Use>
__device__ void each_chunk(int C, Use use) {
    if (HELD) return use(0);
    for (int start = 0; start < C; start += CHUNK) use(start);
}

// use(p) for each piece of this thread, of the chunk that begins at `start`.
template <class Use>
__device__ void each_piece(int start, int C, Use use) {
#pragma unroll
    for (int p = 0; p < PIECES; p++)
        if (has(start, p, C)) use(p);
}

// use(p, i, column) for each number of this thread: number i of piece p of the chunk that begins at `start`.
template <class Use>
__device__ void each(int start, int C, Use use) {
    each_piece(start, C, [&](int p) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) use(p, i, start + column_of(p) + i);
    });
}

// This thread's numbers of a chunk, as they are in memory: of two bytes each, two fit in a register, and the
// more of them a processor's registers hold, the more of them are on their way at a time. They become floats
// where they are used: every sum is a sum of floats.
struct Part {
    Neighbours<scalar> pieces[PIECES];

    __device__ float operator()(int p, int i, int = 0) const { return float(pieces[p].x[i]); }

    __device__ void load(const scalar *row, int start, int C) {
        each_piece(start, C, [&](int p) { pieces[p] = read(row + start + column_of(p)); });
    }
};

// value(p, i, column) to every column of this thread.
template <class Value>
__device__ void store(scalar *row, int start, int C, Value value) {
    each_piece(start, C, [&](int p) {
        Neighbours<scalar> piece;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) piece.x[i] = scalar(value(p, i, start + column_of(p) + i));
        write(row + start + column_of(p), piece);
    });
}

// ---- One number of every thread of a row becomes one for all of them: their sum, or their maximum
//
// In each step lanes exchange in pairs, half as far apart as in the last; after five every lane has the same.
// Warps then exchange through shared memory. The order is always the same, and so are the bits of the result.

template <int LANES, int N, class Join>
__device__ void over_lanes(float (&values)[N], Join join) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2)
#pragma unroll
        for (int n = 0; n < N; n++) values[n] = join(values[n], __shfl_xor_sync(~0u, values[n], apart));
}

// N numbers at a time. `turn` counts calls. With one place in shared memory there would have to be a barrier
// before it is written again, too; two places take turns, and who writes to one has met all who read there
// before.
template <int N, class Join>
__device__ void over_row(float (&values)[N], int turn, Join join) {
    over_lanes<32>(values, join);
    if (ROW_WARPS == 1) return;
    __shared__ float of_warp[2][N][ROW_WARPS];
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int n = 0; n < N; n++) of_warp[turn % 2][n][threadIdx.x / 32] = values[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) values[n] = of_warp[turn % 2][n][threadIdx.x % ROW_WARPS];
    over_lanes<ROW_WARPS>(values, join);
}

template <int N>
__device__ void sums_over_row(float (&values)[N], int turn) {
    over_row(values, turn, [](float a, float b) { return a + b; });
}
__device__ inline float sum_over_row(float value, int turn) {
    float values[] = {value};
    sums_over_row(values, turn);
    return values[0];
}
__device__ inline float max_over_row(float value, int turn) {
    float values[] = {value};
    over_row(values, turn, [](float a, float b) { return fmaxf(a, b); });
    return values[0];
}
