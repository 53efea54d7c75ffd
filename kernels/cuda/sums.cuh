// Sums over the rows of an array (outer, R, C), always in the same order: the same bits in every run, which
// atomic additions would not give, for they add in the order in which blocks happen to finish.
#pragma once

constexpr int SUM_COLUMNS = 32, SUM_SLICES = 8;  // of a block: threads side by side, and threads a column

// y[column] = the sum of x[r][column] over r, for the block's columns: block `block` of those that share all
// C. Threads side by side read neighbouring columns. SUM_SLICES threads share a column: each adds every so
// manieth row, and the first adds up what the others have.
template <class From, class To>
__device__ void sum_rows(const From *x, To *y, int R, int64_t stride, int C, int block) {
    const int slice = threadIdx.x / SUM_COLUMNS, lane = threadIdx.x % SUM_COLUMNS;
    const int column = block * SUM_COLUMNS + lane;
    float sum = 0.0f;
    if (column < C) {
#pragma unroll 8  // so many loads on their way at a time
        for (int r = slice; r < R; r += SUM_SLICES) sum += float(x[r * stride + column]);
    }

    __shared__ float of_slice[SUM_SLICES][SUM_COLUMNS];
    of_slice[slice][lane] = sum;
    __syncthreads();
    if (slice > 0 || column >= C) return;
    for (int other = 1; other < SUM_SLICES; other++) sum += of_slice[other][lane];
    y[column] = To(sum);
}

// The sum of one number of each of a block's THREADS threads, for all of them: by lanes in pairs, then by
// warps.
template <int THREADS>
__device__ float sum_over_block(float value) {
    __shared__ float of_warp[THREADS / 32];
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
    __syncthreads();  // the last sum's numbers have been read
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0.0f;
    for (int warp = 0; warp < THREADS / 32; warp++) value += of_warp[warp];
    return value;
}
