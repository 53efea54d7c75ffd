// Rung 1, naive: one thread computes one element of C (M, N) = A (M, K) B (K, N), all row-major.
//
// Threads of a warp differ in threadIdx.x, here the row. So the 32 of them read A at 32 addresses K floats
// apart, in 32 different sectors of 32 bytes, and use 4 bytes of each; C is written the same way.
// Intensity: 2 FLOPs for every 2 floats asked of memory, 1/4 FLOP/byte before the caches help.
extern "C" __global__ void matmul(const float *A, const float *B, float *C, int M, int N, int K) {
    int row = blockIdx.y * 32 + threadIdx.x;
    int column = blockIdx.x * 32 + threadIdx.y;
    if (row >= M || column >= N) return;
    float sum = 0;
    for (int k = 0; k < K; k++) sum += A[size_t(row) * K + k] * B[size_t(k) * N + column];
    C[size_t(row) * N + column] = sum;
}
