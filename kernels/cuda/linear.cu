// A linear layer y = x W^T + bias and its gradients, each one product, finished where it is computed:
//
//     y = x W^T + bias        dx = dy W        dW = dy^T x        dbias = the row sums of dy^T
//
// x is (rows, C_in), W is (C_out, C_in). What the product is of decides which strides are passed as whose;
// what becomes of a sum before it is stored (a bias, a GELU, a GELU's slope) costs no trip to memory.
#include "gelu.cuh"
#include "product.cuh"

__device__ void add_bias(float *four, const scalar *bias, int column, int C_out) {
    if (bias == nullptr) return;
    const Pack<scalar> b = read_four(bias + column, C_out - column);
#pragma unroll
    for (int i = 0; i < 4; i++) four[i] += float(b.x[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) linear_forward(
    const scalar *x, const scalar *weight, const scalar *bias, scalar *y, int x_row, int x_column, int w_row,
    int w_column, int rows, int C_out, int C_in) {
    Tile<> tile(corner(blockIdx.x, rows, C_out));
    tile.multiply({x, rows, x_row, x_column}, {weight, C_out, w_row, w_column}, 0, C_in);
    tile.finish(rows, C_out, [&](float *sums, int row, int column) {
        add_bias(sums, bias, column, C_out);
        write_four(y + int64_t(row) * C_out + column, C_out - column, sums);
    });
}

// pre = x W^T + bias, which the backward pass needs, and h = gelu(pre), both stored from the registers.
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) linear_forward_gelu(
    const scalar *x, const scalar *weight, const scalar *bias, scalar *pre, scalar *h, int x_row, int x_column,
    int w_row, int w_column, int rows, int C_out, int C_in) {
    Tile<> tile(corner(blockIdx.x, rows, C_out));
    tile.multiply({x, rows, x_row, x_column}, {weight, C_out, w_row, w_column}, 0, C_in);
    tile.finish(rows, C_out, [&](float *sums, int row, int column) {
        const int64_t place = int64_t(row) * C_out + column;
        add_bias(sums, bias, column, C_out);
        write_four(pre + place, C_out - column, sums);
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] = gelu(sums[i]);
        write_four(h + place, C_out - column, sums);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) linear_dx(
    const scalar *dy, const scalar *weight, scalar *dx, int dy_row, int dy_column, int w_row, int w_column, int rows,
    int C_out, int C_in) {
    Tile<> tile(corner(blockIdx.x, rows, C_in));
    tile.multiply({dy, rows, dy_row, dy_column}, {weight, C_in, w_column, w_row}, 0, C_out);
    tile.finish(rows, C_in, [&](float *sums, int row, int column) {
        write_four(dx + int64_t(row) * C_in + column, C_in - column, sums);
    });
}

// dpre = (dy W) gelu'(pre): the gradient of h never stands in memory.
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) linear_dx_gelu(
    const scalar *dy, const scalar *weight, const scalar *pre, scalar *dpre, int dy_row, int dy_column, int w_row,
    int w_column, int rows, int C_out, int C_in) {
    Tile<> tile(corner(blockIdx.x, rows, C_in));
    tile.multiply({dy, rows, dy_row, dy_column}, {weight, C_in, w_column, w_row}, 0, C_out);
    tile.finish(rows, C_in, [&](float *sums, int row, int column) {
        const int64_t place = int64_t(row) * C_in + column;
        const Pack<scalar> p = read_four(pre + place, C_in - column);
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] *= gelu_slope(float(p.x[i]));
        write_four(dpre + place, C_in - column, sums);
    });
}

template <class T>
__device__ void store_gradients(Tile<true> &tile, T *dweight, T *dbias, int C_out, int C_in) {
    tile.finish(C_out, C_in, [&](const float *sums, int row, int column) {
        write_four(dweight + int64_t(row) * C_in + column, C_in - column, sums);
    });
    // Every tile in a row of tiles has summed the same rows of dy^T, and every thread in a row of threads.
    if (dbias == nullptr || tile.column > 0 || tile.n > 0) return;
#pragma unroll
    for (int i = 0; i < THREAD_M; i++) {
        const int row = tile.row + share<THREADS_M>(tile.m, i);
        if (row < C_out) dbias[row] = T(tile.row_sums[i]);
    }
}

// dW = dy^T x sums over all rows, of which there are many, into a matrix that may be small. So that there is
// work for the whole GPU, blockIdx.y tells which k_part rows a block sums; with several, the sums go to parts
// (gridDim.y, C_out C_in + C_out), the bias's after the weight's, and `sum_dweight` adds those.
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) linear_dweight(
    const scalar *dy, const scalar *x, scalar *dweight, scalar *dbias, float *parts, int dy_row, int dy_column,
    int x_row, int x_column, int k_part, int rows, int C_out, int C_in) {
    const int k_begin = blockIdx.y * k_part;
    Tile<true> tile(corner(blockIdx.x, C_out, C_in));
    tile.multiply({dy, C_out, dy_column, dy_row}, {x, C_in, x_column, x_row}, k_begin, min(rows, k_begin + k_part));

    if (parts == nullptr) {
        store_gradients(tile, dweight, dbias, C_out, C_in);
    } else {
        const int64_t n_weights = int64_t(C_out) * C_in;
        float *part = parts + blockIdx.y * (n_weights + C_out);
        store_gradients(tile, part, dbias == nullptr ? nullptr : part + n_weights, C_out, C_in);
    }
}

// The parts added in their order, one thread a number: the same bits in every run.
extern "C" __global__ void sum_dweight(
    const float *parts, scalar *dweight, scalar *dbias, int n_parts, int64_t n_weights, int C_out) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, stride = n_weights + C_out;
    if (i >= (dbias == nullptr ? n_weights : stride)) return;
    float sum = 0.0f;
    for (int part = 0; part < n_parts; part++) sum += parts[part * stride + i];
    if (i < n_weights)
        dweight[i] = scalar(sum);
    else
        dbias[i - n_weights] = scalar(sum);
}
