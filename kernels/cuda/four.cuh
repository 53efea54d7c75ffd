// Memory read and written four numbers at a time, wherever they lie so that one instruction can do it.
#pragma once

// N neighbours in memory, which one instruction moves if they begin at a multiple of their size.
template <class T, int N = 4>
struct alignas(N * sizeof(T)) Pack {
    T x[N];
};

template <class T>
__device__ bool in_one_piece(const T *place, int count) {
    return count >= 4 && reinterpret_cast<uint64_t>(place) % sizeof(Pack<T>) == 0;
}

// The first `count` of four numbers at `place`, and zeros for the others.
template <class T>
__device__ Pack<T> read_four(const T *place, int count, int stride = 1) {
    if (stride == 1 && in_one_piece(place, count)) return *reinterpret_cast<const Pack<T> *>(place);
    Pack<T> four;
#pragma unroll
    for (int i = 0; i < 4; i++) four.x[i] = i < count ? place[int64_t(i) * stride] : T(0.0f);
    return four;
}

template <class T>
__device__ void write_four(T *place, int count, const float *values) {
    Pack<T> four;
#pragma unroll
    for (int i = 0; i < 4; i++) four.x[i] = T(values[i]);
    if (in_one_piece(place, count)) {
        *reinterpret_cast<Pack<T> *>(place) = four;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < count) place[i] = four.x[i];
}

template <class T>
__device__ Pack<float> as_floats(const Pack<T> &four) {
    Pack<float> floats;
#pragma unroll
    for (int i = 0; i < 4; i++) floats.x[i] = float(four.x[i]);
    return floats;
}
