// What Hopper (sm_90a) adds, one PTX instruction a function. CUDA C++ has no names of its own for these.
#pragma once
#include <cuda_bf16.h>

// PTX addresses shared memory by a 32-bit offset into the block's window, not by a generic pointer.
__device__ unsigned offset(const void *p) { return __cvta_generic_to_shared(p); }

// ---- mbarrier: a counter in shared memory, of threads' arrivals and of the copy engine's bytes. When all
// have come its phase ends, and it starts anew. Phases are called 0, 1, 0, 1, ...; one waits for an end.

__device__ void barrier_init(uint64_t *bar, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(offset(bar)), "r"(arrivals));
}
// What was initialised becomes visible to the other blocks of the cluster and to the copy engine.
__device__ void barrier_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// One arrival; and the phase waits for so many bytes more.
__device__ void barrier_expect(uint64_t *bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(offset(bar)), "r"(bytes)
                 : "memory");
}
// One arrival at the barrier in the same place of the cluster's block `rank`. It orders no writes to global
// memory: with `.release.cluster` this kernel would wait for those in every step, and be a third slower.
__device__ void barrier_arrive(uint64_t *bar, int rank) {
    asm volatile("{ .reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(offset(bar)), "r"(rank)
                 : "memory");
}
__device__ void barrier_wait(uint64_t *bar, int phase) {
    int done = 0;
    while (!done) // a try sleeps in hardware until the phase ends, or for a while
        asm volatile("{ .reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.b32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(offset(bar)), "r"(phase) : "memory");
}

// ---- Clusters: blocks on neighbouring SMs that reach into each other's shared memory.

__device__ int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ void cluster_sync() { // __syncthreads() of all its blocks
    asm volatile("barrier.cluster.arrive.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
}

// ---- TMA: the copy engine moves a box of a 2-D array whose corner is (column x, row y). The tensor map
// says where the array is, its shape and pitch, the box and its swizzle. Outside of the array it reads zeros
// and writes nothing.

__device__ void tma_load(void *to, const CUtensorMap *map, uint64_t *bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(offset(to)), "l"(map), "r"(offset(bar)), "r"(x), "r"(y)
                 : "memory");
}
// Into every block whose bit is set in `blocks`, at the same place, counted by the barrier at the same place.
__device__ void tma_load_multicast(void *to, const CUtensorMap *map, uint64_t *bar, int x, int y,
                                   unsigned short blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(offset(to)), "l"(map),
                 "r"(offset(bar)), "r"(x), "r"(y), "h"(blocks) : "memory");
}
__device__ void tma_store(const CUtensorMap *map, const void *from, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\n"
                 "cp.async.bulk.commit_group;" ::"l"(map), "r"(offset(from)), "r"(x), "r"(y) : "memory");
}
// All that this thread asked the engine to store has been read: its shared memory can be written again.
__device__ void tma_store_wait() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
// What this thread wrote into shared memory becomes visible to the copy engine.
__device__ void fence_for_tma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Warpgroups: 4 neighbouring warps that multiply together.

// From here on its threads have N registers: fewer than before, so that another warpgroup can have more.
template <int N> __device__ void registers_give() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ void registers_take() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
__device__ void warpgroup_sync(int which) { // __syncthreads() of a warpgroup
    asm volatile("bar.sync %0, 128;" ::"r"(which) : "memory");
}

// Where an operand lies in shared memory, swizzled as TMA does it for boxes 128 bytes wide: the 16-byte chunk
// c of row r lies at c ^ r % 8. `stride`: bytes from 8 rows to the next 8. `leading`: bytes to the next box,
// for an operand that is more than one box wide.
__device__ uint64_t descriptor(const void *tile, int leading, int stride) {
    uint64_t swizzle_128 = 1ull << 62, place = (offset(tile) & 0x3FFFF) / 16;
    return swizzle_128 | uint64_t(stride / 16) << 32 | uint64_t(leading / 16) << 16 | place;
}

// Before the first wgmma of a step: registers and memory that it reads are as they should be.
__device__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Those asked for since the last commit are a group; wait until all but the last N groups are done.
__device__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#define F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(i) F4(i), F4(i + 4), F4(i + 8), F4(i + 12)
#define F64(i) F16(i), F16(i + 16), F16(i + 32), F16(i + 48)

// d (64, 256) = A (64, 16) B (16, 256), plus d if `accumulate`; each thread has 128 of d's values. Begun
// here, done when wgmma_wait says so. The last immediates: A and B are not negated, A is not transposed, B
// is: what wgmma calls so is a B whose rows, not its columns, are contiguous.
__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{ .reg .pred p;\n setp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, p, 1, 1, 0, 1; }"
        : F64(0), F64(64) : "l"(a), "l"(b), "r"(int(accumulate)));
}

// Four 8 x 8 blocks of 16-bit values, held as wgmma leaves its sums, to rows of 16 bytes in shared memory;
// lane i of a warp gives the address of row i % 8 of block i / 8.
__device__ void stmatrix(void *row, unsigned a, unsigned b, unsigned c, unsigned d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(offset(row)),
                 "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ unsigned pack(float low, float high) { // two of them, as bfloat16
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<unsigned &>(both);
}
