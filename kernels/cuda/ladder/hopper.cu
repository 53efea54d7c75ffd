// experiment: macros STAGES CLUSTER EPI GROUP FLIP DEPTH BNK
#define STAGES 4
#define CLUSTER 2
#define EPI 2
#define GROUP 8
#define FLIP 0
#define DEPTH 1
#include "hopper.cuh"
#define BM 128
#define BN 256
#define BK 64
constexpr int A_TILE = BM * BK, B_TILE = BN * BK;
#if EPI == 0
constexpr int C_PART = 0;
#elif EPI == 1
constexpr int C_PART = 64 * 256;
#else
constexpr int C_PART = 64 * 128;
#endif
struct Shared {
    __nv_bfloat16 a[STAGES][A_TILE];
    __nv_bfloat16 b[STAGES][B_TILE];
    __nv_bfloat16 c[2][C_PART];
    uint64_t full[STAGES], empty[STAGES];
};
__device__ __forceinline__ void corner(int tile, int rows, int columns, int &m, int &n) {
    int per_group = GROUP * columns, first = tile / per_group * GROUP;
    int height = min(GROUP, rows - first), i = tile % per_group;
    m = (first + i % height) * BM * CLUSTER;
    n = i / height * BN;
}
extern "C" __global__ void
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(384, 1) matmul(const __grid_constant__ CUtensorMap A, const __grid_constant__ CUtensorMap B,
                                 const __grid_constant__ CUtensorMap C, int M, int N, int K) {
    extern __shared__ __align__(1024) unsigned char raw[];
    Shared &s = *reinterpret_cast<Shared *>(raw);
    int rank = CLUSTER > 1 ? cluster_rank() : 0;
    int rows = (M + BM * CLUSTER - 1) / (BM * CLUSTER), columns = (N + BN - 1) / BN, steps = (K + BK - 1) / BK;
    int clusters = gridDim.x / CLUSTER, cluster = blockIdx.x / CLUSTER;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&s.full[i], 1);
            barrier_init(&s.empty[i], 2 * CLUSTER);
        }
        barrier_init_done();
    }
    if (CLUSTER > 1) cluster_sync(); else __syncthreads();
    int group = threadIdx.x / 128;
    if (group == 0) {
        registers_give<40>();
        if (threadIdx.x == 0) {
            int stage = 0, phase = 1, flip = 0;
            for (int tile = cluster; tile < rows * columns; tile += clusters) {
                int m, n;
                corner(tile, rows, columns, m, n);
                m += rank * BM;
                for (int kk = 0; kk < steps; kk++) {
                    int k = (FLIP && flip) ? steps - 1 - kk : kk;
                    barrier_wait(&s.empty[stage], phase);
                    barrier_expect(&s.full[stage], (A_TILE + B_TILE) * 2);
                    tma_load(s.a[stage], &A, &s.full[stage], k * BK, m);
                    int part = BN / CLUSTER;
#ifdef BNK
                    __nv_bfloat16 *to = s.b[stage] + rank * part * BK;
                    if (CLUSTER > 1) tma_load_multicast(to, &B, &s.full[stage], k * BK, n + rank * part, (1 << CLUSTER) - 1);
                    else tma_load(to, &B, &s.full[stage], k * BK, n);
#else
                    for (int j = rank * part; j < (rank + 1) * part; j += 64) {
                        __nv_bfloat16 *to = s.b[stage] + j * BK;
                        if (CLUSTER > 1) tma_load_multicast(to, &B, &s.full[stage], n + j, k * BK, (1 << CLUSTER) - 1);
                        else tma_load(to, &B, &s.full[stage], n + j, k * BK);
                    }
#endif
                    if (++stage == STAGES) stage = 0, phase ^= 1;
                }
                flip ^= 1;
            }
        }
    } else {
        registers_take<232>();
        int half = group - 1, t = threadIdx.x % 128, lane = t % 32, warp = t / 32;
        int stage = 0, phase = 0;
        float d[128];
        for (int tile = cluster; tile < rows * columns; tile += clusters) {
            int m, n;
            corner(tile, rows, columns, m, n);
            m += rank * BM + half * 64;
            int last = 0;
            for (int k = 0; k < steps; k++) {
                barrier_wait(&s.full[stage], phase);
                wgmma_fence();
                uint64_t a = descriptor(s.a[stage] + half * 64 * BK, 16, 1024);
#ifdef BNK
                uint64_t b = descriptor(s.b[stage], 16, 1024);
                constexpr int B_STEP = 2;
#else
                uint64_t b = descriptor(s.b[stage], 64 * BK * 2, 1024);
                constexpr int B_STEP = 128;
#endif
#pragma unroll
                for (int i = 0; i < 4; i++) wgmma(d, a + 2 * i, b + B_STEP * i, k > 0 || i > 0);
                wgmma_commit();
#if DEPTH == 1
                wgmma_wait<1>();
                if (k > 0 && t < CLUSTER) barrier_arrive(&s.empty[last], t);
                last = stage;
#else
                wgmma_wait<0>();
                if (t < CLUSTER) barrier_arrive(&s.empty[stage], t);
#endif
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
#if DEPTH == 1
            wgmma_wait<0>();
            if (t < CLUSTER) barrier_arrive(&s.empty[last], t);
#endif
#if EPI == 0
#pragma unroll
            for (int j = 0; j < 32; j++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int row = m + warp * 16 + h * 8 + lane / 4, column = n + j * 8 + lane % 4 * 2;
                    if (row < M && column < N)
                        *reinterpret_cast<uint32_t *>(out + (int64_t)row * N + column) = pack(d[j * 4 + h * 2], d[j * 4 + h * 2 + 1]);
                }
#else
            constexpr int BLOCKS = EPI == 1 ? 4 : 2;
            int row = warp * 16 + lane % 16;
#pragma unroll
            for (int part = 0; part < 4 / BLOCKS; part++) {
                if (t == 0) tma_store_wait<0>();
                warpgroup_sync(1 + half);
#pragma unroll
                for (int j = 0; j < BLOCKS * 8; j += 2) {
                    int chunk = (j % 8 + lane / 16) ^ (row % 8);
                    float *v = d + (part * BLOCKS * 8 + j) * 4;
                    stmatrix(s.c[half] + j / 8 * 64 * 64 + row * 64 + chunk * 8, pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
                }
                fence_for_tma();
                warpgroup_sync(1 + half);
                if (t == 0)
                    for (int j = 0; j < BLOCKS; j++) tma_store(&C, s.c[half] + j * 64 * 64, n + (part * BLOCKS + j) * 64, m);
            }
#endif
        }
#if EPI > 0
        if (t == 0) tma_store_wait<0>();
#endif
    }
    if (CLUSTER > 1) { __syncwarp(); cluster_sync(); }
}
