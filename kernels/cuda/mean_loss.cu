// What ends a loss: the mean over all tokens; and what ends its gradients, when these were summed before the
// number of tokens was known.
#include "neighbours.cuh"
#include "sums.cuh"

// The mean of the losses that count, and how many these are. One block, for the order of the sum to be the
// same always.
extern "C" __global__ void __launch_bounds__(1024)
    mean_loss(const float *losses, const int64_t *targets, float *loss, float *count, int rows,
              int64_t ignore_index) {
    float sum = 0.0f, counted = 0.0f;
    for (int row = threadIdx.x; row < rows; row += 1024) {
        sum += losses[row];
        counted += targets[row] != ignore_index;
    }
    sum = sum_over_block<1024>(sum);
    counted = sum_over_block<1024>(counted);
    if (threadIdx.x > 0) return;
    *loss = sum / counted;
    *count = counted;
}

// What `cross_entropy_in_place` and the products after it left to be done: y = x dy / count. One thread
// VECTOR numbers.
template <class From>
__device__ void scale(const From *x, scalar *y, const float *dy, const float *count, int64_t n) {
    const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= n) return;
    const float factor = *dy / *count;
    const Neighbours<From> from = read_some(x, i, n);
    Neighbours<scalar> to;
#pragma unroll
    for (int j = 0; j < VECTOR; j++) to.x[j] = scalar(float(from.x[j]) * factor);
    write_some(y, i, n, to);
}

extern "C" __global__ void scale_scalars(const scalar *x, scalar *y, const float *dy, const float *count,
                                         int64_t n) {
    scale(x, y, dy, count, n);
}
extern "C" __global__ void scale_floats(const float *x, scalar *y, const float *dy, const float *count,
                                        int64_t n) {
    scale(x, y, dy, count, n);
}

// total = total + part, or part alone if it is the first.
extern "C" __global__ void accumulate(const scalar *part, float *total, int64_t n, bool first) {
    const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= n) return;
    const Neighbours<scalar> more = read_some(part, i, n);
    Neighbours<float> sum = {};
    if (!first) sum = read_some(total, i, n);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) sum.x[j] += float(more.x[j]);
    write_some(total, i, n, sum);
}
