// Softmax over the last dimension of (rows, C):   y = exp(x - max x) / sum of exp(x - max x)
//
// Without the maximum exp(x) overflows from 89 on; with it no exponent is above 0, and y is the same.
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK, ROOM_FOR_1024)
    softmax_forward(const scalar *x, scalar *y, int64_t x_stride, int rows, int C) {
    const int64_t row = first_row();
    if (row >= rows) return;
    x += row * x_stride, y += row * C;
    Part part;

    float largest = -INFINITY;
    each_chunk(C, [&](int start) {
        part.load(x, start, C);
        each(start, C, [&](int p, int i, int) { largest = fmaxf(largest, part(p, i)); });
    });
    largest = max_over_row(largest, 0);

    float sum = 0.0f;
    each_chunk(C, [&](int start) {
        if (!HELD) part.load(x, start, C);  // a row that is too wide to be held is read again
        each(start, C, [&](int p, int i, int) { sum += __expf(part(p, i) - largest); });
    });
    const float scale = 1.0f / sum_over_row(sum, 1);

    each_chunk(C, [&](int start) {
        if (!HELD) part.load(x, start, C);
        store(y, start, C, [&](int p, int i, int) { return __expf(part(p, i) - largest) * scale; });
    });
}

// dx = y (dy - sum of dy y): every x moves every y of its row, for they add up to 1.
extern "C" __global__ void __launch_bounds__(BLOCK, ROOM_FOR_1024) softmax_backward(
    const scalar *dy, const scalar *y, scalar *dx, int64_t dy_stride, int64_t y_stride, int rows, int C) {
    const int64_t row = first_row();
    if (row >= rows) return;
    dy += row * dy_stride, y += row * y_stride, dx += row * C;
    Part part_dy, part_y;

    float sum = 0.0f;
    each_chunk(C, [&](int start) {
        part_dy.load(dy, start, C);
        part_y.load(y, start, C);
        each(start, C, [&](int p, int i, int) { sum += part_dy(p, i) * part_y(p, i); });
    });
    sum = sum_over_row(sum, 0);

    each_chunk(C, [&](int start) {
        if (!HELD) {
            part_dy.load(dy, start, C);
            part_y.load(y, start, C);
        }
        store(dx, start, C, [&](int p, int i, int) { return part_y(p, i) * (part_dy(p, i) - sum); });
    });
}
