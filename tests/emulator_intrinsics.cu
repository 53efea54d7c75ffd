// One kernel for each thing that CUDA C++ has and C++ has not; test_cuda_emulator.py compares with NumPy.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include "emulator_intrinsics.cuh"

extern "C" __global__ void indices(int *y) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int threads = blockDim.x * blockDim.y * blockDim.z;
    int *mine = y + 6 * (block * threads + thread);
    mine[0] = blockIdx.x, mine[1] = blockIdx.y, mine[2] = blockIdx.z;
    mine[3] = threadIdx.x, mine[4] = threadIdx.y, mine[5] = threadIdx.z;
}

extern "C" __global__ void shuffles(const int *x, int *y, int by, int width) {
    int v = x[threadIdx.x], *out = y + 4 * threadIdx.x;
    out[0] = __shfl_sync(0xffffffff, v, by, width);
    out[1] = __shfl_up_sync(0xffffffff, v, by, width);
    out[2] = __shfl_down_sync(0xffffffff, v, by, width);
    out[3] = __shfl_xor_sync(0xffffffff, v, by, width);
}

extern "C" __global__ void shuffled_types(double *y) {
    int lane = threadIdx.x;
    double sum = __shfl_xor_sync(0xffffffff, 0.1 * lane, 1) +
                 float(__shfl_xor_sync(0xffffffff, __half(float(lane)), 1)) +
                 __shfl_xor_sync(0xffffffff, (long long)lane << 40, 1) +
                 __shfl_xor_sync(0xffffffff, unsigned(lane), 1);
    y[lane] = sum;
}

extern "C" __global__ void votes(const int *x, unsigned *y) {
    int p = x[threadIdx.x];
    unsigned *out = y + 8 * threadIdx.x, odd = 0xaaaaaaaau;
    out[0] = __ballot_sync(0xffffffff, p);
    out[1] = __any_sync(0xffffffff, p);
    out[2] = __all_sync(0xffffffff, p);
    out[3] = __activemask();
    out[4] = threadIdx.x % 2 ? __ballot_sync(odd, p) : __ballot_sync(~odd, p);
    out[5] = __syncthreads_count(p);
    out[6] = __syncthreads_and(p);
    out[7] = __syncthreads_or(p);
}

extern "C" __global__ void atomics(const int *x, int *y, unsigned *u, float *f, double *d, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicAdd(&y[0], x[i]);
    atomicSub(&y[1], x[i]);
    atomicMax(&y[2], x[i]);
    atomicMin(&y[3], x[i]);
    atomicOr(&y[4], x[i]);
    atomicXor(&y[5], x[i]);
    atomicAnd(&y[6], ~x[i]);
    atomicInc(&u[0], 6);
    atomicMax(&u[1], unsigned(x[i]));
    atomicAdd(&f[0], 0.5f);
    atomicAdd(&d[0], 0.25);
    if (atomicExch(&y[7], 1) == 0) y[8] = i + 1;  // only one is the first
    int old = atomicAdd(&y[9], 1);
    while (true) {  // a maximum by hand
        int seen = atomicCAS(&y[10], 0, 0);
        if (seen >= old || atomicCAS(&y[10], seen, old) == seen) break;
    }
}

extern "C" __global__ void lock(int *locked, int *count) {  // each thread in turn, others spin
    while (atomicCAS(locked, 0, 1) != 0) {
    }
    atomicAdd(count, 1);
    atomicExch(locked, 0);
}

extern "C" __global__ void exchanged(int *locked, int *count) {
    while (atomicExch(locked, 1) == 1) {
    }
    atomicAdd(count, 1);
    atomicExch(locked, 0);
}

extern "C" __global__ void in_order(int *next, int *y) {  // the last first; the atomic adds nothing
    int n = blockDim.x;
    while (atomicAdd(next, 0) != n - 1 - threadIdx.x) {
    }
    y[n - 1 - threadIdx.x] = threadIdx.x;
    atomicAdd(next, 1);
}

extern "C" __global__ void arithmetic(const float *x, float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i], a = fabsf(v) + 0.5f;
    float all[] = {expf(v),          __expf(v),      exp2f(v),           logf(a),      __logf(a),
                   rsqrtf(a),        rsqrt(a),       tanhf(v),           erff(v),      sqrtf(a),
                   fmaf(v, v, 3),    fminf(v, 0.5f), fmaxf(v, 1),        min(v, 0.5f), max(1.0f, v),
                   __fdividef(v, a), powf(a, v),     float(abs(int(v))), sinf(v),      cosf(v),
                   rintf(v),         __saturatef(v), log1pf(a),          floorf(v)};
    for (int k = 0; k < 24; k++) y[24 * i + k] = all[k];
}

