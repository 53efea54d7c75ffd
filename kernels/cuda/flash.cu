// FlashAttention-2 (Dao, 2023): y = softmax(scale q k^T, masked) v, the scores never in memory.
//
// Scores are kept in base 2: p = 2^(scale_2 q k^T - lse), where scale_2 is the scale times log2 of e, because
// the hardware's exponential is 2^x. lse `(B, H, T)`, the logarithm of the softmax's denominator, is a
// logarithm to base 2 as well. It and y are all that the backward pass needs of the forward pass.
#include "flash.cuh"

// One block BLOCK_ROWS queries of one head: it walks along the keys with the online softmax (Milakov and
// Gimelshein, 2018). A row has a running maximum, a running sum of 2^(score - maximum), and a sum of values
// with those weights. When the maximum grows, both sums shrink: they were made with the old one.
extern "C" __global__ void __launch_bounds__(THREADS) flash_forward(
    const scalar *q, const scalar *k, const scalar *v, const scalar *sink, scalar *y, float *lse,
    int64_t q_batch, int q_row, int q_head, int64_t k_batch, int k_row, int k_head, int64_t v_batch,
    int v_row, int v_head, int H, int group, int T, int S, int D, int before, int after, float scale_2) {
    extern __shared__ __align__(16) char memory[];
    Row *q_tile = reinterpret_cast<Row *>(memory), *k_tile = q_tile + BLOCK_ROWS;
    Row *v_tile = k_tile + BLOCK_COLUMNS;
    Scores *p_tile = reinterpret_cast<Scores *>(v_tile + BLOCK_COLUMNS);

    const int blocks = (T + BLOCK_ROWS - 1) / BLOCK_ROWS, batch = blockIdx.x / blocks / H;
    const int head = blockIdx.x / blocks % H, kv_head = head / group;
    const int first = (blocks - 1 - int(blockIdx.x) % blocks) * BLOCK_ROWS;  // the last see most: they begin
    const View view{T, S, before, after};
    const Head q_of_head{q + batch * q_batch + int64_t(head) * q_head, T, q_row};
    const Head k_of_head{k + batch * k_batch + int64_t(kv_head) * k_head, S, k_row};
    const Head v_of_head{v + batch * v_batch + int64_t(kv_head) * v_head, S, v_row};
    load_tile<BLOCK_ROWS>(q_tile, q_of_head, first, D);

    float maximum[ROWS], total[ROWS], sum[ROWS][WIDTH] = {};
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        // A sink is a score without a value: the softmax has met it before the first key.
        maximum[i] = sink == nullptr ? LOWEST : float(sink[head]) * LOG2_E;
        total[i] = sink == nullptr ? 0.0f : 1.0f;
    }

    const int last = min(first + BLOCK_ROWS, T) - 1;
    const int end = min(S, view.position(last) + after + 1);
    for (int key = max(0, view.position(first) - before) / BLOCK_COLUMNS * BLOCK_COLUMNS; key < end;
         key += BLOCK_COLUMNS) {
        __syncthreads();  // nobody reads the tiles before these any more
        load_tile<BLOCK_COLUMNS>(k_tile, k_of_head, key, D);
        load_tile<BLOCK_COLUMNS>(v_tile, v_of_head, key, D);
        __syncthreads();

        float s[ROWS][COLUMNS];
        multiply_rows(s, q_tile, k_tile);
        const bool all = view.all_see_all(first, BLOCK_ROWS, key, BLOCK_COLUMNS);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float highest = LOWEST, new_terms = 0.0f;
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                s[i][j] *= scale_2;
                if (!all && !view.sees(first + row_of(i), key + column_of(j))) s[i][j] = -INFINITY;
                highest = fmaxf(highest, s[i][j]);
            }
            const float new_maximum = fmaxf(maximum[i], max_of_row(highest));
            const float shrink = exp2f(maximum[i] - new_maximum);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                s[i][j] = exp2f(s[i][j] - new_maximum);
                new_terms += s[i][j];
            }
            maximum[i] = new_maximum;
            total[i] = total[i] * shrink + sum_of_row(new_terms);
#pragma unroll
            for (int w = 0; w < WIDTH; w++) sum[i][w] *= shrink;
        }
        add_weighted_rows(sum, s, v_tile, p_tile);
    }

    float factor[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        factor[i] = 1.0f / total[i];
        const int query = first + row_of(i);
        if (query < T && place_in_row() == 0)
            lse[(int64_t(batch) * H + head) * T + query] = maximum[i] + log2f(total[i]);
    }
    store_rows(y + ((int64_t(batch) * T + first) * H + head) * D, int64_t(H) * D, T - first, D, sum, factor);
}

