"""Mistakes that a careful person could make in the exercises of notebook 12."""

MUL = """
extern "C" __global__ void mul(const float *x, const float *y, float *z, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    BODY
}
"""

TRANSPOSE = """
extern "C" __global__ void transpose(const float *x, float *y, int R, int C) {
    __shared__ float tile[32][WIDTH];
    int row = 32 * blockIdx.y, column = 32 * blockIdx.x, t = threadIdx.x;
    for (int j = threadIdx.y; j < 32; j += 8)
        if (row + j < R && column + t < C) tile[j][t] = x[(row + j) * C + column + t];
    BARRIER
    for (int j = threadIdx.y; j < 32; j += 8)
        if (column + j < C && row + t < R) y[(column + j) * R + row + t] = tile[t][j];
}
"""
WITHOUT_TILE = """
extern "C" __global__ void transpose(const float *x, float *y, int R, int C) {
    int column = 32 * blockIdx.x + threadIdx.x;
    for (int j = threadIdx.y; j < 32; j += 8) {
        int row = 32 * blockIdx.y + j;
        if (row < R && column < C) y[column * R + row] = x[row * C + column];
    }
}
"""
STRIDED_READ = """
extern "C" __global__ void transpose(const float *x, float *y, int R, int C) {
    int row = 32 * blockIdx.y + threadIdx.x;
    for (int j = threadIdx.y; j < 32; j += 8) {
        int column = 32 * blockIdx.x + j;
        if (row < R && column < C) y[column * R + row] = x[row * C + column];
    }
}
"""

RMSNORM = """
__device__ float warp_sum(float v) {
    for (int apart = 16; apart > 0; apart /= 2) v += SHUFFLE(0xffffffff, v, apart);
    return v;
}
extern "C" __global__ void rmsnorm(const float *x, const float *weight, float *y, int R, int C, float eps) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    RETURN
    x += row * C, y += row * C;
    float sum = 0.0f;
    for (int c = lane; c < C; c += 32) sum += x[c] * x[c];
    float r = rsqrtf(MEAN);
    for (int c = lane; c < C; c += 32) y[c] = weight[c] * x[c] * r;
}
"""
# Returning by lane: in a narrow row some lanes are gone when the others shuffle.
BY_LANE = "if (row >= R || lane >= C) return;"

COUNT = """
extern "C" __global__ void count(const int64_t *ids, int *counts, int n, int V) {
    __shared__ int mine[256];
    if (threadIdx.x < V) mine[threadIdx.x] = 0;
    __syncthreads();
    int threads = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += threads) atomicAdd(&mine[ids[i]], 1);
    __syncthreads();
    if (threadIdx.x < V) atomicAdd(&counts[threadIdx.x], mine[threadIdx.x]);
}
"""


def _change(source: str, **changes: str) -> str:
    for old, new in changes.items():
        source = source.replace(old, new)
    return source


def _transpose(width: int = 33, barrier: str = "__syncthreads();") -> str:
    return _change(TRANSPOSE, WIDTH=str(width), BARRIER=barrier)


def _rmsnorm(
    mean: str = "warp_sum(sum) / C + eps",
    shuffle: str = "__shfl_xor_sync",
    leave: str = "if (row >= R) return;",
) -> str:
    return _change(RMSNORM, MEAN=mean, SHUFFLE=shuffle, RETURN=leave)


WRONG_ANSWERS = {
    "12.1": [
        (_change(MUL, BODY="if (i < n) z[i] = x[i] * y[i];"), "There are 32 threads: each must take several"),
        (
            _change(MUL, BODY="for (; i <= n; i += gridDim.x * blockDim.x) z[i] = x[i] * y[i];"),
            "has 100 elements",
        ),
        (_change(MUL, BODY="for (; i < n; i += blockDim.x) z[i] = x[i] * y[i];"), "Blocks run in any order"),
        (_change(MUL, BODY="for (; i < n; i += gridDim.x * blockDim.x) z[i] = x[i] + y[i];"), "wrong values"),
        (_change(MUL, BODY="for (; i < n; i += threads) z[i] = x[i] * y[i];"), "does not compile"),
        (_change(MUL, BODY="", mul="multiply"), "no kernel `mul`"),
        (lambda x, y: x * y, "should be a source"),
    ],
    "12.2": [
        (_transpose(barrier=""), "There is no __sync"),
        (_transpose(width=32), "32 words of one bank"),
        (_transpose(width=34), "2 words of one bank"),
        (WITHOUT_TILE, "32 numbers of y in 32 sectors"),
        (STRIDED_READ, "32 numbers of x in 32 sectors"),
        (_transpose().replace("tile[t][j]", "tile[j][t]"), "y"),
    ],
    "12.3": [
        (_rmsnorm("warp_sum(sum) + eps"), "divide by C"),
        (_rmsnorm("warp_sum(sum) / C"), "eps is missing"),
        (_rmsnorm(shuffle="__shfl_down_sync"), "Which shuffle gives it to all?"),
        (_rmsnorm(leave=""), "The emulator reports"),
        (_rmsnorm(leave=BY_LANE), "30 more have returned"),
        (_rmsnorm().replace("weight[c] *", ""), "weight is missing"),
        (_rmsnorm() + "__device__ void f() { __shared__ float unused[32]; }", "a warp can do without"),
    ],
    "12.4": [
        (COUNT.replace("= 0;\n    __syncthreads();", "= 0;"), "There is no __sync"),
        (COUNT.replace("i < n", "i <= n"), "reads ids[1000]"),
        (COUNT.replace("atomicAdd(&mine[ids[i]], 1)", "mine[ids[i]] += 1"), "reads mine["),
        (
            COUNT.replace("atomicAdd(&counts[threadIdx.x], mine", "counts[threadIdx.x] += (mine"),
            "Blocks run in any order",
        ),
        (COUNT.replace("i < n", "i < n - 1"), "add up to 999, not to 1000"),
    ],
}
