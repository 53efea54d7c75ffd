// Rung 7, a pipeline: while a block multiplies one pair of tiles, the copies of the next two are under way.
// They go from global to shared memory without passing through registers (cp.async), into other buffers.
//
// And bigger tiles in two levels. A thread computes 16 x 8 elements: for each k it reads 24 floats for 256
// FLOPs, 2.7 FLOP/byte against shared memory. A warp computes 64 x 64, so of a tile's 128 + 256 floats it
// touches 64 + 64 only, and lanes that ask for the same ones are served together.
// Intensity against global memory: a tile of 128 x 256, 43 FLOP/byte.
#include <cuda_pipeline.h>

constexpr int BM = 128, BN = 256, BK = 8;
constexpr int STAGES = 3;                         // buffers: one is read while two are filled
constexpr int WM = 64, WN = 64;                   // a warp's tile: 4 x 8 lanes
constexpr int TM = 16, TN = 8;                    // a thread's: 4 rows in every 16, 4 columns in every 32
constexpr int THREADS = BM / WM * (BN / WN) * 32; // 256

using TileA = float[BK][BM + 4]; // transposed; rows 4 longer, so that a warp writes to different banks
using TileB = float[BK][BN];

// One asynchronous copy of W floats; zeros for what lies outside.
template <int W> __device__ void copy(float *to, const float *from, bool inside) {
    __pipeline_memcpy_async(to, from, W * sizeof(float), inside ? 0 : W * sizeof(float));
}

template <int W> // W: how many neighbours of a row of B are copied at once
__device__ void product(TileA *As, TileB *Bs, const float *A, const float *B, float *C, int M, int N, int K) {
    int t = threadIdx.x, m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, lane = t % 32, warp = t / 32;
    // What this thread copies: every A_ROWS-th row of a column of A's tile, every B_ROWS-th of 1 or 4 of B's.
    constexpr int A_ROWS = THREADS / BK, B_ROWS = THREADS / (BN / W);
    int a_m = t / BK, a_k = t % BK, b_k = t / (BN / W), b_n = t % (BN / W) * W;
    const float *a_from = A + size_t(m0 + a_m) * K + a_k, *b_from = B + size_t(b_k) * N + n0 + b_n;
    auto fetch = [&](int k0, int stage) {
#pragma unroll
        for (int m = 0; m < BM; m += A_ROWS)
            copy<1>(&As[stage][a_k][a_m + m], a_from + m * K, m0 + a_m + m < M && k0 + a_k < K);
#pragma unroll
        for (int k = 0; k < BK; k += B_ROWS)
            copy<W>(&Bs[stage][b_k + k][b_n], b_from + k * N, k0 + b_k + k < K && n0 + b_n < N);
        __pipeline_commit();
        a_from += BK, b_from += size_t(BK) * N;
    };
    // Lanes next to each other, in both directions, have A's or B's elements in common.
    int row = warp / (BN / WN) * WM + (lane / 16 * 2 + lane % 2) * 4;
    int column = warp % (BN / WN) * WN + lane / 2 % 8 * 4;
    float sums[TM][TN] = {};
    for (int s = 0; s < STAGES - 1; s++) fetch(s * BK, s);
    for (int k0 = 0, stage = 0; k0 < K; k0 += BK, stage = (stage + 1) % STAGES) {
        __pipeline_wait_prior(STAGES - 2); // my copies for this stage have arrived,
        __syncthreads();                   // and everyone's. All have read the stage before: refill that
        fetch(k0 + (STAGES - 1) * BK, (stage + STAGES - 1) % STAGES);
#pragma unroll
        for (int k = 0; k < BK; k++) {
            float a[TM], b[TN];
            for (int i = 0; i < TM; i += 4)
                *reinterpret_cast<float4 *>(a + i) =
                    *reinterpret_cast<float4 *>(&As[stage][k][row + i * 4]);
            for (int j = 0; j < TN; j += 4)
                *reinterpret_cast<float4 *>(b + j) =
                    *reinterpret_cast<float4 *>(&Bs[stage][k][column + j * 8]);
            for (int i = 0; i < TM; i++)
                for (int j = 0; j < TN; j++) sums[i][j] += a[i] * b[j];
        }
    }
    for (int i = 0; i < TM; i++)
        for (int j = 0; j < TN; j++) {
            int m = m0 + row + i / 4 * 16 + i % 4, n = n0 + column + j / 4 * 32 + j % 4;
            if (m < M && n < N) C[size_t(m) * N + n] = sums[i][j];
        }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
matmul(const float *A, const float *B, float *C, int M, int N, int K) {
    __shared__ __align__(16) TileA As[STAGES];
    __shared__ __align__(16) TileB Bs[STAGES];
    if (N % 4 == 0) product<4>(As, Bs, A, B, C, M, N, K); // all rows of B begin at multiples of 16 bytes
    else product<1>(As, Bs, A, B, C, M, N, K);
}
