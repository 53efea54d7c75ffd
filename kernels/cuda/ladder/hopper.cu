// Rung 9, Hopper: wgmma and TMA. A warpgroup, 4 warps, multiplies 64 x 16 by 16 x 256 in one instruction that
// reads both operands from shared memory and runs on while the warps go on; the copy engine (TMA) moves whole
// tiles when one thread asks. Each wrapper of a PTX instruction is explained in hopper.cuh.
//
// Warps specialise. One producer thread asks for tiles, two consumer warpgroups multiply, each 64 rows of a
// block's 128 x 256; between them are STAGES buffers with two barriers each: `full`, the bytes have arrived,
// and `empty`, all have read them. Nobody else waits. The producer gives its registers to the consumers' 128
// sums a thread.
// Blocks are persistent, one an SM: while consumers write out a tile, the next one's operands arrive.
// Two blocks, a cluster, compute tiles one above the other. They need the same tile of B: each fetches half
// of it, and the copy engine writes it into both. That saves a third of the reads from L2, and no time that
// could be measured at 8192: there the H100 is at its power limit.
// Intensity: a cluster's tile of 256 x 256 is 128 FLOP/byte against global memory. From shared memory wgmma
// reads 64 x 16 and 16 x 256 values for 64 x 256 x 16 products, 51 FLOP/byte, and no register holds an
// operand.
#include "hopper.cuh"

constexpr int BM = 128, BN = 256, BK = 64, STAGES = 4; // BK: 128 bytes, as wide as the swizzle
constexpr int BLOCKS = 2;                              // of a cluster
constexpr int GROUP = 8;                               // rows of clusters' tiles that are computed together

struct Shared { // 224 KiB and 64 bytes
    __nv_bfloat16 a[STAGES][BM][BK], b[STAGES][BN / 64][BK][64];
    __nv_bfloat16 c[2][2][64][64]; // of each consumer: half of its tile on its way out
    uint64_t full[STAGES], empty[STAGES];
};

// The corner (row, column) of a cluster's tile. Tiles that are computed at the same time are neighbours in
// both directions, so that most of what they read is in the L2 cache.
__device__ int2 corner(int tile, int rows, int columns) {
    int first = tile / (GROUP * columns) * GROUP, i = tile % (GROUP * columns);
    int height = min(GROUP, rows - first);
    return make_int2((first + i % height) * BM * BLOCKS, i / height * BN);
}

extern "C" __global__ void __cluster_dims__(BLOCKS) __launch_bounds__(384, 1)
matmul(const __grid_constant__ CUtensorMap A, const __grid_constant__ CUtensorMap B,
       const __grid_constant__ CUtensorMap C, int M, int N, int K) {
    extern __shared__ __align__(1024) unsigned char memory[]; // the swizzle repeats every 1024 bytes
    Shared &s = *reinterpret_cast<Shared *>(memory);
    int rank = cluster_rank(), clusters = gridDim.x / BLOCKS, cluster = blockIdx.x / BLOCKS;
    int rows = (M + BM * BLOCKS - 1) / (BM * BLOCKS), columns = (N + BN - 1) / BN, steps = (K + BK - 1) / BK;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&s.full[i], 1);           // the producer, and the bytes it expects
            barrier_init(&s.empty[i], 2 * BLOCKS); // all consumers of the cluster: B goes to both blocks
        }
        barrier_init_done();
    }
    cluster_sync();
    int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0); // now the compiler knows: a whole warp's
    if (group == 0) { // ---- The producer
        registers_give<40>();
        if (threadIdx.x == 0)
            for (int tile = cluster, stage = 0, phase = 1; tile < rows * columns; tile += clusters) {
                int2 at = corner(tile, rows, columns);
                for (int k = 0; k < K; k += BK) {
                    barrier_wait(&s.empty[stage], phase); // phase 1 has "ended" before the first one begins
                    barrier_expect(&s.full[stage], sizeof(s.a[0]) + sizeof(s.b[0]));
                    tma_load(s.a[stage], &A, &s.full[stage], k, at.x + rank * BM);
                    for (int j = rank * 2; j < rank * 2 + 2; j++) // half of B's tile, for both blocks
                        tma_load_multicast(s.b[stage][j], &B, &s.full[stage], at.y + j * 64, k, 0b11);
                    if (++stage == STAGES) stage = 0, phase ^= 1;
                }
            }
    } else { // ---- A consumer
        registers_take<232>();
        int half = group - 1, t = threadIdx.x % 128, lane = t % 32, row = t / 32 * 16 + lane % 16;
        float sums[128];
        for (int tile = cluster, stage = 0, phase = 0; tile < rows * columns; tile += clusters) {
            int2 at = corner(tile, rows, columns);
            int before = 0;
            for (int step = 0; step < steps; step++) {
                barrier_wait(&s.full[stage], phase);
                // 8 rows of A, 8 ks of B are 1024 bytes; B's next 64 columns are the next box.
                uint64_t a = descriptor(s.a[stage][half * 64], 0, 1024);
                uint64_t b = descriptor(s.b[stage], sizeof(s.b[0][0]), 1024);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < BK / 16; k++) // a step of 16 ks: in A 32 bytes, in B 16 rows; over 16
                    wgmma(sums, a + k * 2, b + k * 128, step > 0 || k > 0);
                wgmma_commit();
                wgmma_wait<1>(); // these may run on, those of the step before have read their tiles
                if (step > 0 && t < BLOCKS) barrier_arrive(&s.empty[before], t);
                before = stage;
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
            wgmma_wait<0>();
            if (t < BLOCKS) barrier_arrive(&s.empty[before], t);
#pragma unroll
            for (int part = 0; part < 2; part++) { // of the 256 columns, through the same 16 KiB
                if (t == 0) tma_store_wait();      // the part before is read
                warpgroup_sync(group);
#pragma unroll
                for (int j = 0; j < 16; j += 2) { // 16 columns, two chunks; swizzled, as TMA expects them
                    float *v = sums + (part * 16 + j) * 4;
                    stmatrix(&s.c[half][j / 8][row][((j % 8 + lane / 16) ^ row % 8) * 8], pack(v[0], v[1]),
                             pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
                }
                fence_for_tma();
                warpgroup_sync(group);
                if (t == 0)
                    for (int j = 0; j < 2; j++)
                        tma_store(&C, s.c[half][j], at.y + part * 128 + j * 64, at.x + rank * BM + half * 64);
            }
        }
        if (t == 0) tma_store_wait();
    }
    __syncwarp();
    cluster_sync(); // the other block may still write into this one's memory, or arrive at its barriers
}
