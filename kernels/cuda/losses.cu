// Cross-entropy: of logits l of a token and its target t,
//
//     lse = log of the sum of exp(l)        loss = lse - l_t        dl = exp(l - lse) - (1 at t, 0 elsewhere)
//
// and of many tokens the mean, over those whose target is not `ignore_index`.
#include "rows.cuh"

// log of the sum of exp over a row, read once: every thread keeps the largest number that it has met, and its
// sum of exponentials relative to that (Milakov and Gimelshein, 2018). `part` then holds the row, or its last
// chunk.
__device__ float log_sum_exp(Part &part, const scalar *row, int C) {
    float largest = -INFINITY, sum = 0.0f;
    each_chunk(C, [&](int start) {
        part.load(row, start, C);
        float new_largest = largest;
        each(start, C, [&](int p, int i, int) { new_largest = fmaxf(new_largest, part(p, i)); });
        if (new_largest == -INFINITY) return;  // nothing but zeros to add, and -inf - -inf is nan
        sum *= __expf(largest - new_largest);
        each(start, C, [&](int p, int i, int) { sum += __expf(part(p, i) - new_largest); });
        largest = new_largest;
    });
    const float of_row = max_over_row(largest, 0);
    if (largest > -INFINITY) sum *= __expf(largest - of_row);
    return of_row + logf(sum_over_row(sum, 1));
}

// 0 for a token that does not count; nan for a target that is no class.
__device__ float loss_of(const scalar *row, float lse, int64_t target, int V, int64_t ignore_index) {
    if (target == ignore_index) return 0.0f;
    return target >= 0 && target < V ? lse - float(row[target]) : nanf("");
}

// dlogits = (softmax(logits) - one_hot(target)) scale. In place, if dlogits is logits.
__device__ void write_dlogits(Part &part, const scalar *row, scalar *drow, float lse, int64_t target,
                              float scale, int V) {
    each_chunk(V, [&](int start) {
        if (!HELD) part.load(row, start, V);  // a row that is too wide to be held is read again
        store(drow, start, V, [&](int p, int i, int column) {
            return (__expf(part(p, i) - lse) - (column == target ? 1.0f : 0.0f)) * scale;
        });
    });
}

extern "C" __global__ void __launch_bounds__(BLOCK, ROOM_FOR_1024)
    cross_entropy_forward(const scalar *logits, const int64_t *targets, float *lse, float *losses,
                          int64_t stride, int rows, int V, int64_t ignore_index) {
    const int64_t row = first_row();
    if (row >= rows) return;
    logits += row * stride;
    Part part;
    const float its_lse = log_sum_exp(part, logits, V);
    if (threadIdx.x % ROW_THREADS > 0) return;
    lse[row] = its_lse;
    losses[row] = loss_of(logits, its_lse, targets[row], V, ignore_index);
}

extern "C" __global__ void __launch_bounds__(BLOCK, ROOM_FOR_1024)
    cross_entropy_backward(const float *dy, const scalar *logits, const int64_t *targets, const float *lse,
                           const float *count, scalar *dlogits, int64_t stride, int rows, int V,
                           int64_t ignore_index) {
    const int64_t row = first_row();
    if (row >= rows) return;
    logits += row * stride;
    Part part;
    if (HELD) part.load(logits, 0, V);
    const float scale = targets[row] == ignore_index ? 0.0f : *dy / *count;
    write_dlogits(part, logits, dlogits + row * V, lse[row], targets[row], scale, V);
}

// Both at once, for logits that nobody else needs: they become their gradient, which is still to be divided
// by the number of tokens.
extern "C" __global__ void __launch_bounds__(BLOCK, ROOM_FOR_1024) cross_entropy_in_place(
    scalar *logits, const int64_t *targets, float *losses, int64_t stride, int rows, int V,
    int64_t ignore_index) {
    const int64_t row = first_row();
    if (row >= rows) return;
    logits += row * stride;
    const int64_t target = targets[row];
    Part part;
    const float lse = log_sum_exp(part, logits, V);
    const float loss = loss_of(logits, lse, target, V, ignore_index);
    if (ROW_WARPS == 1) __syncwarp();  // everybody has read the target's logit, and now it is overwritten
    if (ROW_WARPS > 1) __syncthreads();
    if (threadIdx.x % ROW_THREADS == 0) losses[row] = loss;
    write_dlogits(part, logits, logits, lse, target, target == ignore_index ? 0.0f : 1.0f, V);
}
