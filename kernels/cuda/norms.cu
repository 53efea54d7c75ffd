// LayerNorm and RMSNorm of rows (rows, C), alone or of a sum h = x + residual. With r = 1 / sqrt(variance +
// eps)
//
//     LayerNorm   x^ = (h - mean) r     y = w x^ + b       variance = mean of (h - mean)^2
//     RMSNorm     x^ = h r              y = w x^           variance = mean of h^2
//
// There is almost nothing to compute: the time is that of moving the bytes, so each of them moves once.
#include <cuda_pipeline.h>

#include "rows.cuh"
#include "sums.cuh"

#ifndef STAGES
#define STAGES 2  // rows that have room in shared memory, or 0 where not even two have
#endif

// CENTERED: LayerNorm, which subtracts the mean and adds a bias. `stats` is 1 / sqrt(..) of each row, then
// each mean.
template <bool CENTERED>
__device__ void norm_forward(const scalar *x, const scalar *residual, const scalar *weight,
                             const scalar *bias, scalar *y, scalar *h, float *stats, int64_t x_stride,
                             int64_t residual_stride, int rows, int C, float eps) {
    const int64_t row = first_row();
    if (row >= rows) return;
    Part part;
    part.load(x + row * x_stride, 0, C);
    if (residual != nullptr) {
        Part other;
        other.load(residual + row * residual_stride, 0, C);
        // Rounded as it is stored: the backward pass will see these numbers, and no others.
        each(0, C, [&](int p, int i, int) { part.pieces[p].x[i] = scalar(part(p, i) + other(p, i)); });
        store(h + row * C, 0, C, part);
    }

    const float one_nth = 1.0f / C;
    float mean = 0.0f;
    if (CENTERED) {
        float sum = 0.0f;
        each(0, C, [&](int p, int i, int) { sum += part(p, i); });
        mean = sum_over_row(sum, 0) * one_nth;
    }
    // The row is in registers, so a second look at it costs nothing, and squares of small numbers are added:
    // with mean(h^2) - mean^2 all digits of the variance are lost when the mean is large.
    float squares = 0.0f;
    each(0, C, [&](int p, int i, int) { squares += (part(p, i) - mean) * (part(p, i) - mean); });
    const float r = rsqrtf(sum_over_row(squares, 1) * one_nth + eps);

    Part w, b;
    w.load(weight, 0, C);
    if (CENTERED) b.load(bias, 0, C);
    store(y + row * C, 0, C, [&](int p, int i, int) {
        const float scaled = w(p, i) * ((part(p, i) - mean) * r);
        return CENTERED ? scaled + b(p, i) : scaled;
    });
    if (threadIdx.x % ROW_THREADS == 0) {
        stats[row] = r;
        if (CENTERED) stats[rows + row] = mean;
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, ROOM_FOR_1024) layernorm_forward(
    const scalar *x, const scalar *residual, const scalar *weight, const scalar *bias, scalar *y, scalar *h,
    float *stats, int64_t x_stride, int64_t residual_stride, int rows, int C, float eps) {
    norm_forward<true>(x, residual, weight, bias, y, h, stats, x_stride, residual_stride, rows, C, eps);
}

extern "C" __global__ void __launch_bounds__(BLOCK, ROOM_FOR_1024) rmsnorm_forward(
    const scalar *x, const scalar *residual, const scalar *weight, const scalar *no_bias, scalar *y,
    scalar *h, float *stats, int64_t x_stride, int64_t residual_stride, int rows, int C, float eps) {
    norm_forward<false>(x, residual, weight, no_bias, y, h, stats, x_stride, residual_stride, rows, C, eps);
}

// An asynchronous copy takes 4, 8 or 16 bytes; two bytes go the ordinary way.
__device__ void copy_async(Neighbours<scalar> *to, const scalar *from) {
    if (sizeof(*to) >= 4)
        __pipeline_memcpy_async(to, from, sizeof(*to));
    else
        *to = read(from);
}

// With g = w dy:
//
//     dx = r (g - mean(g) - x^ mean(g x^)) + dh      dw = sum of dy x^ over all rows      db = sum of dy
//
// RMSNorm has no mean(g). dh is what comes through h, where h was an output too. The sums over rows would be
// a second trip through memory. So the blocks are few, each takes many rows, and every thread adds up what
// belongs to its columns, in registers; `sum_gradients` then adds the blocks' sums, parts (blocks, 2, C): of
// weights, then of biases.
//
// While a row is worked on, the next ones are on their way into shared memory, which costs no registers. A
// thread copies its own pieces and reads only these, so it waits for no other thread's copies.
//
// A thread of the widest rows has no registers left beside its sums. It is CROWDED, and reads a piece again
// where it needs it.
template <bool CENTERED>
__device__ void norm_backward(const scalar *dy, const scalar *dh, const scalar *x, const scalar *weight,
                              const float *stats, scalar *dx, float *parts, int64_t dy_stride,
                              int64_t dh_stride, int64_t x_stride, int rows, int C) {
    constexpr bool CROWDED = BLOCK_ROWS == 1 && PIECES * VECTOR > 16;
    constexpr int ROOM = STAGES > 0 ? STAGES : 1;  // not 0, by which nothing can be divided
    extern __shared__ Neighbours<scalar> ahead[];  // of each stage: pieces of dy, then of x
    float dw[PIECES][VECTOR] = {}, db[PIECES][VECTOR] = {};
    const float one_nth = 1.0f / C;
    const auto place = [&](int stage, int p) {
        return ahead + (stage * 2 * PIECES + p) * BLOCK + threadIdx.x;
    };
    const auto ask_for = [&](int64_t row, int stage) {
        each_piece(0, C, [&](int p) {
            if (row >= rows) return;
            copy_async(place(stage, p), dy + row * dy_stride + column_of(p));
            copy_async(place(stage, PIECES + p), x + row * x_stride + column_of(p));
        });
        __pipeline_commit();
    };
    for (int stage = 0; stage < STAGES - 1; stage++) ask_for(first_row() + stage * row_step(), stage);

    float next_r = 0.0f, next_mean = 0.0f;
    const auto look_up = [&](int64_t row) {
        if (row >= rows) return;
        next_r = stats[row];
        if (CENTERED) next_mean = stats[rows + row];
    };
    look_up(first_row());
    Part w;
    if (!CROWDED) w.load(weight, 0, C);
    int turn = 0;
    for (int64_t row = first_row(); row < rows; row += row_step(), turn++) {
        const float r = next_r, mean = next_mean;
        look_up(row + row_step());
        if (STAGES > 0) {
            ask_for(row + (STAGES - 1) * row_step(), (turn + STAGES - 1) % ROOM);
            __pipeline_wait_prior(STAGES - 1);  // only copies for the rows after this one may be on their way
        }
        Part d, h;
        const auto fetch = [&](int p) {
            if (STAGES > 0) {
                d.pieces[p] = *place(turn % ROOM, p);
                h.pieces[p] = *place(turn % ROOM, PIECES + p);
            } else {
                d.pieces[p] = read(dy + row * dy_stride + column_of(p));
                h.pieces[p] = read(x + row * x_stride + column_of(p));
            }
            if (CROWDED) w.pieces[p] = read(weight + column_of(p));
        };
        if (!CROWDED) each_piece(0, C, fetch);
        const auto x_hat = [&](int p, int i) { return (h(p, i) - mean) * r; };
        const auto g = [&](int p, int i) { return w(p, i) * d(p, i); };

        float sums[2] = {};  // of g, and of g x^
        each(0, C, [&](int p, int i, int) {
            if (CROWDED && i == 0) fetch(p);
            dw[p][i] += d(p, i) * x_hat(p, i);
            if (CENTERED) db[p][i] += d(p, i);
            if (CENTERED) sums[0] += g(p, i);
            sums[1] += g(p, i) * x_hat(p, i);
        });
        sums_over_row(sums, turn);
        const float mean_g = sums[0] * one_nth, mean_gx = sums[1] * one_nth;
        const auto dx_of = [&](int p, int i, int) {
            if (CROWDED && i == 0) fetch(p);
            return r * (g(p, i) - mean_g - x_hat(p, i) * mean_gx);
        };
        if (dh == nullptr) {
            store(dx + row * C, 0, C, dx_of);
        } else {
            Part more;
            const auto fetch_more = [&](int p) { more.pieces[p] = read(dh + row * dh_stride + column_of(p)); };
            if (!CROWDED) each_piece(0, C, fetch_more);
            store(dx + row * C, 0, C, [&](int p, int i, int c) {
                if (CROWDED && i == 0) fetch_more(p);
                return dx_of(p, i, c) + more(p, i);
            });
        }
    }

    parts += int64_t(blockIdx.x) * 2 * C;
    if (BLOCK_ROWS == 1) {
        each(0, C, [&](int p, int i, int column) {
            parts[column] = dw[p][i];
            if (CENTERED) parts[C + column] = db[p][i];
        });
        return;
    }
    // The block's warps have seen other rows each. They add their sums one after the other.
    __shared__ float of_block[2][BLOCK_ROWS > 1 ? CHUNK : 1];
    for (int warp = 0; warp < BLOCK_ROWS; warp++) {
        if (threadIdx.x / 32 == warp)
            each(0, C, [&](int p, int i, int column) {
                of_block[0][column] = dw[p][i] + (warp > 0 ? of_block[0][column] : 0.0f);
                if (CENTERED) of_block[1][column] = db[p][i] + (warp > 0 ? of_block[1][column] : 0.0f);
            });
        __syncthreads();
    }
    for (int column = threadIdx.x; column < C; column += BLOCK) {
        parts[column] = of_block[0][column];
        if (CENTERED) parts[C + column] = of_block[1][column];
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, ROOM_FOR_512) layernorm_backward(
    const scalar *dy, const scalar *dh, const scalar *x, const scalar *weight, const float *stats, scalar *dx,
    float *parts, int64_t dy_stride, int64_t dh_stride, int64_t x_stride, int rows, int C) {
    norm_backward<true>(dy, dh, x, weight, stats, dx, parts, dy_stride, dh_stride, x_stride, rows, C);
}

extern "C" __global__ void __launch_bounds__(BLOCK, ROOM_FOR_512) rmsnorm_backward(
    const scalar *dy, const scalar *dh, const scalar *x, const scalar *weight, const float *stats, scalar *dx,
    float *parts, int64_t dy_stride, int64_t dh_stride, int64_t x_stride, int rows, int C) {
    norm_backward<false>(dy, dh, x, weight, stats, dx, parts, dy_stride, dh_stride, x_stride, rows, C);
}

// The gradients of weight (blockIdx.y 0) and bias (1) from the sums of every block.
extern "C" __global__ void __launch_bounds__(SUM_COLUMNS * SUM_SLICES)
    sum_gradients(const float *parts, scalar *dweight, scalar *dbias, int n_parts, int C) {
    scalar *sums = blockIdx.y == 0 ? dweight : dbias;
    sum_rows(parts + blockIdx.y * C, sums, n_parts, int64_t(2) * C, C, blockIdx.x);
}
