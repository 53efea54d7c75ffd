// Numbers side by side in memory, which a thread moves with one instruction.
//
// Memory delivers fastest to threads that ask for 16 bytes each: VECTOR numbers. The compiler makes one
// instruction of a copy if it knows that the numbers begin at a multiple of their size; the host, which knows
// the addresses, takes VECTOR 1 where they do not.
#pragma once

#ifndef VECTOR
#define VECTOR 1
#endif

template <class T>
struct alignas(VECTOR * sizeof(T)) Neighbours {
    T x[VECTOR];
};

template <class T>
__device__ Neighbours<T> read(const T *place) {
    return *reinterpret_cast<const Neighbours<T> *>(place);
}

template <class T>
__device__ void write(T *place, const Neighbours<T> &numbers) {
    *reinterpret_cast<Neighbours<T> *>(place) = numbers;
}

// The same at number i of an array of n, of which the last may have fewer neighbours: those go one by one.
template <class T>
__device__ Neighbours<T> read_some(const T *array, int64_t i, int64_t n) {
    if (i + VECTOR <= n) return read(array + i);
    Neighbours<T> some;
#pragma unroll
    for (int j = 0; j < VECTOR; j++) some.x[j] = i + j < n ? array[i + j] : T(0.0f);
    return some;
}

template <class T>
__device__ void write_some(T *array, int64_t i, int64_t n, const Neighbours<T> &numbers) {
    if (i + VECTOR <= n) return write(array + i, numbers);
#pragma unroll
    for (int j = 0; j < VECTOR; j++)
        if (i + j < n) array[i + j] = numbers.x[j];
}
