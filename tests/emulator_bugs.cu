// Kernels that are wrong when `wrong` is 1 and right when it is 0: what the emulator must report, and what
// it must not.
// `// <- kernel` marks the line that the report has to name.
#include <cuda_pipeline.h>

extern "C" __global__ void tail(const float *x, float *y, int n, int wrong) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n + wrong) y[i] = x[i];  // <- tail
}

extern "C" __global__ void beyond(const float *x, float *y, int n, int wrong) {
    y[threadIdx.x + wrong * n] = x[threadIdx.x];  // <- beyond
}

extern "C" __global__ void null(const float *x, const float *bias, float *y, int wrong) {
    y[threadIdx.x] = x[threadIdx.x] + (bias || wrong ? bias[threadIdx.x] : 0);  // <- null
}

extern "C" __global__ void wild(const float *x, float *y, int64_t address, int wrong) {
    y[0] = *(wrong ? (const float *)address : x);  // <- wild
}

extern "C" __global__ void table(const int64_t *addresses, int n) {
    reinterpret_cast<float *>(addresses[blockIdx.x])[threadIdx.x] += n;  // <- table
}

extern "C" __global__ void constant(const float *x, float *y, int wrong) {
    *(wrong ? const_cast<float *>(x) : y) = 1;  // <- constant
}

extern "C" __global__ void misaligned(const float *x, float *y, int wrong) {
    float4 v = *reinterpret_cast<const float4 *>(x + 4 * threadIdx.x + wrong);  // <- misaligned
    reinterpret_cast<float4 *>(y)[threadIdx.x] = v;
}

extern "C" __global__ void misaligned_shared(float *y, int wrong) {
    __shared__ float s[66];
    s[threadIdx.x] = s[threadIdx.x + 32] = threadIdx.x;
    __syncthreads();
    float2 pair = reinterpret_cast<float2 *>(s + wrong)[threadIdx.x];  // <- misaligned_shared
    y[threadIdx.x] = pair.x + pair.y;
}

__device__ float third(const float *values, int i) { return values[i]; }  // <- shared_bounds

extern "C" __global__ void shared_bounds(float *y, int n, int wrong) {
    __shared__ float first[32], last[5][7];
    first[threadIdx.x] = threadIdx.x;
    if (threadIdx.x == 0) last[4][6] = 3;
    __syncthreads();
    y[threadIdx.x] = third(first, threadIdx.x + wrong) + third(&last[0][0], 34 + wrong * n);
}

extern "C" __global__ void dynamic_bounds(float *y, int n) {
    extern __shared__ __align__(16) float buffer[];
    buffer[n - 1 - threadIdx.x] = threadIdx.x;  // <- dynamic_bounds
    __syncthreads();
    y[threadIdx.x] = buffer[n - 1 - threadIdx.x];
}

extern "C" __global__ void row_bounds(float *y, int wrong) {
    __shared__ float tile[4][33];
    for (int i = 0; i < 4; i++) tile[i][threadIdx.x + 2 * wrong] = threadIdx.x;  // <- row_bounds
    y[threadIdx.x] = tile[3][threadIdx.x + 2 * wrong];
}

extern "C" __global__ void local_bounds(const float *x, float *y, int wrong) {
    float values[4];
    for (int i = 0; i < 4 + wrong; i++) values[i] = x[i];  // <- local_bounds
    y[0] = values[int(x[0]) & 3];
}

extern "C" __global__ void uninitialised(float *y, int wrong) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x + wrong];  // <- uninitialised
}

extern "C" __global__ void previous_block(float *y, int wrong) {
    __shared__ float s;
    if (threadIdx.x == 0 && (blockIdx.x == 0 || !wrong)) s = blockIdx.x;
    __syncthreads();
    y[blockIdx.x * blockDim.x + threadIdx.x] = s;  // <- previous_block
}

// ---- Races

extern "C" __global__ void no_barrier(const float *x, float *y, int wrong) {
    __shared__ float s[128];
    s[threadIdx.x] = x[threadIdx.x];  // <- other:no_barrier
    if (!wrong) __syncthreads();
    y[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];  // <- no_barrier
}

extern "C" __global__ void second_barrier(const float *x, float *y, int wrong) {
    __shared__ float s[128];
    float sum = 0;
    for (int k = 0; k < 3; k++) {
        s[threadIdx.x] = x[threadIdx.x] + k;  // <- other:second_barrier
        __syncthreads();
        sum += s[blockDim.x - 1 - threadIdx.x];  // <- second_barrier
        if (!wrong) __syncthreads();
    }
    y[threadIdx.x] = sum;
}