// The backward pass computes the probabilities again. With p as above and dp = dy v^T, the chain rule gives
//
//     dv = p^T dy        ds = p (dp - delta)        dq = scale ds k        dk = scale ds^T q
//
// where delta = sum over keys of p dp = dy . y is one number a query. A sum over keys (dq) and sums over
// queries (dk, dv) want different walks, and a sum that several blocks add to would depend on who comes
// first: so there are two kernels, each with its sums to itself.

// One block BLOCK_ROWS rows of dq, and their delta, which the other kernel needs: the forward's walk, with
// the softmax known.
extern "C" __global__ void __launch_bounds__(THREADS) flash_dq(
    const scalar *q, const scalar *k, const scalar *v, const scalar *y, const float *lse, const scalar *dy,
    scalar *dq, float *delta, int64_t q_batch, int q_row, int q_head, int64_t k_batch, int k_row, int k_head,
    int64_t v_batch, int v_row, int v_head, int64_t dy_batch, int dy_row, int dy_head, int dq_row, int H,
    int group, int T, int S, int D, int before, int after, float scale_2, float scale) {
    extern __shared__ __align__(16) char memory[];
    Row *q_tile = reinterpret_cast<Row *>(memory), *dy_tile = q_tile + BLOCK_ROWS;
    Row *k_tile = dy_tile + BLOCK_ROWS, *v_tile = k_tile + BLOCK_COLUMNS;
    Scores *ds_tile = reinterpret_cast<Scores *>(v_tile + BLOCK_COLUMNS);

    const int blocks = (T + BLOCK_ROWS - 1) / BLOCK_ROWS, batch = blockIdx.x / blocks / H;
    const int head = blockIdx.x / blocks % H, kv_head = head / group;
    const int first = (blocks - 1 - int(blockIdx.x) % blocks) * BLOCK_ROWS;
    const View view{T, S, before, after};
    const Head q_of_head{q + batch * q_batch + int64_t(head) * q_head, T, q_row};
    const Head k_of_head{k + batch * k_batch + int64_t(kv_head) * k_head, S, k_row};
    const Head v_of_head{v + batch * v_batch + int64_t(kv_head) * v_head, S, v_row};
    const Head dy_of_head{dy + batch * dy_batch + int64_t(head) * dy_head, T, dy_row};
    load_tile<BLOCK_ROWS>(q_tile, q_of_head, first, D);
    load_tile<BLOCK_ROWS>(dy_tile, dy_of_head, first, D);
    __syncthreads();

    const scalar *y_of_head = y + (int64_t(batch) * T * H + head) * D;
    float row_lse[ROWS], row_delta[ROWS], sum[ROWS][WIDTH] = {};
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int query = first + row_of(i);
        const int64_t place = (int64_t(batch) * H + head) * T + query;
        float products = 0.0f;
        for (int d = place_in_row(); query < T && d < D; d += ROW_OF_THREADS)
            products += float(dy_tile[row_of(i)][d]) * float(y_of_head[int64_t(query) * H * D + d]);
        row_delta[i] = sum_of_row(products);
        row_lse[i] = query < T ? lse[place] : 0.0f;
        if (query < T && place_in_row() == 0) delta[place] = row_delta[i];
    }

    const int last = min(first + BLOCK_ROWS, T) - 1;
    const int end = min(S, view.position(last) + after + 1);
    for (int key = max(0, view.position(first) - before) / BLOCK_COLUMNS * BLOCK_COLUMNS; key < end;
         key += BLOCK_COLUMNS) {
        __syncthreads();
        load_tile<BLOCK_COLUMNS>(k_tile, k_of_head, key, D);
        load_tile<BLOCK_COLUMNS>(v_tile, v_of_head, key, D);
        __syncthreads();

        float s[ROWS][COLUMNS], dp[ROWS][COLUMNS];
        multiply_rows(s, q_tile, k_tile);
        multiply_rows(dp, dy_tile, v_tile);
        const bool all = view.all_see_all(first, BLOCK_ROWS, key, BLOCK_COLUMNS);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                float p = exp2f(s[i][j] * scale_2 - row_lse[i]);
                if (!all && !view.sees(first + row_of(i), key + column_of(j))) p = 0.0f;
                s[i][j] = p * (dp[i][j] - row_delta[i]);
            }
        add_weighted_rows(sum, s, k_tile, ds_tile);
    }

    float factor[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) factor[i] = scale;
    store_rows(dq + (int64_t(batch) * T + first) * dq_row + head * D, dq_row, T - first, D, sum, factor);
}