extern "C" __global__ void bits(const unsigned *x, int *y) {
    unsigned v = x[threadIdx.x];
    int *out = y + 6 * threadIdx.x;
    out[0] = __popc(v), out[1] = __clz(v), out[2] = __ffs(v), out[3] = __umulhi(v, 0x9e3779b9u);
    out[4] = __float_as_int(__uint_as_float(v)) == int(v);
    out[5] = max(1, int(v % 7)) + min(3u, v);
}

extern "C" __global__ void rounded(const float *x, scalar *y, float *back, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[i] = scalar(x[i]);
    back[i] = float(y[i]);
}

extern "C" __global__ void halves(const float *x, float *y, int n) {
    int i = threadIdx.x;
    __half h = __float2half(x[i]);
    __nv_bfloat16 b = __float2bfloat16(x[i]);
    __half2 pair = __floats2half2_rn(x[i], 1.0f);
    float2 two = __half22float2(pair);
    h += h * __half(0.5f);
    b *= b;
    y[4 * i] = __half2float(h), y[4 * i + 1] = __bfloat162float(b), y[4 * i + 2] = two.x,
          y[4 * i + 3] = two.y;
}

extern "C" __global__ void vectors(const float *x, float *y, const int *k, int *m) {
    int i = threadIdx.x;
    float4 v = reinterpret_cast<const float4 *>(x)[i];
    float2 w = {v.x, v.w};
    v = make_float4(v.w, w.x + 1, twice(v.y), v.z);
    __shared__ float4 tile[32];
    tile[i] = v;
    __syncthreads();
    reinterpret_cast<float4 *>(y)[i] = tile[31 - i];
    int4 n = __ldg(reinterpret_cast<const int4 *>(k) + i);
    n.y += n.x;
    reinterpret_cast<int4 *>(m)[i] = n;
}

extern "C" __global__ void shared_kinds(float *y) {  // declarations of every shape
    __shared__ float one, row[8], grid[2][3], cube[2][3][5];
    __shared__ __align__(128) unsigned char bytes[256];
    __shared__ alignas(32) double aligned[4];
    __shared__ Pair<float, 3> pairs[2];
    if (threadIdx.x == 0) {
        one = 1, row[7] = 2, grid[1][2] = 3, cube[1][2][4] = 4, aligned[3] = 6, pairs[1].values[2] = 7;
        bytes[255] = 5;
    }
    __syncthreads();
    bool fits =
        reinterpret_cast<uintptr_t>(bytes) % 128 == 0 && reinterpret_cast<uintptr_t>(aligned) % 32 == 0;
    y[threadIdx.x] = one + row[7] + grid[1][2] + cube[1][2][4] + bytes[255] + aligned[3] +
                     pairs[1].values[2] + 10 * counted<4>() + 100 * counted<5>() + 1000 * fits;
}

extern "C" __global__ void carved(float *y, int n) {  // one dynamic array, cut in two
    extern __shared__ float buffer[];
    float *first = buffer;
    int *second = reinterpret_cast<int *>(buffer + n);
    first[threadIdx.x] = threadIdx.x;
    second[threadIdx.x] = 10 * threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = first[n - 1 - threadIdx.x] + second[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(128)
    copied(const float *x, float *y, int n) {  // a double buffer
    __shared__ float4 s[2][32];
    auto fetch = [&](int k) {
        __pipeline_memcpy_async(&s[k % 2][threadIdx.x],
                                reinterpret_cast<const float4 *>(x) + 32 * k + threadIdx.x, 16,
                                threadIdx.x == 31 ? 8 : 0);
        __pipeline_commit();
    };
    fetch(0);
    for (int k = 0; k < n; k++) {
        if (k + 1 < n) fetch(k + 1);
        __pipeline_wait_prior(k + 1 < n ? 1 : 0);
        __syncthreads();
        reinterpret_cast<float4 *>(y)[32 * k + threadIdx.x] = s[k % 2][31 - threadIdx.x];
        __syncthreads();
    }
}

__constant__ float table[4] = {1, 10, 100, 1000};
__device__ const int order[4] = {3, 1, 0, 2};

extern "C" __global__ void tables(float *y) { y[threadIdx.x] = table[order[threadIdx.x]]; }

extern "C" __global__ void block_sum(const float *x, float *y, int C) {  // 1024 threads, warps, shared memory
    __shared__ float sums[32];
    float sum = 0;
    for (int i = threadIdx.x; i < C; i += blockDim.x) sum += x[blockIdx.x * C + i];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = sums[threadIdx.x];
        for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
        if (threadIdx.x == 0) y[blockIdx.x] = sum;
    }
}

extern "C" __global__ void passed(float *y, float f, double d, int i, unsigned u, int64_t l, bool b,
                                  uint8_t c) {
    y[0] = f, y[1] = d, y[2] = i, y[3] = u, y[4] = l, y[5] = b, y[6] = c;
}
