// Who sees whom in attention.
#pragma once

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LOWEST = -3.0e38f;  // a maximum to start from: finite, so that -inf minus it is not nan

// A query at position p sees the keys from p - before to p + after. The last query stands at the last key;
// causal attention has after = 0, a sliding window before = window - 1.
struct View {
    int T, S, before, after;

    __device__ int position(int query) const { return query + S - T; }
    __device__ bool sees(int query, int key) const {
        const int distance = key - position(query);
        return query < T && key < S && -before <= distance && distance <= after;
    }
    // Whether each of n_queries sees each of n_keys: true of most tiles, and cheaper than to ask for each.
    __device__ bool all_see_all(int query, int n_queries, int key, int n_keys) const {
        return sees(query, key + n_keys - 1) && sees(query + n_queries - 1, key);
    }
};
