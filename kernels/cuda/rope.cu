// Rotary positions: a pair of features (x1, x2) of a head, D/2 apart, is turned by the angle of its position,
//
//     y1 = x1 cos - x2 sin        y2 = x2 cos + x1 sin        (Su et al., 2021)
//
// and turned back by the same with -sin: the backward pass.
#include "neighbours.cuh"  // pairs side by side that a thread turns: VECTOR divides D/2

constexpr int BLOCK = 256;

// x (B, T, H, D) of any strides but the last, cos and sin (T, D/2), y without gaps. Threads side by side take
// groups of pairs side by side. groups = B T H (D/2) / VECTOR.
extern "C" __global__ void __launch_bounds__(BLOCK)
    rotate(const scalar *x, const scalar *cos, const scalar *sin, scalar *y, unsigned groups, int T, int H,
           int half, int64_t x_batch, int64_t x_time, int64_t x_head, int64_t cos_time, int64_t sin_time,
           float sign) {
    const unsigned group = blockIdx.x * BLOCK + threadIdx.x, of_head = half / VECTOR;
    if (group >= groups) return;
    const unsigned d = group % of_head * VECTOR, head = group / of_head;
    const unsigned h = head % H, t = head / H % T, b = head / H / T;
    x += b * x_batch + t * x_time + h * x_head + d;
    y += int64_t(head) * 2 * half + d;

    const Neighbours<scalar> x1 = read(x), x2 = read(x + half);
    const Neighbours<scalar> c = read(cos + t * cos_time + d), s = read(sin + t * sin_time + d);
    Neighbours<scalar> y1, y2;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const float a = float(x1.x[i]), b = float(x2.x[i]);
        const float cosine = float(c.x[i]), sine = sign * float(s.x[i]);
        y1.x[i] = scalar(a * cosine - b * sine);
        y2.x[i] = scalar(b * cosine + a * sine);
    }
    write(y, y1);
    write(y + half, y2);
}
