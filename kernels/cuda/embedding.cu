// Looking up rows of a table (V, C), and adding gradients up into them.
//
// Many tokens have one id, and their gradients add up in one row. With atomic additions they would do so in
// the order in which threads happen to arrive, and floats added in another order give other bits. So it is
// not the tokens that look for their rows: each row looks for its tokens, and finds them in the order of
// their places.
#include "neighbours.cuh"  // VECTOR divides C

#ifndef PIECES
#define PIECES 1  // of a row, VECTOR numbers each, that a lane adds up
#endif

constexpr int WARPS = 8, BLOCK = 32 * WARPS;
constexpr int STEP = 32 * VECTOR, COLUMNS = PIECES * STEP;
constexpr int AHEAD = 4;  // loads of ids on their way at a time

// y[place] = weight[ids[place]], a warp a place. An id that is not in the table has no numbers.
extern "C" __global__ void __launch_bounds__(BLOCK)
    embedding_forward(const int64_t *ids, const scalar *weight, scalar *y, int places, int V, int C) {
    const int64_t place = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;
    if (place >= places) return;
    const int64_t id = ids[place];
    for (int column = threadIdx.x % 32 * VECTOR; column < C; column += STEP) {
        Neighbours<scalar> numbers;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) numbers.x[i] = scalar(nanf(""));
        if (id >= 0 && id < V) numbers = read(weight + id * C + column);
        write(y + place * C + column, numbers);
    }
}

// A block sums row blockIdx.x of dweight, columns of part blockIdx.y, each warp those of its own places, in
// registers.
struct Sums {
    float sum[PIECES][VECTOR] = {};

    __device__ static int column(int piece) {
        return blockIdx.y * COLUMNS + piece * STEP + threadIdx.x % 32 * VECTOR;
    }

    __device__ void add(const scalar *dy, int C) {
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            if (column(p) >= C) continue;
            const auto numbers = read(dy + column(p));
#pragma unroll
            for (int i = 0; i < VECTOR; i++) sum[p][i] += float(numbers.x[i]);
        }
    }

    // The warps' sums, always added in the order of the warps.
    __device__ void finish(scalar *dweight, int C) const {
        __shared__ float sums[WARPS][COLUMNS];
#pragma unroll
        for (int p = 0; p < PIECES; p++)
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                sums[threadIdx.x / 32][p * STEP + threadIdx.x % 32 * VECTOR + i] = sum[p][i];
        __syncthreads();
        const int first = blockIdx.y * COLUMNS;
        for (int i = threadIdx.x; i < COLUMNS && first + i < C; i += BLOCK) {
            float total = 0.0f;
            for (int w = 0; w < WARPS; w++) total += sums[w][i];
            dweight[int64_t(blockIdx.x) * C + first + i] = scalar(total);
        }
    }
};

// For few ids: each warp goes through a share of the places, 32 ids at a time, one a lane, and the ballot
// tells all lanes where the row's own are.
extern "C" __global__ void __launch_bounds__(BLOCK) embedding_backward(
    const int64_t *ids, const scalar *dy, scalar *dweight, int64_t dy_stride, int places, int C) {
    const int64_t row = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int share = (places + WARPS - 1) / WARPS, begin = warp * share, end = min(places, begin + share);
    Sums sums;
    for (int start = begin; start < end; start += AHEAD * 32) {
        unsigned found[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int place = start + a * 32 + lane;
            found[a] = __ballot_sync(~0u, place < end && ids[place] == row);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            for (; found[a] != 0; found[a] &= found[a] - 1) {  // without its lowest bit
                const int64_t place = start + a * 32 + __ffs(found[a]) - 1;
                sums.add(dy + place * dy_stride, C);
            }
    }
    sums.finish(dweight, C);
}

// How many of the sorted ids are below `id`: half of what is left is ruled out at a time.
__device__ int count_below(int64_t id, const int64_t *ids, int places) {
    int least = 0, most = places;
    while (least < most) {
        const int middle = (least + most) / 2;
        if (ids[middle] < id)
            least = middle + 1;
        else
            most = middle;
    }
    return least;
}

// For many: `ids` are sorted, `order` tells where each of them stood, and a row's own are side by side.
extern "C" __global__ void __launch_bounds__(BLOCK) embedding_backward_sorted(
    const int64_t *ids, const int64_t *order, const scalar *dy, scalar *dweight, int64_t dy_stride, int places,
    int C) {
    const int64_t row = blockIdx.x;
    const int first = count_below(row, ids, places), last = count_below(row + 1, ids, places);
    const int share = (last - first + WARPS - 1) / WARPS, begin = first + threadIdx.x / 32 * share;
    Sums sums;
#pragma unroll 4  // loads of so many places on their way at a time
    for (int i = begin; i < min(last, begin + share); i++) sums.add(dy + order[i] * dy_stride, C);
    sums.finish(dweight, C);
}
