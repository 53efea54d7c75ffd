// A linear layer y = x W^T + bias and its gradients, each one product, finished where it is computed:
//
//     y = x W^T + bias        dx = dy W        dW = dy^T x        dbias = the row sums of dy^T
//
// x is (rows, C_in), W is (C_out, C_in), each row without gaps. Which strides are passed as whose decides what
// the product is of; and what becomes of a sum before it is stored (a bias, a GELU, the slope of a GELU) costs no trip to
// memory.
#include "gelu.cuh"
#include "product.cuh"

// y = x W^T + bias. With h, y is what a GELU takes: it is stored, for the backward pass, and h = gelu(y) as
// well.
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) linear_forward(
    const scalar *x, const scalar *weight, const scalar *bias, scalar *y, scalar *h, int x_row, int w_row,
    int rows, int C_out, int C_in) {
    __shared__ Slabs slabs;
    Tile<> tile(corner(blockIdx.x, rows, C_out));
    tile.multiply(slabs, Lines<true>{x, rows, x_row, 1}, Lines<true>{weight, C_out, w_row, 1}, 0, C_in);
    tile.finish(rows, C_out, [&](float *sums, int row, int column) {
        const int64_t place = int64_t(row) * C_out + column;
        if (bias != nullptr) {
            const auto b = read_pack<4>(bias + column, C_out - column);
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i] += float(b.x[i]);
        }
        write_pack<4>(y + place, C_out - column, sums);
        if (h != nullptr) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i] = gelu(sums[i]);
            write_pack<4>(h + place, C_out - column, sums);
        }
    });
}

template <class T>
__device__ void store_dweight(Tile<true> &tile, T *dweight, T *dbias, int C_out, int C_in) {
    tile.finish(C_out, C_in, [&](float *sums, int row, int column) {
        write_pack<4>(dweight + int64_t(row) * C_in + column, C_in - column, sums);
    });
    if (dbias != nullptr) tile.finish_row_sums(C_out, [&](float sum, int row) { dbias[row] = T(sum); });
}

// All gradients in one launch: the first blocks compute tiles of dW, the others tiles of dx.
//
// dW = dy^T x sums over all rows, of which there are many, into a matrix that may be small. So that there is
// work for the whole GPU, n_parts blocks share a tile of dW, each with k_part rows to sum; if there are
// several, their sums go to parts (n_parts, C_out C_in + C_out), the bias's after the weight's, and
// `sum_dweight` adds those.
//
// With `pre`, x was gelu(pre), and dx is not x's gradient but that of pre: dx = (dy W) gelu'(pre).
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) linear_backward(
    const scalar *dy, const scalar *x, const scalar *weight, const scalar *pre, scalar *dx, scalar *dweight,
    scalar *dbias, float *parts, int dy_row, int x_row, int w_row, int n_parts, int k_part, int rows,
    int C_out, int C_in) {
    __shared__ Slabs slabs;
    const int dweight_tiles = tiles_of(C_out, C_in), block = blockIdx.x;
    if (block < dweight_tiles * n_parts) {
        const int part = block / dweight_tiles, begin = part * k_part, end = min(rows, begin + k_part);
        Tile<true> tile(corner(block % dweight_tiles, C_out, C_in));
        const Lines<false> columns_of_dy = {dy, C_out, 1, dy_row}, columns_of_x = {x, C_in, 1, x_row};
        tile.multiply(slabs, columns_of_dy, columns_of_x, begin, end);
        if (parts == nullptr) {
            store_dweight(tile, dweight, dbias, C_out, C_in);
        } else {
            const int64_t n_weights = int64_t(C_out) * C_in;
            parts += part * (n_weights + C_out);
            store_dweight(tile, parts, dbias == nullptr ? nullptr : parts + n_weights, C_out, C_in);
        }
    } else {
        Tile<> tile(corner(block - dweight_tiles * n_parts, rows, C_in));
        const Lines<true> rows_of_dy = {dy, rows, dy_row, 1};
        const Lines<false> columns_of_weight = {weight, C_in, 1, w_row};
        tile.multiply(slabs, rows_of_dy, columns_of_weight, 0, C_out);
        tile.finish(rows, C_in, [&](float *sums, int row, int column) {
            const int64_t place = int64_t(row) * C_in + column;
            if (pre != nullptr) {
                const auto p = read_pack<4>(pre + place, C_in - column);
#pragma unroll
                for (int i = 0; i < 4; i++) sums[i] *= gelu_slope(float(p.x[i]));
            }
            write_pack<4>(dx + place, C_in - column, sums);
        });
    }
}

// The parts added in their order, one thread a number: the same bits in every run. Sums that blocks add to
// with atomics would depend on which of them comes first.
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
