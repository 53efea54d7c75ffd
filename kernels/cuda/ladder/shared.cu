// Rung 3, shared-memory tiles: a block's 32 x 32 threads fetch a tile of A and one of B together, one element
// each, and every element is then used 32 times from shared memory.
//
// Intensity against global memory: 2 * 32^3 FLOPs for two tiles of 32^2 floats, 8 FLOP/byte. Against shared
// memory it is still 2 FLOPs for 2 floats, 1/4 FLOP/byte, and shared memory becomes the limit.
constexpr int TILE = 32;

extern "C" __global__ void __launch_bounds__(TILE *TILE)
matmul(const float *A, const float *B, float *C, int M, int N, int K) {
    __shared__ float As[TILE][TILE], Bs[TILE][TILE];
    int x = threadIdx.x, y = threadIdx.y;
    int row = blockIdx.y * TILE + y, column = blockIdx.x * TILE + x;
    float sum = 0;
    for (int k0 = 0; k0 < K; k0 += TILE) {
        // Zeros stand for what lies outside: they add nothing. No thread leaves early: all meet at barriers.
        As[y][x] = row < M && k0 + x < K ? A[size_t(row) * K + k0 + x] : 0;
        Bs[y][x] = k0 + y < K && column < N ? B[size_t(k0 + y) * N + column] : 0;
        __syncthreads(); // the tiles are complete
        for (int k = 0; k < TILE; k++) sum += As[y][k] * Bs[k][x];
        __syncthreads(); // all have read them: the next may overwrite them
    }
    if (row < M && column < N) C[size_t(row) * N + column] = sum;
}
