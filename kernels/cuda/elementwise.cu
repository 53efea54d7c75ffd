// Operations on numbers one by one, and the sums that their gradients need where a number was used several
// times.
//
// There is next to nothing to compute, so the time is that of moving the numbers. A thread takes VECTOR
// neighbours of the result, 16 bytes: with fewer the GPU would be busy asking for memory before memory is
// busy delivering.
#include "gelu.cuh"
#include "neighbours.cuh"
#include "sums.cuh"

constexpr int BLOCK = SUM_COLUMNS * SUM_SLICES;

// ---- y = a + b and y = a b, with broadcasting
//
// y has four dimensions (.., n1, n2, n3). a and b have a stride for each, which is 0 where they repeat:
// threads that differ in that dimension alone then read the same number. All counts groups of VECTOR numbers
// in the last dimension, which are neighbours in a, b and y.
struct Strides {
    int64_t of[4];
};

template <class Join>
__device__ void join(const scalar *a, const scalar *b, scalar *y, unsigned groups, const unsigned (&sizes)[4],
                     const Strides &a_strides, const Strides &b_strides, Join with) {
    const unsigned group = blockIdx.x * BLOCK + threadIdx.x;
    if (group >= groups) return;
    // Which group of the last dimension, which row of the one before: each takes its remainder and leaves the
    // rest.
    unsigned rest = group;
#pragma unroll
    for (int d = 3; d >= 0; d--) {
        const unsigned index = d > 0 ? rest % sizes[d] : rest;
        a += index * a_strides.of[d];
        b += index * b_strides.of[d];
        rest /= sizes[d];
    }
    const Neighbours<scalar> from_a = read(a), from_b = read(b);
    Neighbours<scalar> joined;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) joined.x[i] = scalar(with(float(from_a.x[i]), float(from_b.x[i])));
    write(y + int64_t(group) * VECTOR, joined);
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    add(const scalar *a, const scalar *b, scalar *y, unsigned groups, unsigned n1, unsigned n2, unsigned n3,
        int64_t a0, int64_t a1, int64_t a2, int64_t a3, int64_t b0, int64_t b1, int64_t b2, int64_t b3) {
    join(a, b, y, groups, {1, n1, n2, n3}, {a0, a1, a2, a3}, {b0, b1, b2, b3},
         [](float a, float b) { return a + b; });
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    mul(const scalar *a, const scalar *b, scalar *y, unsigned groups, unsigned n1, unsigned n2, unsigned n3,
        int64_t a0, int64_t a1, int64_t a2, int64_t a3, int64_t b0, int64_t b1, int64_t b2, int64_t b3) {
    join(a, b, y, groups, {1, n1, n2, n3}, {a0, a1, a2, a3}, {b0, b1, b2, b3},
         [](float a, float b) { return a * b; });
}

// y[o][c] = the sum of x[o][r][c] over r: the gradient of what was repeated R times. One block is not enough
// for a GPU where C is small and R large: then each sums a piece of the rows, to parts (outer, pieces, C),
// which are summed next.
template <class From, class To>
__device__ void sum_piece(const From *x, To *y, int R, int C, int piece) {
    const int column_blocks = (C + SUM_COLUMNS - 1) / SUM_COLUMNS, pieces = (R + piece - 1) / piece;
    const int64_t part = blockIdx.x / column_blocks, outer = part / pieces;
    const int first = part % pieces * piece;
    const int block = blockIdx.x % column_blocks;
    sum_rows(x + (outer * R + first) * C, y + part * C, min(piece, R - first), C, C, block);
}

extern "C" __global__ void __launch_bounds__(BLOCK) sum(const scalar *x, scalar *y, int R, int C) {
    sum_piece(x, y, R, C, R);
}
extern "C" __global__ void __launch_bounds__(BLOCK)
    sum_to_parts(const scalar *x, float *parts, int R, int C, int piece) {
    sum_piece(x, parts, R, C, piece);
}
extern "C" __global__ void __launch_bounds__(BLOCK) sum_parts(const float *parts, scalar *y, int R, int C) {
    sum_piece(parts, y, R, C, R);
}

// ---- GELU and SwiGLU, of n numbers without gaps
//
// The backward passes compute the sigmoid again: to save it would cost as much memory traffic as the forward
// pass has.

__device__ int64_t first_number() { return (int64_t(blockIdx.x) * BLOCK + threadIdx.x) * VECTOR; }

extern "C" __global__ void __launch_bounds__(BLOCK) gelu_forward(const scalar *x, scalar *y, int64_t n) {
    const int64_t i = first_number();
    if (i >= n) return;
    Neighbours<scalar> numbers = read_some(x, i, n);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) numbers.x[j] = scalar(gelu(float(numbers.x[j])));
    write_some(y, i, n, numbers);
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    gelu_backward(const scalar *dy, const scalar *x, scalar *dx, int64_t n) {
    const int64_t i = first_number();
    if (i >= n) return;
    Neighbours<scalar> gradients = read_some(dy, i, n), numbers = read_some(x, i, n);
#pragma unroll
    for (int j = 0; j < VECTOR; j++)
        gradients.x[j] = scalar(float(gradients.x[j]) * gelu_slope(float(numbers.x[j])));
    write_some(dx, i, n, gradients);
}

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// y = gate sigmoid(gate) up
extern "C" __global__ void __launch_bounds__(BLOCK)
    swiglu_forward(const scalar *gate, const scalar *up, scalar *y, int64_t n) {
    const int64_t i = first_number();
    if (i >= n) return;
    Neighbours<scalar> gates = read_some(gate, i, n), ups = read_some(up, i, n);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) {
        const float g = float(gates.x[j]);
        ups.x[j] = scalar(g * sigmoid(g) * float(ups.x[j]));
    }
    write_some(y, i, n, ups);
}

// silu(g) = g sigmoid(g) has the derivative sigmoid + silu (1 - sigmoid).
extern "C" __global__ void __launch_bounds__(BLOCK) swiglu_backward(
    const scalar *dy, const scalar *gate, const scalar *up, scalar *dgate, scalar *dup, int64_t n) {
    const int64_t i = first_number();
    if (i >= n) return;
    const Neighbours<scalar> gradients = read_some(dy, i, n);
    Neighbours<scalar> gates = read_some(gate, i, n), ups = read_some(up, i, n);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) {
        const float d = float(gradients.x[j]), g = float(gates.x[j]), u = float(ups.x[j]);
        const float sigma = sigmoid(g), silu = g * sigma;
        gates.x[j] = scalar(d * u * (sigma + silu * (1.0f - sigma)));
        ups.x[j] = scalar(d * silu);
    }
    write_some(dgate, i, n, gates);
    write_some(dup, i, n, ups);
}