extern "C" __global__ void warp_synchronous(const float *x, float *y, int wrong) {
    __shared__ float s[32];
    s[threadIdx.x] = x[threadIdx.x];
    for (int step = 16; step > 0; step /= 2) {
        if (!wrong) __syncwarp();
        float other = s[threadIdx.x ^ step];  // <- warp_synchronous
        if (!wrong) __syncwarp();
        s[threadIdx.x] += other;
    }
    y[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void half_warps(float *y, int wrong) {  // each half meets by itself
    __shared__ int s[32];
    s[threadIdx.x] = threadIdx.x;
    unsigned mask = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
    __syncwarp(mask);
    y[threadIdx.x] = s[threadIdx.x ^ (wrong ? 16 : 15)];  // <- half_warps
}

extern "C" __global__ void other_warps(float *y, int wrong) {  // __syncwarp is for one warp
    __shared__ int s[64];
    s[threadIdx.x] = threadIdx.x;
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x ^ (wrong ? 32 : 1)];  // <- other_warps
}

extern "C" __global__ void both_write(float *y, int wrong) {
    __shared__ float s;
    if (threadIdx.x == 0 || wrong) s = 1;  // <- both_write
    __syncthreads();
    y[threadIdx.x] = s;
}

extern "C" __global__ void small_types(float *y, int wrong) {  // neighbours share a word, not a byte
    __shared__ uint8_t bytes[64];
    __shared__ __half halves[64];
    bytes[threadIdx.x] = threadIdx.x;
    halves[threadIdx.x] = float(threadIdx.x);
    halves[threadIdx.x] = float(halves[threadIdx.x]) + bytes[threadIdx.x];
    if (!wrong) __syncthreads();
    y[threadIdx.x] = halves[(threadIdx.x + 1) % 64];  // <- small_types
}

extern "C" __global__ void reduction(const float *x, float *y, int n, int wrong) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x < n ? x[threadIdx.x] : 0;
    for (int step = 32; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step + wrong) s[threadIdx.x] += s[threadIdx.x + step];  // <- reduction
    }
    if (threadIdx.x == 0) y[0] = s[0];
}

extern "C" __global__ void histogram(const int *x, int *counts, int n, int wrong) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && wrong) counts[x[i]] += 1;  // <- histogram
    if (i < n && !wrong) atomicAdd(&counts[x[i]], 1);
}

extern "C" __global__ void half_atomic(int *counts, int wrong) {
    if (threadIdx.x > 0 || !wrong) atomicAdd(counts, 1);  // <- half_atomic
    else counts[0] = 1;  // <- other:half_atomic
}

extern "C" __global__ void between_blocks(float *y, int wrong) {
    y[blockIdx.x] = blockIdx.x;  // <- between_blocks
    if (wrong) y[gridDim.x + blockIdx.x] = y[gridDim.x - 1 - blockIdx.x];  // <- other:between_blocks
}

extern "C" __global__ void in_place(float *x, int wrong) {
    x[threadIdx.x] = 2 * x[threadIdx.x + wrong];  // <- in_place
}

extern "C" __global__ void last_block(const float *x, float *partial, int *done, float *y) {
    partial[blockIdx.x] = x[blockIdx.x];
    __threadfence();
    if (atomicAdd(done, 1) == gridDim.x - 1) {
        float sum = 0;
        for (int i = 0; i < gridDim.x; i++) sum += partial[i];
        *y = sum;
    }
}

// ---- Meeting

extern "C" __global__ void branch(float *y, int wrong) {
    if (threadIdx.x < (wrong ? 32 : 64)) __syncthreads();  // <- branch
    y[threadIdx.x] = 1;
}

extern "C" __global__ void early_return(float *y, int n, int wrong) {
    if (wrong && threadIdx.x >= n) return;
    __syncthreads();  // <- early_return
    if (threadIdx.x < n) y[threadIdx.x] = 1;
}

extern "C" __global__ void trip_counts(float *y, int wrong) {
    for (int i = wrong ? threadIdx.x / 32 : 0; i < 4; i++) __syncthreads();  // <- trip_counts
    y[threadIdx.x] = 1;
}

extern "C" __global__ void two_barriers(float *y, int wrong) {
    if (threadIdx.x < 32 || !wrong)
        __syncthreads();  // <- two_barriers
    else
        __syncthreads();  // <- other:two_barriers
    y[threadIdx.x] = 1;
}

extern "C" __global__ void exited_lane(float *y, int n, int wrong) {
    if (wrong && threadIdx.x >= n) return;
    float v = __shfl_down_sync(0xffffffff, 1.0f, 1);  // <- exited_lane
    if (threadIdx.x < n) y[threadIdx.x] = v;
}

extern "C" __global__ void exited_first(float *y, int wrong) {
    if (wrong && threadIdx.x == 0) return;
    y[threadIdx.x] = __shfl_xor_sync(0xffffffff, 1.0f, 1);  // <- exited_first
}

