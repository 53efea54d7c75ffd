// Rung 8, tensor cores: a warp multiplies 16 x 16 by 16 x 8 in one instruction, mma.sync, 4096 FLOPs, on values of
// 16 bits with sums in float. Tiles, warps and pipeline are rung 7's.
//
// The fragments come from shared memory by ldmatrix, 8 rows of 16 bytes a block. In tiles whose rows lie 64 or
// 256 bytes apart these would share banks, so 16-byte chunks are swizzled: they change places within a row, by
// another pattern in every row. No byte is spent on padding.
// Intensity: against global memory a tile of 128 x 128 now is 64 FLOP/byte, values being half as long; against
// shared memory a warp reads 64 + 64 values for 64 x 64 products, 32 FLOP/byte.
// Rows of A, B and C are as long as memory has them: lengths rounded up to a multiple of 8 values, 16 bytes.
#include "mma.cuh"
#include <cuda_pipeline.h>

constexpr int BM = 128, BN = 128, BK = 32, STAGES = 4;
constexpr int WM = 64, WN = 64;                   // a warp's tile: 4 x 8 blocks of mma's 16 x 8
constexpr int THREADS = BM / WM * (BN / WN) * 32; // 128

// Where chunk c, 8 values, of a row lies: 8 neighbouring rows have theirs in 8 different groups of 4 banks.
__device__ int a_place(int row, int c) { return row * BK + (c ^ row / 2 % 4) * 8; } // two rows are 128 bytes
__device__ int b_place(int row, int c) { return row * BN + (c ^ row % 8) * 8; }

__device__ void fetch(scalar *a, scalar *b, const scalar *A, const scalar *B, int m0, int n0, int k0, int M, int N,
                      int K) {
    size_t a_pitch = (K + 7) / 8 * 8, b_pitch = (N + 7) / 8 * 8;
#pragma unroll
    for (int i = 0; i < BM * BK / 8; i += THREADS) {
        int m = (i + threadIdx.x) / (BK / 8), c = (i + threadIdx.x) % (BK / 8);
        bool inside = m0 + m < M && k0 + c * 8 < K;
        __pipeline_memcpy_async(a + a_place(m, c), A + (m0 + m) * a_pitch + k0 + c * 8, 16, inside ? 0 : 16);
    }
#pragma unroll
    for (int i = 0; i < BK * BN / 8; i += THREADS) {
        int k = (i + threadIdx.x) / (BN / 8), c = (i + threadIdx.x) % (BN / 8);
        bool inside = k0 + k < K && n0 + c * 8 < N;
        __pipeline_memcpy_async(b + b_place(k, c), B + (k0 + k) * b_pitch + n0 + c * 8, 16, inside ? 0 : 16);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
matmul(const scalar *A, const scalar *B, scalar *C, int M, int N, int K) {
    extern __shared__ __align__(16) scalar tiles[];
    scalar *As = tiles, *Bs = As + STAGES * BM * BK;
    int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
    float sums[WM / 16][WN / 8][4] = {};
    for (int s = 0; s < STAGES - 1; s++) {
        fetch(As + s * BM * BK, Bs + s * BK * BN, A, B, m0, n0, s * BK, M, N, K);
        __pipeline_commit();
    }
    for (int k0 = 0, stage = 0; k0 < K; k0 += BK, stage = (stage + 1) % STAGES) {
        __pipeline_wait_prior(STAGES - 2); // this stage's copies have arrived, mine
        __syncthreads();                   // and everyone's; and the stage before is read, it can be filled again
        int free = (stage + STAGES - 1) % STAGES;
        fetch(As + free * BM * BK, Bs + free * BK * BN, A, B, m0, n0, k0 + (STAGES - 1) * BK, M, N, K);
        __pipeline_commit();
        for (int k = 0; k < BK; k += 16) {
            unsigned a[WM / 16][4], b[WN / 16][4]; // of b: two blocks of 8 columns each
            const scalar *a_tile = As + stage * BM * BK, *b_tile = Bs + stage * BK * BN;
            for (int i = 0; i < WM / 16; i++) ldmatrix(a[i], a_tile + a_place(wm + i * 16 + lane % 16, k / 8 + lane / 16));
            for (int j = 0; j < WN / 16; j++)
                ldmatrix_transposed(b[j], b_tile + b_place(k + lane % 16, wn / 8 + j * 2 + lane / 16));
            for (int i = 0; i < WM / 16; i++)
                for (int j = 0; j < WN / 8; j++) mma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], scalar());
        }
    }
    size_t c_pitch = (N + 7) / 8 * 8;
#pragma unroll
    for (int i = 0; i < WM / 16; i++)
#pragma unroll
        for (int j = 0; j < WN / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int m = m0 + wm + i * 16 + e / 2 * 8 + lane / 4, n = n0 + wn + j * 8 + lane % 4 * 2 + e % 2;
                if (m < M && n < N) C[m * c_pitch + n] = scalar(sums[i][j][e]);
            }
}
