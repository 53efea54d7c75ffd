// LayerNorm and RMSNorm of rows (rows, C), alone or of a sum: h = x + residual. With r = 1 / sqrt(variance + eps)
//
//     LayerNorm   x^ = (h - mean) r     y = w x^ + b       variance = mean of (h - mean)^2
//     RMSNorm     x^ = h r              y = w x^           variance = mean of h^2
//
// There is almost nothing to compute: the time is that of moving the bytes, so each of them moves once.
#include "rows.cuh"
#include "sums.cuh"

constexpr int BLOCK = ROW_THREADS * BLOCK_ROWS;

// CENTERED: LayerNorm, which subtracts the mean and adds a bias. `stats` is 1 / sqrt(..) of each row, then each mean.
template <bool CENTERED>
__device__ void norm_forward(const scalar *x, const scalar *residual, const scalar *weight, const scalar *bias,
                             scalar *y, scalar *h, float *stats, int64_t x_stride, int64_t residual_stride, int rows,
                             int C, float eps) {
    const int64_t row = first_row();
    if (row >= rows) return;
    Part part, other;
    part.load(x + row * x_stride, 0, C);
    if (residual != nullptr) {
        other.load(residual + row * residual_stride, 0, C);
        // Rounded as it is stored: the backward pass will see these numbers, and no others.
        each(0, C, [&](int p, int i, int) { part(p, i) = float(scalar(part(p, i) + other(p, i))); });
        part.store(h + row * C, 0, C);
    }

    const float one_nth = 1.0f / C;
    float mean = 0.0f;
    if (CENTERED) {
        float sum = 0.0f;
        each(0, C, [&](int p, int i, int) { sum += part(p, i); });
        mean = sum_over_row(sum) * one_nth;
    }
    // The row is in registers, so a second look at it costs nothing, and squares of small numbers are added: with
    // mean(h^2) - mean^2 all digits of the variance are lost when the mean is large.
    float squares = 0.0f;
    each(0, C, [&](int p, int i, int) { squares += (part(p, i) - mean) * (part(p, i) - mean); });
    const float r = rsqrtf(sum_over_row(squares) * one_nth + eps);

    other.load(weight, 0, C);
    each(0, C, [&](int p, int i, int) { part(p, i) = other(p, i) * ((part(p, i) - mean) * r); });
    if (CENTERED) {
        other.load(bias, 0, C);
        each(0, C, [&](int p, int i, int) { part(p, i) += other(p, i); });
    }
    part.store(y + row * C, 0, C);
    if (threadIdx.x % ROW_THREADS == 0) {
        stats[row] = r;
        if (CENTERED) stats[rows + row] = mean;
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK) layernorm_forward(
    const scalar *x, const scalar *residual, const scalar *weight, const scalar *bias, scalar *y, scalar *h,
    float *stats, int64_t x_stride, int64_t residual_stride, int rows, int C, float eps) {
    norm_forward<true>(x, residual, weight, bias, y, h, stats, x_stride, residual_stride, rows, C, eps);
}

extern "C" __global__ void __launch_bounds__(BLOCK) rmsnorm_forward(
    const scalar *x, const scalar *residual, const scalar *weight, const scalar *no_bias, scalar *y, scalar *h,
    float *stats, int64_t x_stride, int64_t residual_stride, int rows, int C, float eps) {
    norm_forward<false>(x, residual, weight, no_bias, y, h, stats, x_stride, residual_stride, rows, C, eps);
}

// With g = w dy:   dx = r (g - mean(g) - x^ mean(g x^)) + dh,   dw = sum of dy x^ over all rows,   db = sum of dy
//
// RMSNorm has no mean(g). dh is what comes through h, where h was an output too. The sums over rows would be a second
// trip through memory. So the blocks are few, each takes many rows, and every thread adds up what belongs to its
// columns, in registers; `sum_parts` then adds the blocks' sums, parts (blocks, 2, C): of weights, then of biases.
template <bool CENTERED>
__device__ void norm_backward(const scalar *dy, const scalar *dh, const scalar *x, const scalar *weight,
                              const float *stats, scalar *dx, float *parts, int64_t dy_stride, int64_t dh_stride,
                              int64_t x_stride, int rows, int C) {
    Part w, d, x_hat, dw = {}, db = {};
    w.load(weight, 0, C);
    Fetched<scalar> next_dy, next_x;
    const float one_nth = 1.0f / C;
    int64_t row = first_row();
    if (row < rows) {
        next_dy.fetch(dy + row * dy_stride, 0, C);
        next_x.fetch(x + row * x_stride, 0, C);
    }
    for (; row < rows; row += row_step()) {
        const float r = stats[row], mean = CENTERED ? stats[rows + row] : 0.0f;
        d.take(next_dy, 0, C);
        x_hat.take(next_x, 0, C);
        // The next row is on its way while this one is worked on.
        const int64_t next = row + row_step();
        if (next < rows) {
            next_dy.fetch(dy + next * dy_stride, 0, C);
            next_x.fetch(x + next * x_stride, 0, C);
        }

        float sums[2] = {};  // of g, and of g x^
        each(0, C, [&](int p, int i, int) {
            x_hat(p, i) = (x_hat(p, i) - mean) * r;
            dw(p, i) += d(p, i) * x_hat(p, i);
            if (CENTERED) db(p, i) += d(p, i);
            d(p, i) *= w(p, i);  // g
            sums[0] += d(p, i);
            sums[1] += d(p, i) * x_hat(p, i);
        });
        sum_over_row(sums);
        const float mean_g = CENTERED ? sums[0] * one_nth : 0.0f, mean_gx = sums[1] * one_nth;
        each(0, C, [&](int p, int i, int) { d(p, i) = r * (d(p, i) - mean_g - x_hat(p, i) * mean_gx); });
        if (dh != nullptr) {
            x_hat.load(dh + row * dh_stride, 0, C);
            each(0, C, [&](int p, int i, int) { d(p, i) += x_hat(p, i); });
        }
        d.store(dx + row * C, 0, C);
    }

    parts += int64_t(blockIdx.x) * 2 * C;
    if (BLOCK_ROWS == 1) {
        each(0, C, [&](int p, int i, int column) {
            parts[column] = dw(p, i);
            if (CENTERED) parts[C + column] = db(p, i);
        });
        return;
    }
    // The block's warps have seen other rows each. They add their sums one after the other.
    __shared__ float of_block[2][BLOCK_ROWS > 1 ? CHUNK : 1];
    for (int warp = 0; warp < BLOCK_ROWS; warp++) {
        if (threadIdx.x / 32 == warp)
            each(0, C, [&](int p, int i, int column) {
                of_block[0][column] = dw(p, i) + (warp > 0 ? of_block[0][column] : 0.0f);
                if (CENTERED) of_block[1][column] = db(p, i) + (warp > 0 ? of_block[1][column] : 0.0f);
            });
        __syncthreads();
    }
    for (int column = threadIdx.x; column < C; column += BLOCK) {
        parts[column] = of_block[0][column];
        if (CENTERED) parts[C + column] = of_block[1][column];
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK) layernorm_backward(
    const scalar *dy, const scalar *dh, const scalar *x, const scalar *weight, const float *stats, scalar *dx,
    float *parts, int64_t dy_stride, int64_t dh_stride, int64_t x_stride, int rows, int C) {
    norm_backward<true>(dy, dh, x, weight, stats, dx, parts, dy_stride, dh_stride, x_stride, rows, C);
}

extern "C" __global__ void __launch_bounds__(BLOCK) rmsnorm_backward(
    const scalar *dy, const scalar *dh, const scalar *x, const scalar *weight, const float *stats, scalar *dx,
    float *parts, int64_t dy_stride, int64_t dh_stride, int64_t x_stride, int rows, int C) {
    norm_backward<false>(dy, dh, x, weight, stats, dx, parts, dy_stride, dh_stride, x_stride, rows, C);
}

// The gradients of weight (blockIdx.y 0) and bias (1) from the sums of every block.
extern "C" __global__ void __launch_bounds__(SUM_COLUMNS * SUM_SLICES)
    sum_parts(const float *parts, scalar *dweight, scalar *dbias, int n_parts, int C) {
    sum_rows(parts + blockIdx.y * C, blockIdx.y == 0 ? dweight : dbias, n_parts, int64_t(2) * C, C, blockIdx.x);
}
