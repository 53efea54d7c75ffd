"""Mistakes that a careful person could make in the exercises of notebook 13."""

import itertools
import math


def _bytes(of_a=lambda M, N, BM, BN: math.ceil(N / BN), of_b=lambda M, N, BM, BN: math.ceil(M / BM), of_c=1):
    def bytes_asked(M, N, K, BM, BN, itemsize):
        shape = M, N, BM, BN
        return (M * K * of_a(*shape) + K * N * of_b(*shape) + of_c * M * N) * itemsize

    return bytes_asked


TRANSPOSED = r"""
constexpr int TILE = 32;
extern "C" __global__ void matmul(const float *At, const float *B, float *C, int M, int N, int K) {
    __shared__ float As[TILE][TILE], Bs[TILE][TILE];
    int x = threadIdx.x, y = threadIdx.y, m0 = blockIdx.y * TILE;
    int row = m0 + y, column = blockIdx.x * TILE + x;
    float sum = 0;
    for (int k0 = 0; k0 < K; k0 += TILE) {
        As[y][x] = k0 + y < K && m0 + x < M ? At[size_t(k0 + y) * M + m0 + x] : 0;
        Bs[y][x] = k0 + y < K && column < N ? B[size_t(k0 + y) * N + column] : 0;
        __syncthreads();
        for (int k = 0; k < TILE; k++) sum += As[k][y] * Bs[k][x];
        __syncthreads();
    }
    if (row < M && column < N) C[size_t(row) * N + column] = sum;
}
"""
FETCH = "As[y][x] = k0 + y < K && m0 + x < M ? At[size_t(k0 + y) * M + m0 + x] : 0;"
AS_IF = "As[x][y] = k0 + x < K && row < M ? At[size_t(row) * K + k0 + x] : 0;"


def _choose(shared_of=1.0, most_registers=255, most_threads=1024, key=None):
    def choose(shared, stages):
        def fits(c):
            BM, BN, BK, TM, TN = c
            threads, registers = BM * BN // (TM * TN), TM * TN + TM + TN + 40
            return (
                128 <= threads <= most_threads
                and registers <= most_registers
                and registers * threads <= 65536
                and stages * (BM + BN) * BK * 4 <= shared * shared_of
            )

        sides, parts = (32, 64, 128, 256), (4, 8, 16)
        every = itertools.product(sides, sides, (8, 16, 32), parts, parts)
        return max(filter(fits, every), key=key or _best)

    return choose


def _best(c):
    BM, BN, BK, TM, TN = c
    return BM * BN / (BM + BN), TM * TN / (TM + TN), BK


SPLIT = r"""
extern "C" __global__ void partial_products(const float *A, const float *B, float *P, int M, int N, int K,
                                            int depth) {
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x, z = blockIdx.z;
    if (row >= M || column >= N) return;
    float sum = 0;
    for (int k = z * depth; k < min((z + 1) * depth, K); k++) sum += A[row * K + k] * B[k * N + column];
    P[(size_t(z) * M + row) * N + column] = sum;
}
extern "C" __global__ void add_up(const float *P, float *C, int parts, int count) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    float sum = 0;
    for (int z = 0; z < parts; z++) sum += P[size_t(z) * count + i];
    C[i] = sum;
}
"""
IN_ORDER = "for (int z = 0; z < parts; z++) sum"

WRONG_ANSWERS = {
    "13.1": [
        (_bytes(of_c=0), "C, written once, is missing"),
        (
            _bytes(lambda M, N, BM, BN: math.ceil(M / BM), lambda M, N, BM, BN: math.ceil(N / BN)),
            "beside each other",
        ),
        (_bytes(lambda M, N, BM, BN: N / BN, lambda M, N, BM, BN: M / BM), "round the number of tiles up"),
        (_bytes(lambda M, N, BM, BN: N // BN, lambda M, N, BM, BN: M // BM), "round the number of tiles up"),
        (lambda M, N, K, *_: (M * K + K * N + M * N) * 4, "expected"),
    ],
    "13.2": [
        (TRANSPOSED.replace(FETCH, AS_IF), "as if it lay as (M, K)"),
        (TRANSPOSED.replace("As[k][y]", "As[y][k]"), "untransposed"),
        (TRANSPOSED.replace("k0 + y < K && m0 + x < M ?", "m0 + x < M ?"), "EmulatorError"),
        (TRANSPOSED.replace("__syncthreads();", "", 1), "EmulatorError"),
        (TRANSPOSED.replace("matmul", "product"), "no kernel matmul"),
        (TRANSPOSED.replace("float sum = 0;", "float sum = 0"), "CompileError"),
    ],
    "13.3": [
        (_choose(shared_of=2.0), "bytes of shared memory"),
        (_choose(most_registers=400), "registers a thread, and there are 255"),
        (_choose(most_threads=128), "is possible"),
        (_choose(key=lambda c: (c[0] * c[1], *_best(c)[1:])), "FLOPs a byte of memory"),
        (_choose(key=lambda c: (_best(c)[0], -_best(c)[1], c[2])), "FLOPs a byte of shared memory"),
        (_choose(key=lambda c: (*_best(c)[:2], -c[2])), "but for BK"),
        (lambda shared, stages: (128, 128, 16), "should be (BM, BN, BK, TM, TN)"),
    ],
    "13.4": [
        (lambda row, chunk, width: chunk, "8 clocks"),
        (lambda row, chunk, width: chunk ^ row % width, "With 4 chunks a row"),
        (lambda row, chunk, width: chunk ^ row % 8, "not a permutation"),
        (lambda row, chunk, width: (chunk + row // 2) % width, "With 8 chunks a row"),
    ],
    "13.5": [
        (SPLIT.replace("int k = z * depth; k < min((z + 1) * depth, K)", "int k = 0; k < K"), "P, for"),
        (SPLIT.replace("min((z + 1) * depth, K)", "(z + 1) * depth"), "EmulatorError"),
        (SPLIT.replace("(size_t(z) * M + row)", "size_t(row)"), "EmulatorError"),
        (SPLIT.replace("column >= N)", "column >= N || z * depth >= K)"), "a part without any k is 0"),
        (SPLIT.replace("C[i] = sum;", "atomicAdd(C + i, sum);"), "an atomic in it"),
        (SPLIT.replace(IN_ORDER, "for (int z = parts - 1; z >= 0; z--) sum"), "another order"),
        (SPLIT.replace("add_up", "sum_up"), "no kernel add_up"),
    ],
}
