// Included by emulator_intrinsics.cu: device functions, and a __shared__ array in a template, one for each N.
#pragma once

template <class T, int N>
struct Pair {
    T values[N];
};

__device__ __forceinline__ float twice(float x) { return 2 * x; }

template <int N>
__device__ int counted() {
    __shared__ int all[N];
    if (threadIdx.x < N) all[threadIdx.x] = 1;
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < N; i++) sum += all[i];
    return sum;
}
