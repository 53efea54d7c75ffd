// The matrix product of the engine: C[b] = alpha A[b] B[b] (+ bias) (+ C[b]), for batches of matrices with
// any strides.
//
// A transposed factor is one whose strides are exchanged, a factor that all matrices of a batch share is one
// whose batch stride is zero: neither needs a kernel of its own. A batch has two dimensions, the examples and
// the heads of attention; matrix b is number b / inner of the outer and b % inner of the inner one.
#include "product.cuh"

#ifndef A_LIES_ALONG_K
#define A_LIES_ALONG_K 1  // whether a row of A, or a column of B, is without gaps in memory
#define B_LIES_ALONG_K 0
#endif

// What a sum becomes in C, whoever has summed it.
__device__ float finished(float sum, float alpha, const scalar *bias, int column, const scalar *place,
                          bool add) {
    float result = alpha * sum;
    if (bias != nullptr) result += float(bias[column]);
    if (add) result += float(*place);
    return result;
}

// One block a tile of one matrix: blockIdx.x counts tiles, then matrices. With `parts`, blockIdx.y tells
// which k_part numbers of K to sum, and the sums go to parts `(gridDim.y, matrices, M, N)`.
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) matmul(
    const scalar *a, const scalar *b, const scalar *bias, scalar *c, float *parts, int M, int N, int K,
    int k_part, int inner, int64_t a_outer, int64_t a_inner, int a_row, int a_column, int64_t b_outer,
    int64_t b_inner, int b_row, int b_column, int64_t c_outer, int64_t c_inner, int c_row, float alpha,
    bool add) {
    __shared__ Slabs slabs;
    const int tiles = tiles_of(M, N);
    const int matrix = blockIdx.x / tiles, outer = matrix / inner, in = matrix % inner;
    a += outer * a_outer + in * a_inner;
    b += outer * b_outer + in * b_inner;
    c += outer * c_outer + in * c_inner;
    const int k_begin = blockIdx.y * k_part;

    Tile<> tile(corner(blockIdx.x % tiles, M, N));
    const Lines<A_LIES_ALONG_K> rows_of_a = {a, M, a_row, a_column};
    const Lines<B_LIES_ALONG_K> columns_of_b = {b, N, b_column, b_row};
    tile.multiply(slabs, rows_of_a, columns_of_b, k_begin, min(K, k_begin + k_part));

    if (parts != nullptr) {
        const int64_t matrices = gridDim.x / tiles;
        parts += (blockIdx.y * matrices + matrix) * M * N;
        tile.finish(M, N, [&](const float *sums, int row, int column) {
            write_pack<4>(parts + int64_t(row) * N + column, N - column, sums);
        });
        return;
    }
    tile.finish(M, N, [&](const float *sums, int row, int column) {
        float results[4] = {};
        scalar *place = c + int64_t(row) * c_row + column;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (column + i < N) results[i] = finished(sums[i], alpha, bias, column + i, place + i, add);
        write_pack<4>(place, N - column, results);
    });
}

// C from the sums of its parts, always added in the same order: the result is the same in every run. Who adds
// with atomics adds in the order in which blocks happen to finish. One thread a number of C.
extern "C" __global__ void sum_products(
    const float *parts, const scalar *bias, scalar *c, int n_parts, int M, int N, int matrices, int inner,
    int64_t c_outer, int64_t c_inner, int c_row, float alpha, bool add) {
    const int64_t size = int64_t(matrices) * M * N, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size) return;
    float sum = 0.0f;
    for (int part = 0; part < n_parts; part++) sum += parts[part * size + i];
    const int matrix = i / (int64_t(M) * N), row = i / N % M, column = i % N;
    scalar *place = c + matrix / inner * c_outer + matrix % inner * c_inner + int64_t(row) * c_row + column;
    *place = scalar(finished(sum, alpha, bias, column, place, add));
}
