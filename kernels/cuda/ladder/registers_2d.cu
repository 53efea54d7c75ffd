// Rung 5, 2-D register tiles: a thread computes 8 x 8 elements. For each k it reads 8 elements of A and 8 of
// B into registers: 64 multiply-adds for 16 reads of shared memory.
//
// Intensity against shared memory: 128 FLOPs for 16 floats, 2 FLOP/byte. Against global memory: a tile of 128
// x 128, 32 FLOP/byte. A tile's side is what counts at both levels: work grows with its area, reads with its
// circumference.
constexpr int BM = 128, BN = 128, BK = 8;
constexpr int TM = 8, TN = 8;
constexpr int THREADS = BM * BN / (TM * TN); // 256

extern "C" __global__ void __launch_bounds__(THREADS)
matmul(const float *A, const float *B, float *C, int M, int N, int K) {
    __shared__ float As[BM][BK], Bs[BK][BN];
    int t = threadIdx.x, m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    int row = t / (BN / TN) * TM, column = t % (BN / TN) * TN;
    float sums[TM][TN] = {};
    for (int k0 = 0; k0 < K; k0 += BK) {
        for (int i = t; i < BM * BK; i += THREADS) {
            int m = i / BK, k = i % BK;
            As[m][k] = m0 + m < M && k0 + k < K ? A[size_t(m0 + m) * K + k0 + k] : 0;
        }
        for (int i = t; i < BK * BN; i += THREADS) {
            int k = i / BN, n = i % BN;
            Bs[k][n] = k0 + k < K && n0 + n < N ? B[size_t(k0 + k) * N + n0 + n] : 0;
        }
        __syncthreads();
        for (int k = 0; k < BK; k++) {
            float a[TM], b[TN];
            for (int i = 0; i < TM; i++) a[i] = As[row + i][k];
            for (int j = 0; j < TN; j++) b[j] = Bs[k][column + j];
            for (int i = 0; i < TM; i++)
                for (int j = 0; j < TN; j++) sums[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < TM; i++)
        for (int j = 0; j < TN; j++)
            if (m0 + row + i < M && n0 + column + j < N)
                C[size_t(m0 + row + i) * N + n0 + column + j] = sums[i][j];
}
