// What Hopper (sm_90a) adds, one PTX instruction a function. CUDA C++ has no names of its own for these.
#pragma once
#include <cuda_bf16.h>

// PTX addresses shared memory by a 32-bit offset into the block's window, not by a generic pointer.
__device__ __forceinline__ uint32_t shared_address(const void *p) { return __cvta_generic_to_shared(p); }

// ---- mbarrier: a counter in shared memory that threads, and the copy engine, count down; at zero its phase
// flips (0, 1, 0, ...) and it starts anew. Waiting is for the end of the phase with a given parity.
__device__ __forceinline__ void barrier_init(uint64_t *bar, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals));
}
// Initialised barriers become visible to the other block of the cluster and to the copy engine.
__device__ __forceinline__ void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// One arrival, and the phase also waits for so many bytes from the copy engine.
__device__ __forceinline__ void barrier_expect(uint64_t *bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}
// One arrival at the same barrier of the block with this rank in the cluster.
__device__ __forceinline__ void barrier_arrive(uint64_t *bar, int rank) {
    asm volatile(
        "{ .reg .b32 there;\n mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there]; }" ::"r"(shared_address(bar)), "r"(rank) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t *bar, int parity) {
    int done = 0;
    while (!done) // each try sleeps in hardware for a while
        asm volatile(
            "{ .reg .pred p;\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n selp.b32 %0, 1, 0, p; }"
            : "=r"(done) : "r"(shared_address(bar)), "r"(parity) : "memory");
}

// ---- Clusters: blocks that run on neighbouring SMs and reach each other's shared memory.
__device__ __forceinline__ int cluster_rank() { int r; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
}

// ---- TMA: the copy engine moves a box of a 2-D array; the tensor map holds its address, shape, pitch and
// box. Outside of the array it reads zeros and writes nothing. (x, y) = (column, row) of the box's corner.
__device__ __forceinline__ void tma_prefetch(const CUtensorMap *map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
__device__ __forceinline__ void tma_load(void *to, const CUtensorMap *map, uint64_t *bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
        ::"r"(shared_address(to)), "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y) : "memory");
}
// The same into the shared memory of every block in `mask`, at the same offset, counted at its own barrier.
__device__ __forceinline__ void tma_load_multicast(void *to, const CUtensorMap *map, uint64_t *bar, int x, int y, unsigned short mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;"
        ::"r"(shared_address(to)), "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "h"(mask) : "memory");
}
__device__ __forceinline__ void tma_store(const CUtensorMap *map, const void *from, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\n cp.async.bulk.commit_group;"
        ::"l"(map), "r"(shared_address(from)), "r"(x), "r"(y) : "memory");
}
// The calling thread's stores have read their shared memory, all but the last N.
template <int N> __device__ __forceinline__ void tma_store_wait() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }
// Ordinary writes to shared memory become visible to the copy engine.
__device__ __forceinline__ void fence_for_tma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Warpgroups: 4 warps, 128 threads, that multiply together.
// Registers a thread may use from here on; the whole warpgroup says so. Given up by some, taken by others.
template <int N> __device__ __forceinline__ void registers_give() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ __forceinline__ void registers_take() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
__device__ __forceinline__ void warpgroup_sync(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }

// wgmma reads its operands through descriptors: where in shared memory, and how far apart its 8 x 8 cores
// lie. With the 128-byte swizzle that TMA wrote (16-byte chunk c of row r lies at c ^ r % 8), `stride` is from
// 8 rows to the next 8; `leading`, for an operand whose rows are longer than 128 bytes, to the next 128.
__device__ __forceinline__ uint64_t descriptor(const void *tile, int leading, int stride) {
    uint64_t swizzle_128 = 1ull << 62;
    return swizzle_128 | (uint64_t)(stride >> 4) << 32 | (uint64_t)(leading >> 4) << 16 | (shared_address(tile) & 0x3FFFF) >> 4;
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define F8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define F32(i) F8(i), F8(i + 8), F8(i + 16), F8(i + 24)
// d (64, 256) = A (64, 16) B (16, 256) [+ d if accumulate]; 128 of d's values in each thread. A's rows and
#ifdef BNK
#define TB "0"
#else
#define TB "1"
#endif
// B's rows are contiguous in memory: the last two immediates say that A is not transposed and B is.
__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t a, uint64_t b, int accumulate) {
    asm volatile("{ .reg .pred p;\n setp.ne.b32 p, %130, 0;\n wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, p, 1, 1, 0, " TB "; }"
        : F32(0), F32(32), F32(64), F32(96) : "l"(a), "l"(b), "r"(accumulate));
}

// Four 8 x 8 blocks of 16-bit values from the layout of an accumulator to rows of 16 bytes; lane i of the
// warp gives the address of row i % 8 of block i / 8.
__device__ __forceinline__ void stmatrix(void *row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
        ::"r"(shared_address(row)), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ __forceinline__ uint32_t pack(float x, float y) {
    __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
    return reinterpret_cast<uint32_t &>(v);
}