extern "C" __global__ void absent_lane(float *y, int wrong) {  // a block of 16 threads
    y[threadIdx.x] = __shfl_xor_sync(wrong ? 0xffffffffu : 0xffffu, 1.0f, wrong ? 16 : 8);  // <- absent_lane
}

extern "C" __global__ void own_lane(float *y, int wrong) {
    y[threadIdx.x] = __shfl_sync(wrong ? 1u : 0xffffffffu, 1.0f, 0);  // <- own_lane
}

extern "C" __global__ void different_masks(float *y, int wrong) {
    unsigned mask = wrong && threadIdx.x == 7 ? 0xfffffffeu : 0xffffffffu;
    y[threadIdx.x] = __any_sync(mask, 1);  // <- different_masks
}

extern "C" __global__ void barrier_in_warp(float *y, int wrong) {
    if (threadIdx.x == 3 && wrong) __syncthreads();
    __syncwarp();  // <- barrier_in_warp
    y[threadIdx.x] = 1;
}

// ---- Asynchronous copies

extern "C" __global__ void no_wait(const float *x, float *y, int wrong) {
    __shared__ float s[64];
    __pipeline_memcpy_async(&s[threadIdx.x], &x[threadIdx.x], 4);  // <- other:no_wait
    __pipeline_commit();
    if (!wrong) __pipeline_wait_prior(0);
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];  // <- no_wait
}

extern "C" __global__ void wait_for_one(const float *x, float *y, int n, int wrong) {  // a double buffer
    __shared__ float s[2][32];
    __pipeline_memcpy_async(&s[0][threadIdx.x], &x[threadIdx.x], 4);  // <- other:wait_for_one
    __pipeline_commit();
    float sum = 0;
    for (int k = 0; k < n; k++) {
        int next = k + 1;
        if (next < n) __pipeline_memcpy_async(&s[next % 2][threadIdx.x], &x[32 * next + threadIdx.x], 4);
        __pipeline_commit();
        __pipeline_wait_prior(1 + wrong);
        __syncthreads();
        sum += s[k % 2][31 - threadIdx.x];  // <- wait_for_one
        __syncthreads();
    }
    y[threadIdx.x] = sum;
}

extern "C" __global__ void wait_no_barrier(const float *x, float *y, int wrong) {
    __shared__ float s[64];
    __pipeline_memcpy_async(&s[threadIdx.x], &x[threadIdx.x], 4);  // <- other:wait_no_barrier
    __pipeline_commit();
    __pipeline_wait_prior(0);
    if (!wrong) __syncthreads();
    y[threadIdx.x] = s[(threadIdx.x + 63) % 64];  // <- wait_no_barrier
}

// ---- The rest

extern "C" __global__ void zero(const int *x, int *y, int wrong) {
    y[0] = 100 / (x[0] - wrong);  // <- zero
}

extern "C" __global__ void too_much_shared(float *y, int wrong) {
    __shared__ float a[12 * 1024];
    a[threadIdx.x] = 1;
    if (wrong) {
        __shared__ float b[1];  // <- too_much_shared
        b[0] = 1;
    }
    y[threadIdx.x] = a[threadIdx.x];
}

extern "C" __global__ void more_than_a_block_has(float *y) {
    __shared__ float a[4096];  // <- more_than_a_block_has
    a[threadIdx.x] = 1;
    y[threadIdx.x] = a[threadIdx.x];
}

extern "C" __global__ void copies(const float *x, float *y, int skip, int bytes, int zeros) {
    __shared__ __align__(16) float s[4];
    __pipeline_memcpy_async(s, x + skip, bytes, zeros);  // <- copies
    __pipeline_commit();
    __pipeline_wait_prior(0);
    for (int i = 0; i < bytes / 4; i++) y[i] = s[i];
}

extern "C" __global__ void copies_to(const float *x, float *y) { __pipeline_memcpy_async(y, x, 4); }

__device__ __noinline__ int sum_to(int n) {  // <- recursion
    volatile int here[64] = {};
    return n ? sum_to(n - 1) + n + here[n % 64] : 0;
}
extern "C" __global__ void recursion(int *y, int wrong) { y[0] = sum_to(wrong ? 1000000 : 10); }

extern "C" __global__ void claims(float *y, int n, int wrong) {
    assert(threadIdx.x < n || !wrong);  // <- claims
    y[threadIdx.x] = 1;
}

extern "C" __global__ void forever(float *y) {
    while (y[0] >= 0) y[0] += 1;
}

extern "C" __global__ void crash(float *y, int64_t address) { *(float *)address = y[0]; }  // <- crash

extern "C" __global__ void says(const float *x) {
    if (threadIdx.x == 0) printf("block %d\n", blockIdx.x);
    if (threadIdx.x == 0) printf("%.2f\n", x[blockIdx.x]);
}
