// Rung 7, a pipeline: while a block multiplies one pair of tiles, the copies of the next ones are under way.
// They go from global to shared memory without passing through registers (cp.async), into other buffers.
//
// And warp tiles: a block is 2 x 2 warps, each with 64 x 64 of C, a thread with 8 x 16. For each k a thread reads
// 24 floats for 256 FLOPs, 2.7 FLOP/byte against shared memory; a warp touches only 64 + 64 of the tile's
// 128 + 128 floats, neighbouring lanes the same ones, which shared memory sends to all of them at once.
// Intensity against global memory: rung 5's, 32 FLOP/byte.
#include <cuda_pipeline.h>

constexpr int BM = 128, BN = 128, BK = 16, STAGES = 3; // as many buffers as stages: one is read, two are filled
constexpr int WM = 64, WN = 64;                        // a warp's tile
constexpr int TM = 8, TN = 16;                         // a thread's, in rows and groups of 4 columns
constexpr int THREADS = BM / WM * (BN / WN) * 32;      // 128
constexpr int PITCH = BK + 4; // of A's tile: 8 rows begin in different banks, and at multiples of 16 bytes

// W neighbours at once, 4 if all rows begin at multiples of 16 bytes; zeros for what lies outside.
template <int W> __device__ void copy(float *to, const float *from, bool inside) {
    __pipeline_memcpy_async(to, from, W * sizeof(float), inside ? 0 : W * sizeof(float));
}

template <int W> __device__ void fetch(float *a, float *b, const float *A, const float *B, int m0, int n0, int k0,
                                       int M, int N, int K) {
    for (int i = 0; i < BM * BK / W; i += THREADS) {
        int m = (i + threadIdx.x) / (BK / W), k = (i + threadIdx.x) % (BK / W) * W;
        copy<W>(a + m * PITCH + k, A + size_t(m0 + m) * K + k0 + k, m0 + m < M && k0 + k < K);
    }
    for (int i = 0; i < BK * BN / W; i += THREADS) {
        int k = (i + threadIdx.x) / (BN / W), n = (i + threadIdx.x) % (BN / W) * W;
        copy<W>(b + k * BN + n, B + size_t(k0 + k) * N + n0 + n, k0 + k < K && n0 + n < N);
    }
    __pipeline_commit();
}

template <int W> __device__ void product(const float *A, const float *B, float *C, int M, int N, int K) {
    extern __shared__ __align__(16) float tiles[];
    float *As = tiles, *Bs = As + STAGES * BM * PITCH;
    int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Lanes are 8 rows by 4 columns, so that of lanes 2 and 1 apart one has A's, the other B's elements in common.
    int row = warp / (BN / WN) * WM + lane % 2 + lane / 8 * 2, column = warp % (BN / WN) * WN + lane / 2 % 4 * 4;
    float sums[TM][TN] = {};
    for (int s = 0; s < STAGES - 1; s++)
        fetch<W>(As + s * BM * PITCH, Bs + s * BK * BN, A, B, m0, n0, s * BK, M, N, K);
    for (int k0 = 0, stage = 0; k0 < K; k0 += BK, stage = (stage + 1) % STAGES) {
        __pipeline_wait_prior(STAGES - 2); // this stage's copies have arrived, mine
        __syncthreads();                   // and everyone's; and the stage before is read, it can be filled again
        int free = (stage + STAGES - 1) % STAGES;
        fetch<W>(As + free * BM * PITCH, Bs + free * BK * BN, A, B, m0, n0, k0 + (STAGES - 1) * BK, M, N, K);
#pragma unroll
        for (int k = 0; k < BK; k += 4) { // A's tile lies as A does: a float4 is four ks of a row
            float4 a4[TM];
            for (int i = 0; i < TM; i++)
                a4[i] = *reinterpret_cast<float4 *>(As + (stage * BM + row + i * 8) * PITCH + k);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float b[TN];
                for (int j = 0; j < TN; j += 4)
                    *reinterpret_cast<float4 *>(b + j) =
                        *reinterpret_cast<float4 *>(Bs + (stage * BK + k + e) * BN + column + j * 4);
                for (int i = 0; i < TM; i++)
                    for (int j = 0; j < TN; j++) sums[i][j] += reinterpret_cast<float *>(a4 + i)[e] * b[j];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) {
            int m = m0 + row + i * 8, n = n0 + column + j / 4 * 16 + j % 4;
            if (m < M && n < N) C[size_t(m) * N + n] = sums[i][j];
        }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
matmul(const float *A, const float *B, float *C, int M, int N, int K) {
    if (K % 4 == 0 && N % 4 == 0) product<4>(A, B, C, M, N, K);
    else product<1>(A, B, C, M, N, K);
}
