// CUDA C++ on a CPU: what the compiler must know to read a .cu file as plain C++.
//
// The emulator puts this file before a kernel's source. Each thread of a block is a fiber (a stack of its
// own, see emulator_runtime.cpp); whatever threads do together, barriers and shuffles, is a call of the
// runtime.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>
#include <utility>

// C++17's Bessel functions and the like, of which CUDA has none: g++ reads them longer than a small kernel.
#undef _GLIBCXX_USE_STD_SPEC_FUNCS
#include <math.h>

#define __global__ \
    __attribute__((noinline))  // so that its accesses are watched, and those of its caller are not
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__  // two of the arguments may overlap; on a CPU nothing is lost by allowing it
#define __align__(n) alignas(n)

struct EmulatedIndex {  // threadIdx and its like: a kernel reads x, y and z
    unsigned x, y, z;
};

// ---- The runtime: everything that needs to know who else there is.

enum Collective { SYNCWARP, SHUFFLE, BALLOT, ANY, ALL };
enum Vote { SYNCTHREADS, SYNCTHREADS_COUNT, SYNCTHREADS_AND, SYNCTHREADS_OR };

struct EmulatedSharedArray {
    const char *name;
    unsigned bytes, alignment, item, rank, middle, inner;  // of an element; and the last two dimensions
};
template <class Array>
constexpr EmulatedSharedArray emulated_describe(const char *name, unsigned bytes, unsigned alignment) {
    using Item = std::remove_all_extents_t<Array>;
    constexpr unsigned rank = std::rank_v<Array>;
    return {name,
            bytes,
            alignment > alignof(Item) ? alignment : unsigned(alignof(Item)),
            sizeof(Item),
            rank,
            rank > 1 ? unsigned(std::extent_v<Array, rank - 2>) : 1,
            rank ? unsigned(std::extent_v<Array, rank - 1>) : 1};
}

extern "C" {
// `const`: a thread is the same thread as long as it lives, so the compiler may keep the answers.
// x has 32 bits, y and z have 16.
uint64_t emulated_threadIdx() __attribute__((const));
uint64_t emulated_blockIdx() __attribute__((const));
uint64_t emulated_blockDim() __attribute__((const));
uint64_t emulated_gridDim() __attribute__((const));
int emulated_syncthreads(int vote, int predicate, int line);
// What lane `source` gave as `value`, or the result of the vote; 8 bytes hold any type that has a shuffle.
uint64_t emulated_warp(int collective, unsigned mask, uint64_t value, int source);
int emulated_printf(const char *format, ...);
void emulated_fail(const char *message) __attribute__((noreturn));
unsigned emulated_activemask();
void *emulated_shared(const EmulatedSharedArray *array);
void *emulated_dynamic_shared(const EmulatedSharedArray *array);
void emulated_copy_async(void *shared, const void *global, unsigned bytes, unsigned zeros);
void emulated_commit();
void emulated_wait_prior(int n);
void emulated_threadfence();
uint32_t emulated_atomic32(void *address, uint32_t (*update)(uint32_t old, uint32_t value), uint32_t value);
uint32_t emulated_atomic_cas32(void *address, uint32_t compare, uint32_t value);
uint64_t emulated_atomic64(void *address, uint64_t (*update)(uint64_t old, uint64_t value), uint64_t value);
uint64_t emulated_atomic_cas64(void *address, uint64_t compare, uint64_t value);
}

inline EmulatedIndex emulated_index(uint64_t packed) {
    return {unsigned(packed), unsigned(packed >> 32 & 0xffff), unsigned(packed >> 48)};
}
#define threadIdx (emulated_index(emulated_threadIdx()))
#define blockIdx (emulated_index(emulated_blockIdx()))
#define blockDim (emulated_index(emulated_blockDim()))
#define gridDim (emulated_index(emulated_gridDim()))
constexpr int warpSize = 32;

template <class To, class From>
inline To emulated_bits(From from) {
    To to{};
    memcpy(&to, &from, sizeof(From) < sizeof(To) ? sizeof(From) : sizeof(To));
    return to;
}

// ---- Barriers, votes and shuffles.

