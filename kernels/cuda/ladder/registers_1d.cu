// Rung 4, 1-D register tiles: a thread computes 8 elements of one column. It reads an element of B once into
// a register and uses it 8 times, so 8 multiply-adds cost 9 reads of shared memory instead of 16.
//
// Intensity against shared memory: 16 FLOPs for 9 floats, 0.44 FLOP/byte. Against global memory: a tile of 64
// x 64, 16 FLOP/byte. A tile is only 8 deep in K: that fits one element of A and of B to each thread.
constexpr int BM = 64, BN = 64, BK = 8; // the block's tile of C and how deep it goes into K at a time
constexpr int TM = 8;                   // rows of C that a thread computes
constexpr int THREADS = BM * BN / TM;   // 512

extern "C" __global__ void __launch_bounds__(THREADS)
matmul(const float *A, const float *B, float *C, int M, int N, int K) {
    __shared__ float As[BM][BK], Bs[BK][BN];
    int t = threadIdx.x, m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    int a_row = t / BK, a_k = t % BK, b_k = t / BN, b_column = t % BN; // what this thread fetches
    int row = t / BN * TM, column = t % BN;                            // what it computes
    float sums[TM] = {};
    for (int k0 = 0; k0 < K; k0 += BK) {
        bool a_inside = m0 + a_row < M && k0 + a_k < K, b_inside = k0 + b_k < K && n0 + b_column < N;
        As[a_row][a_k] = a_inside ? A[size_t(m0 + a_row) * K + k0 + a_k] : 0;
        Bs[b_k][b_column] = b_inside ? B[size_t(k0 + b_k) * N + n0 + b_column] : 0;
        __syncthreads();
        for (int k = 0; k < BK; k++) {
            float b = Bs[k][column];
            for (int i = 0; i < TM; i++) sums[i] += As[row + i][k] * b;
        }
        __syncthreads();
    }
    for (int i = 0; i < TM; i++)
        if (m0 + row + i < M && n0 + column < N) C[size_t(m0 + row + i) * N + n0 + column] = sums[i];
}
