// Rung 8, tensor cores: a warp multiplies 16 x 16 by 16 x 8 in one instruction, mma.sync, 4096 FLOPs, on
// values of 16 bits with sums in float. A warp's tile of 64 x 64 is 4 x 8 of these; the pipeline is rung 7's.
//
// The operands come from shared memory by ldmatrix, 8 rows of 16 bytes at a time. In tiles whose rows lie 64
// or 256 bytes apart such rows share banks, so 16-byte chunks are swizzled: they change places within their
// row, in every row differently. The operands of the next 16 ks are read while these are multiplied.
// Intensity: against global memory a tile of 128 x 128 is 64 FLOP/byte, values being half as long; against
// shared memory a warp reads 64 + 64 values for 64 x 64 products, 32 FLOP/byte.
// Rows of A, B and C begin at multiples of 16 bytes: they are K or N values, rounded up to a multiple of 8,
// long.
#include "mma.cuh"
#include <cuda_pipeline.h>

constexpr int BM = 128, BN = 128, BK = 32, STAGES = 4; // 64 KiB: what a Turing GPU has
constexpr int WM = 64, WN = 64;
constexpr int THREADS = BM / WM * (BN / WN) * 32;                       // 128
constexpr int A_ROWS = THREADS / (BK / 8), B_ROWS = THREADS / (BN / 8); // that the block copies at once

// Where chunk c, 8 values, of a row lies: those of 8 neighbouring rows lie in 8 different groups of 4 banks.
__device__ int a_place(int row, int c) { return row * BK + (c ^ row / 2 % 4) * 8; } // two rows are 128 bytes
__device__ int b_place(int row, int c) { return row * BN + (c ^ row % 8) * 8; }

extern "C" __global__ void __launch_bounds__(THREADS, 2)
matmul(const scalar *A, const scalar *B, scalar *C, int M, int N, int K) {
    extern __shared__ __align__(16) scalar tiles[]; // STAGES tiles of A, then STAGES tiles of B
    int a_pitch = (K + 7) / 8 * 8, b_pitch = (N + 7) / 8 * 8;
    int t = threadIdx.x, m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, lane = t % 32, warp = t / 32;
    int a_m = t / (BK / 8), a_c = t % (BK / 8), b_k = t / (BN / 8), b_c = t % (BN / 8); // what it copies
    const scalar *a_from = A + size_t(m0 + a_m) * a_pitch + a_c * 8;
    const scalar *b_from = B + size_t(b_k) * b_pitch + n0 + b_c * 8;
    auto fetch = [&](int k0, int stage) {
        scalar *a = tiles + stage * BM * BK, *b = tiles + (STAGES * BM + stage * BN) * BK;
#pragma unroll
        for (int m = 0; m < BM; m += A_ROWS) {
            bool inside = m0 + a_m + m < M && k0 + a_c * 8 < K;
            scalar *to = a + a_place(a_m, a_c) + m * BK;
            __pipeline_memcpy_async(to, a_from + m * a_pitch, 16, inside ? 0 : 16);
        }
#pragma unroll
        for (int k = 0; k < BK; k += B_ROWS) {
            bool inside = k0 + b_k + k < K && n0 + b_c * 8 < N;
            scalar *to = b + b_place(b_k, b_c) + k * BN;
            __pipeline_memcpy_async(to, b_from + k * b_pitch, 16, inside ? 0 : 16);
        }
        __pipeline_commit();
        a_from += BK, b_from += size_t(BK) * b_pitch;
    };
    int wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
    unsigned a[2][WM / 16][4], b[2][WN / 16][4]; // operands now and next; each of b's holds 16 columns
    auto read = [&](int stage, int k) {
        const scalar *a_tile = tiles + stage * BM * BK, *b_tile = tiles + (STAGES * BM + stage * BN) * BK;
        for (int i = 0; i < WM / 16; i++)
            ldmatrix(a[k / 16 % 2][i], a_tile + a_place(wm + i * 16 + lane % 16, k / 8 + lane / 16));
        for (int j = 0; j < WN / 16; j++)
            ldmatrix_transposed(b[k / 16 % 2][j],
                                b_tile + b_place(k + lane % 16, wn / 8 + j * 2 + lane / 16));
    };
    auto arrived = [] { // the copies of the next stage: mine, then everyone's
        __pipeline_wait_prior(STAGES - 2);
        __syncthreads();
    };
    float sums[WM / 16][WN / 8][4] = {};
    for (int s = 0; s < STAGES - 1; s++) fetch(s * BK, s);
    arrived();
    read(0, 0);
    for (int k0 = 0, stage = 0; k0 < K; k0 += BK) {
        fetch(k0 + (STAGES - 1) * BK, (stage + STAGES - 1) % STAGES);
#pragma unroll
        for (int k = 0; k < BK; k += 16) {
            if (k + 16 == BK) arrived(), stage = (stage + 1) % STAGES;
            read(stage, (k + 16) % BK);
            for (int i = 0; i < WM / 16; i++)
                for (int j = 0; j < WN / 8; j++)
                    mma(sums[i][j], a[k / 16 % 2][i], b[k / 16 % 2][j / 2] + j % 2 * 2, scalar());
        }
    }
#pragma unroll
    for (int i = 0; i < WM / 16; i++)
        for (int j = 0; j < WN / 8; j++)
            for (int e = 0; e < 4; e++) {
                int m = m0 + wm + i * 16 + e / 2 * 8 + lane / 4, n = n0 + wn + j * 8 + lane % 4 * 2 + e % 2;
                if (m < M && n < N) C[size_t(m) * b_pitch + n] = scalar(sums[i][j][e]);
            }
}