// One block BLOCK_ROWS rows of dk and dv of one key-value head. It walks along the queries of all the heads
// that share it; the tiles are (keys, queries), transposes of the other kernels'.
extern "C" __global__ void __launch_bounds__(THREADS) flash_dkv(
    const scalar *q, const scalar *k, const scalar *v, const float *lse, const scalar *dy, const float *delta,
    scalar *dk, scalar *dv, int64_t q_batch, int q_row, int q_head, int64_t k_batch, int k_row, int k_head,
    int64_t v_batch, int v_row, int v_head, int64_t dy_batch, int dy_row, int dy_head, int dk_row, int H,
    int group, int T, int S, int D, int before, int after, float scale_2, float scale) {
    extern __shared__ __align__(16) char memory[];
    Row *k_tile = reinterpret_cast<Row *>(memory), *v_tile = k_tile + BLOCK_ROWS;
    Row *q_tile = v_tile + BLOCK_ROWS, *dy_tile = q_tile + BLOCK_COLUMNS;
    Scores *scores = reinterpret_cast<Scores *>(dy_tile + BLOCK_COLUMNS);

    const int blocks = (S + BLOCK_ROWS - 1) / BLOCK_ROWS, H_kv = H / group;
    const int batch = blockIdx.x / blocks / H_kv, kv_head = blockIdx.x / blocks % H_kv;
    const int first = int(blockIdx.x) % blocks * BLOCK_ROWS;  // the first keys first: most queries see them
    const View view{T, S, before, after};
    const Head k_of_head{k + batch * k_batch + int64_t(kv_head) * k_head, S, k_row};
    const Head v_of_head{v + batch * v_batch + int64_t(kv_head) * v_head, S, v_row};
    load_tile<BLOCK_ROWS>(k_tile, k_of_head, first, D);
    load_tile<BLOCK_ROWS>(v_tile, v_of_head, first, D);

    float dk_sum[ROWS][WIDTH] = {}, dv_sum[ROWS][WIDTH] = {};
    const int last = min(first + BLOCK_ROWS, S) - 1;
    const int begin = max(0, first - after - view.position(0));
    const int end = min(T, last + before + 1 - view.position(0));
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        const Head q_of_head{q + batch * q_batch + int64_t(head) * q_head, T, q_row};
        const Head dy_of_head{dy + batch * dy_batch + int64_t(head) * dy_head, T, dy_row};
        const int64_t numbers = (int64_t(batch) * H + head) * T;  // where lse and delta of this head begin
        for (int query = begin / BLOCK_COLUMNS * BLOCK_COLUMNS; query < end; query += BLOCK_COLUMNS) {
            __syncthreads();
            load_tile<BLOCK_COLUMNS>(q_tile, q_of_head, query, D);
            load_tile<BLOCK_COLUMNS>(dy_tile, dy_of_head, query, D);
            __syncthreads();

            float p[ROWS][COLUMNS], ds[ROWS][COLUMNS];
            multiply_rows(p, k_tile, q_tile);
            multiply_rows(ds, v_tile, dy_tile);
            const bool all = view.all_see_all(query, BLOCK_COLUMNS, first, BLOCK_ROWS);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                const int column = query + column_of(j);
                const float column_lse = column < T ? lse[numbers + column] : 0.0f;
                const float column_delta = column < T ? delta[numbers + column] : 0.0f;
#pragma unroll
                for (int i = 0; i < ROWS; i++) {
                    p[i][j] = exp2f(p[i][j] * scale_2 - column_lse);
                    if (!all && !view.sees(column, first + row_of(i))) p[i][j] = 0.0f;
                    ds[i][j] = p[i][j] * (ds[i][j] - column_delta);
                }
            }
            add_weighted_rows(dv_sum, p, dy_tile, scores);
            add_weighted_rows(dk_sum, ds, q_tile, scores);
        }
    }

    float dk_factor[ROWS], dv_factor[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) dk_factor[i] = scale, dv_factor[i] = 1.0f;
    const int64_t place = (int64_t(batch) * S + first) * dk_row + kv_head * D;
    store_rows(dk + place, dk_row, S - first, D, dk_sum, dk_factor);
    store_rows(dv + place, dk_row, S - first, D, dv_sum, dv_factor);
}
