// Rung 6, vectorised loads: 16 bytes an instruction (float4) instead of 4, from global and from shared
// memory.
//
// A thread's 8 elements of a row of B are two float4. Its 8 elements of A lie in a column, so A's tile is
// stored transposed: As[k][m]. A quarter as many load instructions; the intensities are rung 5's. A thread's
// columns are 4 + 4, half a tile apart: the 16 bytes that 8 neighbouring threads read are then 128 contiguous
// bytes, one from each of the 32 banks. Rows stay together: few threads of a warp differ there.
constexpr int BM = 128, BN = 128, BK = 8;
constexpr int TM = 8, TN = 8;
constexpr int THREADS = BM * BN / (TM * TN); // 256: each fetches one float4 of A and one of B

// Four neighbours, `left` of them before the row's end; zeros past it. A row's float4s are aligned if its
// length is a multiple of 4.
__device__ float4 load4(const float *from, int left, bool aligned) {
    if (aligned && left > 0) return *reinterpret_cast<const float4 *>(from);
    return make_float4(left > 0 ? from[0] : 0, left > 1 ? from[1] : 0, left > 2 ? from[2] : 0,
                       left > 3 ? from[3] : 0);
}

extern "C" __global__ void __launch_bounds__(THREADS)
matmul(const float *A, const float *B, float *C, int M, int N, int K) {
    __shared__ float As[BK][BM], Bs[BK][BN];
    int t = threadIdx.x, m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    int a_m = t / 2, a_k = t % 2 * 4, b_k = t / 32, b_n = t % 32 * 4; // the first of the four it fetches
    int row = t / 16 * TM, column = t % 16 * 4;
    float sums[TM][TN] = {};
    for (int k0 = 0; k0 < K; k0 += BK) {
        float4 a4 = load4(A + size_t(m0 + a_m) * K + k0 + a_k, m0 + a_m < M ? K - k0 - a_k : 0, K % 4 == 0);
        As[a_k][a_m] = a4.x, As[a_k + 1][a_m] = a4.y, As[a_k + 2][a_m] = a4.z, As[a_k + 3][a_m] = a4.w;
        float4 b4 = load4(B + size_t(k0 + b_k) * N + n0 + b_n, k0 + b_k < K ? N - n0 - b_n : 0, N % 4 == 0);
        *reinterpret_cast<float4 *>(&Bs[b_k][b_n]) = b4;
        __syncthreads();
        for (int k = 0; k < BK; k++) {
            float a[TM], b[TN];
            for (int i = 0; i < TM; i += 4)
                *reinterpret_cast<float4 *>(a + i) = *reinterpret_cast<float4 *>(&As[k][row + i]);
            for (int j = 0; j < TN; j += 4)
                *reinterpret_cast<float4 *>(b + j) = *reinterpret_cast<float4 *>(&Bs[k][column + j * BN / 8]);
            for (int i = 0; i < TM; i++)
                for (int j = 0; j < TN; j++) sums[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < TM; i++)
        for (int j = 0; j < TN; j++) {
            int m = m0 + row + i, n = n0 + column + j % 4 + j / 4 * BN / 2;
            if (m < M && n < N) C[size_t(m) * N + n] = sums[i][j];
        }
}