#define __syncthreads() ((void)emulated_syncthreads(SYNCTHREADS, 0, __LINE__))
#define __syncthreads_count(p) emulated_syncthreads(SYNCTHREADS_COUNT, (p) != 0, __LINE__)
#define __syncthreads_and(p) emulated_syncthreads(SYNCTHREADS_AND, (p) != 0, __LINE__)
#define __syncthreads_or(p) emulated_syncthreads(SYNCTHREADS_OR, (p) != 0, __LINE__)
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated_warp(SYNCWARP, mask, 0, 0); }
inline void __threadfence() { emulated_threadfence(); }
inline void __threadfence_block() {}
inline unsigned __activemask() { return emulated_activemask(); }

inline unsigned __ballot_sync(unsigned mask, int p) { return emulated_warp(BALLOT, mask, p != 0, 0); }
inline int __any_sync(unsigned mask, int p) { return emulated_warp(ANY, mask, p != 0, 0); }
inline int __all_sync(unsigned mask, int p) { return emulated_warp(ALL, mask, p != 0, 0); }

inline int emulated_lane() {
    EmulatedIndex t = threadIdx, n = blockDim;
    return (t.x + n.x * (t.y + n.y * t.z)) % 32;
}
template <class T>
inline T emulated_shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    return emulated_bits<T>(emulated_warp(SHUFFLE, mask, emulated_bits<uint64_t>(value), source));
}
// `width` divides the warp into groups; a lane outside its own group is not read: the value stays.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    int lane = emulated_lane();
    return emulated_shuffle(mask, value, (lane & ~(width - 1)) + (source & (width - 1)));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    int lane = emulated_lane(), source = lane ^ bits;
    return emulated_shuffle(mask, value, (source & ~(width - 1)) <= (lane & ~(width - 1)) ? source : lane);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    int lane = emulated_lane();
    return emulated_shuffle(mask, value,
                            (lane & (width - 1)) + int(delta) < width ? lane + int(delta) : lane);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    int lane = emulated_lane();
    return emulated_shuffle(mask, value, (lane & (width - 1)) >= int(delta) ? lane - int(delta) : lane);
}

// ---- Atomics: relaxed, as on a GPU; they return the old value.

