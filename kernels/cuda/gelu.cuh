// GELU by the tanh approximation of GPT-2: gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
#pragma once

constexpr float SQRT_2_OVER_PI = 0.7978845608f, CUBIC = 0.044715f;

__device__ inline float gelu_tanh(float x) { return tanhf(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)); }

__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + gelu_tanh(x)); }

// Its derivative: the product rule, with tanh' = 1 - tanh^2.
__device__ inline float gelu_slope(float x) {
    const float t = gelu_tanh(x);
    return 0.5f * (1.0f + t + x * (1.0f - t * t) * SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * x * x));
}
