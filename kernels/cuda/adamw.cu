// AdamW (Loshchilov and Hutter, 2019): one step for all weights of a model, in place, in one launch.
//
//     m = beta1 m + (1 - beta1) g        w = w - lr decay w
//     v = beta2 v + (1 - beta2) g^2      w = w - lr m^ / (sqrt(v^) + eps)
//
// m^ and v^ are m and v without the bias of starting at 0.
//
// A model has hundreds of weights, most of them small: a launch for each would take longer than the work. So
// there is a table with a row for each block: where its numbers begin, how many they are, and their weight
// decay.
#ifndef WEIGHT
#define WEIGHT float    // float, __half or __nv_bfloat16: the type of the weights,
#define GRADIENT float  // of their gradients,
#define MEAN float      // of m and v
#define VECTOR 1
#endif
#include "neighbours.cuh"

constexpr int THREADS = 128;
enum Field { ADDRESS_W, ADDRESS_G, ADDRESS_M, ADDRESS_V, COUNT, FIELDS };

extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(const int64_t *table, const float *decays, float lr, float beta1, float beta2, float eps,
          float correction1, float correction2) {
    const int64_t *row = table + int64_t(blockIdx.x) * FIELDS;
    WEIGHT *weights = reinterpret_cast<WEIGHT *>(row[ADDRESS_W]);
    const GRADIENT *gradients = reinterpret_cast<const GRADIENT *>(row[ADDRESS_G]);
    MEAN *ms = reinterpret_cast<MEAN *>(row[ADDRESS_M]), *vs = reinterpret_cast<MEAN *>(row[ADDRESS_V]);
    const int64_t n = row[COUNT];
    const float kept = 1.0f - lr * decays[blockIdx.x];

    for (int64_t i = threadIdx.x * VECTOR; i < n; i += THREADS * VECTOR) {
        const Neighbours<GRADIENT> g = read_some(gradients, i, n);
        Neighbours<WEIGHT> w = read_some(weights, i, n);
        Neighbours<MEAN> m = read_some(ms, i, n), v = read_some(vs, i, n);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            const float gradient = float(g.x[j]);
            const float mean = beta1 * float(m.x[j]) + (1.0f - beta1) * gradient;
            const float square = beta2 * float(v.x[j]) + (1.0f - beta2) * gradient * gradient;
            const float step = lr * (mean / correction1) / (sqrtf(square) / correction2 + eps);
            m.x[j] = MEAN(mean), v.x[j] = MEAN(square), w.x[j] = WEIGHT(float(w.x[j]) * kept - step);
        }
        write_some(ms, i, n, m);
        write_some(vs, i, n, v);
        write_some(weights, i, n, w);
    }
}