template <class T, class Update>
inline T emulated_atomic(T *address, Update, T value) {
    if constexpr (sizeof(T) == 8) {
        auto update = [](uint64_t a, uint64_t b) {
            return emulated_bits<uint64_t>(T(Update::of(emulated_bits<T>(a), emulated_bits<T>(b))));
        };
        return emulated_bits<T>(emulated_atomic64(address, update, emulated_bits<uint64_t>(value)));
    } else {
        static_assert(sizeof(T) == 4, "atomics are for types of 4 and 8 bytes");
        auto update = [](uint32_t a, uint32_t b) {
            return emulated_bits<uint32_t>(T(Update::of(emulated_bits<T>(a), emulated_bits<T>(b))));
        };
        return emulated_bits<T>(emulated_atomic32(address, update, emulated_bits<uint32_t>(value)));
    }
}
template <class T>
struct EmulatedSame {  // the second argument converts to the type of the first: atomicAdd(&x, 1)
    using type = T;
};
#define EMULATED_ATOMIC(name, expression)                             \
    struct Emulated_##name {                                          \
        template <class T>                                            \
        static T of(T old, T value) {                                 \
            return expression;                                        \
        }                                                             \
    };                                                                \
    template <class T>                                                \
    inline T name(T *address, typename EmulatedSame<T>::type value) { \
        return emulated_atomic(address, Emulated_##name(), value);    \
    }
EMULATED_ATOMIC(atomicAdd, old + value)
EMULATED_ATOMIC(atomicSub, old - value)
EMULATED_ATOMIC(atomicMax, old < value ? value : old)
EMULATED_ATOMIC(atomicMin, value < old ? value : old)
EMULATED_ATOMIC(atomicAnd, old &value)
EMULATED_ATOMIC(atomicOr, old | value)
EMULATED_ATOMIC(atomicXor, old ^ value)
EMULATED_ATOMIC(atomicExch, ((void)old, value))
EMULATED_ATOMIC(atomicInc, old >= value ? 0 : old + 1)

template <class T>
inline T atomicCAS(T *address, typename EmulatedSame<T>::type compare, typename EmulatedSame<T>::type value) {
    if constexpr (sizeof(T) == 8)
        return emulated_bits<T>(
            emulated_atomic_cas64(address, emulated_bits<uint64_t>(compare), emulated_bits<uint64_t>(value)));
    else
        return emulated_bits<T>(
            emulated_atomic_cas32(address, emulated_bits<uint32_t>(compare), emulated_bits<uint32_t>(value)));
}

// ---- float4 and its like. One vector inside, so that a copy is one access of all its bytes, as on a GPU.

#ifdef EMULATED_CHECKS
#define EMULATED_ALIGNMENT(T, n) sizeof(T) * n
#else
#define EMULATED_ALIGNMENT(T, n) sizeof(T)  // other addresses cost a laptop nothing
#endif

template <class T>
struct alignas(EMULATED_ALIGNMENT(T, 2)) EmulatedVector2 {
    typedef T All __attribute__((vector_size(2 * sizeof(T)), aligned(EMULATED_ALIGNMENT(T, 2))));
    union {
        struct {
            T x, y;
        };
        All all;
    };
    EmulatedVector2() = default;
    EmulatedVector2(T x, T y) : all(All{x, y}) {}
    EmulatedVector2(const EmulatedVector2 &other) : all(other.all) {}
    EmulatedVector2 &operator=(const EmulatedVector2 &other) { return all = other.all, *this; }
};
template <class T>
struct EmulatedVector3 {
    T x, y, z;
};
template <class T>
struct alignas(EMULATED_ALIGNMENT(T, 4)) EmulatedVector4 {
    typedef T All __attribute__((vector_size(4 * sizeof(T)), aligned(EMULATED_ALIGNMENT(T, 4))));
    union {
        struct {
            T x, y, z, w;
        };
        All all;
    };
    EmulatedVector4() = default;
    EmulatedVector4(T x, T y, T z, T w) : all(All{x, y, z, w}) {}
    EmulatedVector4(const EmulatedVector4 &other) : all(other.all) {}
    EmulatedVector4 &operator=(const EmulatedVector4 &other) { return all = other.all, *this; }
};
#define EMULATED_VECTORS(T, name)                                      \
    typedef EmulatedVector2<T> name##2;                                \
    typedef EmulatedVector3<T> name##3;                                \
    typedef EmulatedVector4<T> name##4;                                \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(double, double)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned, uint)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(unsigned short, ushort)
EMULATED_VECTORS(signed char, char)
EMULATED_VECTORS(unsigned char, uchar)
EMULATED_VECTORS(long long, longlong)

// ---- Numbers of 16 bits: every operation in float, rounded once.

inline float emulated_half_to_float(uint16_t bits) {
    uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 31) return emulated_bits<float>(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {  // a subnormal number: fraction * 2^-24, exact in float
        float value = fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    return emulated_bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
}
inline uint16_t emulated_float_to_half(float value) {
    uint32_t bits = emulated_bits<uint32_t>(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;          // nan
    if (size >= 0x477ff000u) return sign | 0x7c00;  // rounds to 65536 or more: infinity
    if (size < 0x38800000u)                         // subnormal: adding 0.5 leaves fraction * 2^-24
        return sign | (emulated_bits<uint32_t>(emulated_bits<float>(size) + 0.5f) - 0x3f000000u);
    return sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13);  // to nearest, ties to even
}
inline float emulated_bfloat16_to_float(uint16_t bits) { return emulated_bits<float>(uint32_t(bits) << 16); }
inline uint16_t emulated_float_to_bfloat16(float value) {
    uint32_t bits = emulated_bits<uint32_t>(value);
    if (value != value) return 0x7fff;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
#define EMULATED_FLOAT16(name, to_float, from_float)                                       \
    struct name {                                                                          \
        uint16_t bits;                                                                     \
        name() = default;                                                                  \
        name(float value) : bits(from_float(value)) {}                                     \
        name(double value) : name(float(value)) {}                                         \
        name(int value) : name(float(value)) {}                                            \
        operator float() const { return to_float(bits); }                                  \
        name &operator+=(name other) { return *this = name(float(*this) + float(other)); } \
        name &operator-=(name other) { return *this = name(float(*this) - float(other)); } \
        name &operator*=(name other) { return *this = name(float(*this) * float(other)); } \
        name &operator/=(name other) { return *this = name(float(*this) / float(other)); } \
    };                                                                                     \
    inline name operator+(name a, name b) { return float(a) + float(b); }                  \
    inline name operator-(name a, name b) { return float(a) - float(b); }                  \
    inline name operator*(name a, name b) { return float(a) * float(b); }                  \
    inline name operator/(name a, name b) { return float(a) / float(b); }                  \
    inline name operator-(name a) { return -float(a); }                                    \
    inline bool operator<(name a, name b) { return float(a) < float(b); }                  \
    inline bool operator>(name a, name b) { return float(a) > float(b); }                  \
    inline bool operator<=(name a, name b) { return float(a) <= float(b); }                \
    inline bool operator>=(name a, name b) { return float(a) >= float(b); }                \
    inline bool operator==(name a, name b) { return float(a) == float(b); }                \
    inline bool operator!=(name a, name b) { return float(a) != float(b); }                \
    inline name __hfma(name a, name b, name c) { return fmaf(a, b, c); }                   \
    inline name __hmax(name a, name b) { return fmaxf(a, b); }                             \
    inline name __hmin(name a, name b) { return fminf(a, b); }
EMULATED_FLOAT16(__half, emulated_half_to_float, emulated_float_to_half)
EMULATED_FLOAT16(__nv_bfloat16, emulated_bfloat16_to_float, emulated_float_to_bfloat16)
typedef __half half;
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }

struct alignas(4) __half2 {
    __half x, y;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __half2 half2;
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }

// ---- Arithmetic that CUDA has and C++ has not, or under another name.

using std::abs;
template <class A, class B>
inline auto min(A a, B b) -> decltype(a + b) {
    if constexpr (std::is_floating_point_v<decltype(a + b)>)
        return a != a || b < a ? b : a;
    else
        return decltype(a + b)(b) < decltype(a + b)(a) ? b : a;
}
template <class A, class B>
inline auto max(A a, B b) -> decltype(a + b) {
    if constexpr (std::is_floating_point_v<decltype(a + b)>)
        return a != a || a < b ? b : a;
    else
        return decltype(a + b)(a) < decltype(a + b)(b) ? b : a;
}
#define rsqrtf emulated_rsqrtf  // newer C libraries have functions of these names
#define rsqrt emulated_rsqrt
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
#define __expf expf  // a GPU's fast versions, exact here
#define __exp2f exp2f
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __saturatef(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }
inline void emulated_sincosf(float x, float *sine, float *cosine) { *sine = sinf(x), *cosine = cosf(x); }
#define sincosf emulated_sincosf
#define __sincosf emulated_sincosf

inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }

template <class T>
inline T __ldg(const T *address) {
    return *address;
}
#define __ldca __ldg
#define __ldcg __ldg
#define __ldcs __ldg
template <class T>
inline void __stcs(T *address, T value) {
    *address = value;
}
#define __stcg __stcs

// ---- Asynchronous copies into shared memory (cp.async): the bytes arrive at the wait, not before.

inline void __pipeline_memcpy_async(void *shared, const void *global, size_t bytes, size_t zeros = 0) {
    emulated_copy_async(shared, global, unsigned(bytes), unsigned(zeros));
}
inline void __pipeline_commit() { emulated_commit(); }
inline void __pipeline_wait_prior(int n) { emulated_wait_prior(n); }

#undef assert
#define assert(condition) ((condition) ? (void)0 : emulated_fail("assert(" #condition ") fails."))
#define __trap() emulated_fail("calls __trap().")
#define printf emulated_printf

// ---- How the runtime calls a kernel: the arguments lie where `values` point.

template <class... P, size_t... I>
__attribute__((no_sanitize("thread"))) void emulated_call(void (*kernel)(P...), void **values,
                                                          std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<P> *>(values[I])...);
}
template <class... P>
__attribute__((no_sanitize("thread"))) void emulated_call(void (*kernel)(P...), void **values) {
    emulated_call(kernel, values, std::index_sequence_for<P...>());
}
template <class... P>
constexpr uint64_t emulated_constants(
    void (*)(P...)) {  // a bit for every parameter that is a pointer to const
    uint64_t bits = 0, i = 0;
    ((bits |= uint64_t(std::is_const_v<std::remove_pointer_t<P>>) << i++), ...);
    return bits;
}
#define EMULATED_KERNEL(name)                                                                             \
    extern "C" __attribute__((visibility("default"), no_sanitize("thread"))) void emulated_kernel_##name( \
        void **values) {                                                                                  \
        emulated_call(name, values);                                                                      \
    }                                                                                                     \
    extern "C" __attribute__((visibility("default"))) const uint64_t emulated_constants_##name;           \
    const uint64_t emulated_constants_##name = emulated_constants(name);
