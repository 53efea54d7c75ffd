// What attention needs between its matrix products, when each is a product of its own: the masked softmax of
// the scores and its gradient. One warp a row, `(B, H, T)` of them, each of S scores.
#include "view.cuh"

__device__ float sum_of_warp(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}

__device__ float max_of_warp(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}

__device__ int64_t row_of_warp() { return int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; }

// In place, scores become p = softmax(scores, masked). A sink is one more score, without a value: it takes
// part in the sum. lse, the logarithm of that sum to base 2, is left for the gradient of the sink.
extern "C" __global__ void masked_softmax_forward(
    scalar *scores, const scalar *sink, float *lse, int64_t n_rows, int H, int T, int S, int before,
    int after) {
    const int64_t row = row_of_warp();
    if (row >= n_rows) return;
    scores += row * S;
    const int lane = threadIdx.x % 32, query = row % T, head = row / T % H;
    const View view{T, S, before, after};

    float maximum = sink == nullptr ? LOWEST : float(sink[head]);
    for (int key = lane; key < S; key += 32)
        if (view.sees(query, key)) maximum = fmaxf(maximum, float(scores[key]));
    maximum = max_of_warp(maximum);

    float sum = 0.0f;
    for (int key = lane; key < S; key += 32)
        if (view.sees(query, key)) sum += expf(float(scores[key]) - maximum);
    sum = sum_of_warp(sum);
    if (sink != nullptr) sum += expf(float(sink[head]) - maximum);

    for (int key = lane; key < S; key += 32)
        scores[key] = scalar(view.sees(query, key) ? expf(float(scores[key]) - maximum) / sum : 0.0f);
    if (lane == 0) lse[row] = maximum * LOG2_E + log2f(sum);
}

// In place, dp becomes ds = p (dp - delta), where delta = sum over keys of p dp. Masked scores have p = 0, so
// the mask is not needed again.
extern "C" __global__ void masked_softmax_backward(
    scalar *dp, const scalar *p, float *delta, int64_t n_rows, int S) {
    const int64_t row = row_of_warp();
    if (row >= n_rows) return;
    dp += row * S;
    p += row * S;
    const int lane = threadIdx.x % 32;

    float sum = 0.0f;
    for (int key = lane; key < S; key += 32) sum += float(p[key]) * float(dp[key]);
    sum = sum_of_warp(sum);
    for (int key = lane; key < S; key += 32) dp[key] = scalar(float(p[key]) * (float(dp[key]) - sum));
    if (lane == 0) delta[row] = sum;
}

// dsink of one head: a sink's value is zero, so its dp is zero and its ds is -p delta, summed over all
// queries. One block a head; its threads' sums are added in a tree, always the same one.
extern "C" __global__ void attention_dsink(
    const scalar *sink, const float *lse, const float *delta, scalar *dsink, int B, int H, int T) {
    __shared__ float sums[256];
    const int head = blockIdx.x;
    const float score = float(sink[head]) * LOG2_E;
    float sum = 0.0f;
    for (int64_t i = threadIdx.x; i < int64_t(B) * T; i += 256) {
        const int64_t place = (i / T * H + head) * T + i % T;
        sum -= exp2f(score - lse[place]) * delta[place];
    }
    sums[threadIdx.x] = sum;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) dsink[head] = scalar(sums[0]);
}
