"""Mistakes that a careful person could make in the exercises of notebook 14."""

import torch

SOURCE = r"""
extern "C" __global__ void length(const float *g, float *result, int n) {
    __shared__ float sums[1024];
    float sum = 0.0f;
    for (int i = threadIdx.x; LOOP; i += blockDim.x) sum += g[i] * g[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        TREE
    }
    if (threadIdx.x == 0) *result = sqrtf(sums[0]);
}
"""
STEP = "if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];"


def _length(loop: str, tree: str) -> str:
    return SOURCE.replace("LOOP", loop).replace("TREE", tree)


def _tolerance(scale):
    def tolerance(a, b):
        a, b = a.double(), b.double()
        return scale(a, b, a.shape[1])

    return tolerance


def _sizes(a, b):
    return a.abs() @ b.abs()


def _one_by_one(suspects, is_wrong):
    return [s for s in suspects if is_wrong([s])]


def _one_culprit(suspects, is_wrong):
    if not is_wrong(suspects):
        return []
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        suspects = half if is_wrong(half) else suspects[len(half) :]
    return suspects


def _unasked(suspects, is_wrong):
    """Takes the second half for wrong without asking, whatever the first one is."""
    if len(suspects) == 1:
        return suspects
    middle = len(suspects) // 2
    first, second = suspects[:middle], suspects[middle:]
    return (_unasked(first, is_wrong) if is_wrong(first) else []) + _unasked(second, is_wrong)


WRONG_ANSWERS = {
    "14.1": [
        (_tolerance(lambda a, b, K: K * 2**-24 * (a @ b).abs()), "where"),
        (_tolerance(lambda a, b, K: 2**-24 * _sizes(a, b)), "A correct product"),
        (_tolerance(lambda a, b, K: K * 2**-20 * _sizes(a, b)), "a forgotten term could hide in it"),
        (_tolerance(lambda a, b, K: K**2 * 2**-24 * _sizes(a, b)), "a forgotten term could hide in it"),
        (_tolerance(lambda a, b, K: (K * 2**-24 * _sizes(a, b)).float()), "compute it in float64"),
        (_tolerance(lambda a, b, K: torch.tensor(1e-5)), "one bound for each y"),
    ],
    "14.2": [
        (_one_by_one, "Ask about lists"),
        (_one_culprit, "was not found"),
        (_unasked, "is innocent"),
    ],
    "14.3": [
        (("layernorm", "norms.cu", 100), "What does `accused` say?"),
        (("linear", "linear.cu", 20), "is as it should be"),
        (("linear", "pack.cuh", 10), "line 10 is as it should be"),
    ],
    "14.4": [
        (_length("i < n", STEP), "the emulator reports"),
        (_length("i + blockDim.x <= n", STEP + " __syncthreads();"), "Which elements are counted?"),
        (_length("i <= n", STEP + " __syncthreads();"), "the emulator reports"),
        (
            _length("i < n", "if (threadIdx.x < half) { " + STEP + " __syncthreads(); }"),
            "the emulator reports",
        ),
    ],
}
