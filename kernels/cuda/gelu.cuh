// GELU by the tanh approximation of GPT-2: gelu(x) = x/2 (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3).
//
// (1 + tanh u) / 2 is the sigmoid of 2u, 1 / (1 + exp(-2u)): nothing is lost where tanh u is close to -1, and
// it takes fewer instructions. They have to be few, or memory waits for them and not they for memory.
#pragma once

constexpr float GELU_LINEAR = 1.5957691216f, GELU_CUBIC = 0.044715f;  // 2 sqrt(2/pi)

__device__ inline float gelu_sigmoid(float x) {
    return __fdividef(1.0f, 1.0f + __expf(-GELU_LINEAR * (x + GELU_CUBIC * x * x * x)));
}

__device__ inline float gelu(float x) { return x * gelu_sigmoid(x); }

// Its derivative: the product rule, with sigmoid' = sigmoid (1 - sigmoid).
__device__ inline float gelu_slope(float x) {
    const float sigma = gelu_sigmoid(x);
    return sigma + x * sigma * (1.0f - sigma) * GELU_LINEAR * (1.0f + 3.0f * GELU_CUBIC * x * x);
}
