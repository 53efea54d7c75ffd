// Memory read and written several numbers at a time, wherever they lie so that one instruction can do it.
#pragma once

// N neighbours in memory, which one instruction moves if they begin at a multiple of their size.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
    T x[N];
};

template <int N, class T>
__device__ bool in_one_piece(const T *place, int count) {
    return count >= N && reinterpret_cast<uint64_t>(place) % sizeof(Pack<T, N>) == 0;
}

// The first `count` of N numbers at `place`, and zeros for the others.
template <int N, class T>
__device__ Pack<T, N> read_pack(const T *place, int count, int stride = 1) {
    if (stride == 1 && in_one_piece<N>(place, count)) return *reinterpret_cast<const Pack<T, N> *>(place);
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack.x[i] = i < count ? place[int64_t(i) * stride] : T(0.0f);
    return pack;
}

// The first `count` of N values, as T, to `place`.
template <int N, class T>
__device__ void write_pack(T *place, int count, const float *values) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack.x[i] = T(values[i]);
    if (in_one_piece<N>(place, count)) {
        *reinterpret_cast<Pack<T, N> *>(place) = pack;
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < count) place[i] = pack.x[i];
}

template <class T, int N>
__device__ Pack<float, N> as_floats(const Pack<T, N> &pack) {
    Pack<float, N> floats;
#pragma unroll
    for (int i = 0; i < N; i++) floats.x[i] = float(pack.x[i]);
    return floats;
}
