// The tensor cores' instructions for a warp (Turing and later), one PTX instruction a function; and the same
// in plain C++ for the emulator, which says exactly what they do.
//
// A fragment is a warp's part of a matrix, spread over the registers of its lanes: lane l holds, of every 8 x
// 8 block, the neighbours (l / 4, l % 4 * 2) and (l / 4, l % 4 * 2 + 1), as the two halves of a 32-bit
// register.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef __CUDA_ARCH__

// Four 8 x 8 blocks from shared memory to fragments: lane i gives the address of row i % 8 of block i / 8.
__device__ __forceinline__ void ldmatrix(unsigned (&block)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(block[0]), "=r"(block[1]), "=r"(block[2]), "=r"(block[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}
// The same, each block transposed on the way.
__device__ __forceinline__ void ldmatrix_transposed(unsigned (&block)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(block[0]), "=r"(block[1]), "=r"(block[2]), "=r"(block[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}

// d (16, 8) += A (16, 16) B (16, 8). a: A's blocks of rows 0-7, then 8-15, for ks 0-7, the same for ks 8-15;
// b: B's blocks of ks 0-7 and 8-15, transposed; d: rows 0-7, then 8-15, in float.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned *b, __half) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else // Turing multiplies half as deep
    for (int k = 0; k < 2; k++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
#endif
}
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned *b, __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

#else // in the emulator: lanes look into each other's registers by shuffles

__device__ inline void ldmatrix(unsigned (&block)[4], const void *row) {
    int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        const void *its = __shfl_sync(0xffffffff, row, i * 8 + lane / 4);
        block[i] = static_cast<const unsigned *>(its)[lane % 4];
    }
}
__device__ inline void ldmatrix_transposed(unsigned (&block)[4], const void *row) {
    int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        const void *low = __shfl_sync(0xffffffff, row, i * 8 + lane % 4 * 2);
        const void *high = __shfl_sync(0xffffffff, row, i * 8 + lane % 4 * 2 + 1);
        block[i] = static_cast<const unsigned short *>(low)[lane / 4] |
                   static_cast<const unsigned short *>(high)[lane / 4] << 16;
    }
}
template <class T>
__device__ inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned *b, T) {
    int lane = threadIdx.x % 32;
    float sums[4] = {};
    for (int k = 0; k < 16; k += 2) {
        unsigned rows[2], columns[2]; // of A and B, those that d needs: two neighbours in K
        for (int h = 0; h < 2; h++) {
            rows[h] = __shfl_sync(0xffffffff, a[k / 8 * 2 + h], lane / 4 * 4 + k % 8 / 2);
            columns[h] = __shfl_sync(0xffffffff, b[k / 8], (lane % 4 * 2 + h) * 4 + k % 8 / 2);
        }
        for (int i = 0; i < 4; i++) {
            const T *x = reinterpret_cast<const T *>(&rows[i / 2]);
            const T *y = reinterpret_cast<const T *>(&columns[i % 2]);
            sums[i] += float(x[0]) * float(y[0]) + float(x[1]) * float(y[1]);
        }
    }
    for (int i = 0; i < 4; i++) d[i] += sums[i];
}

#endif
