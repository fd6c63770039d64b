// The small operations of a layer, fused: what each computes is said in kernels/rms_norm.py, norm_rope_write.py and
// silu_mul.py. A row is worked on by one thread in one order, so its result does not depend on the others.
#include "operations.h"
#include "threads.h"

#define ROWS_AT_ONCE 8

INLINE float inverse_rms(const element *x, int64_t n, float eps) {
    vf squares = splat(0.0f);
    for (int64_t i = 0; i < n; i += LANES) {
        vf v = load(x + i);
        squares += v * v;
    }
    return 1.0f / sqrtf(sum(squares) / (float)n + eps);
}

INLINE void normed(const element *x, const element *weight, int64_t n, float eps, element *out) {
    float scale = inverse_rms(x, n, eps);
    for (int64_t i = 0; i < n; i += LANES) store(out + i, rounded(load(x + i) * scale) * load(weight + i));
}

typedef struct {
    const element *x, *weight;
    element *residual, *out;
    int64_t n;
    float eps;
} Norm;

static void norm_rows(const void *what, int64_t from, int64_t to) {
    Norm w = *(const Norm *)what;
    for (int64_t t = from; t < to; t++) {
        const element *row = w.x + t * w.n;
        if (w.residual) {
            element *sum_row = w.residual + t * w.n;
            for (int64_t i = 0; i < w.n; i += LANES) store(sum_row + i, load(sum_row + i) + load(row + i));
            row = sum_row;
        }
        normed(row, w.weight, w.n, w.eps, w.out + t * w.n);
    }
}

// x, out [T, n]; residual [T, n] or NULL: x is added onto it first, and its norm is taken. n is a multiple of 16.
void rms_norm(const element *x, element *residual, const element *weight, element *out, int64_t T, int64_t n, float eps) {
    share(T, ROWS_AT_ONCE, T * n > 32768, norm_rows, &(Norm){x, weight, residual, out, n, eps});
}

typedef struct {
    const element *gate_up;
    element *out;
    int64_t n;
} Silu;

static void silu_rows(const void *what, int64_t from, int64_t to) {
    Silu w = *(const Silu *)what;
    for (int64_t t = from; t < to; t++) {
        const element *gate = w.gate_up + t * 2 * w.n, *up = gate + w.n;
        for (int64_t i = 0; i < w.n; i += LANES) {
            vf g = load(gate + i);
            store(w.out + t * w.n + i, rounded(g / (1.0f + exponential(-g))) * load(up + i));
        }
    }
}

// gate_up [T, 2n], out [T, n]; n is a multiple of 16.
void silu_mul(const element *gate_up, element *out, int64_t T, int64_t n) {
    share(T, ROWS_AT_ONCE, T * n > 16384, silu_rows, &(Silu){gate_up, out, n});
}

INLINE void rotate(const element *x, const float *cos_sin, int64_t D, element *out) {
    int64_t half = D / 2;
    if (half % LANES == 0) {
        for (int64_t i = 0; i < half; i += LANES) {
            vf a = load(x + i), b = load(x + half + i), c = load_float(cos_sin + i), s = load_float(cos_sin + half + i);
            store(out + i, a * c - b * s);
            store(out + half + i, b * c + a * s);
        }
        return;
    }
    float wide[512], turned[512];  // the halves are no whole vectors: widen the head, turn it, round it
    for (int64_t i = 0; i < D; i += LANES) {
        vf v = load(x + i);
        memcpy(wide + i, &v, sizeof v);
    }
    for (int64_t i = 0; i < half; i++) {
        turned[i] = wide[i] * cos_sin[i] - wide[half + i] * cos_sin[half + i];
        turned[half + i] = wide[half + i] * cos_sin[i] + wide[i] * cos_sin[half + i];
    }
    for (int64_t i = 0; i < D; i += LANES) store(out + i, load_float(turned + i));
}

// A head as codes, and what they are to be multiplied by; kernels/kv_scales.py.
INLINE float narrowed(const element *x, int64_t D, int8_t *codes) {
    float scale = magnitude(x, D) / 127.0f;
    if (scale == 0) scale = 1.0f;
    for (int64_t i = 0; i < D; i += LANES) store_codes(codes + i, load(x + i) / scale);
    return scale;
}

typedef struct {
    const element *qkv, *q_norm, *k_norm;
    void *kv;
    float *scales;  // NULL: kv holds elements
    element *q;
    const int64_t *positions, *slots;
    const float *cos_sin;
    int64_t heads, kv_heads, page_size, D;
    float eps;
} Heads;

static void write_heads(const void *what, int64_t from, int64_t to) {
    Heads w = *(const Heads *)what;
    int64_t all = w.heads + 2 * w.kv_heads;
    for (int64_t t = from; t < to; t++) {
        const float *angles = w.cos_sin + w.positions[t] * w.D;
        int64_t slot = w.slots[t];
        for (int64_t h = 0; h < all; h++) {
            const element *x = w.qkv + (t * all + h) * w.D;
            element own[512], turned[512];
            int side = h < w.heads ? -1 : h < w.heads + w.kv_heads ? 0 : 1;
            const element *weight = side < 0 ? w.q_norm : side == 0 ? w.k_norm : NULL;
            if (side >= 0 && slot < 0) continue;
            int64_t page = slot / w.page_size, place = slot % w.page_size;
            int64_t at = side < 0 ? t * w.heads + h  // in q or in the pages, counted in heads
                                  : ((page * 2 + side) * w.kv_heads + (h - w.heads) % w.kv_heads) * w.page_size + place;
            int narrow = side >= 0 && w.scales;
            element *out = side < 0 ? w.q + at * w.D : narrow ? turned : (element *)w.kv + at * w.D;
            if (weight) normed(x, weight, w.D, w.eps, own), x = own;
            if (side != 1) rotate(x, angles, w.D, out), x = out;
            else if (!narrow) memcpy(out, x, sizeof(element) * (size_t)w.D);
            if (narrow) w.scales[at] = narrowed(x, w.D, (int8_t *)w.kv + at * w.D);
        }
    }
}

// qkv [T, (heads + 2*kv_heads) * D]; q [T, heads, D]; kv [pages, 2, kv_heads, page_size, D], its scales without D or NULL;
// D a multiple of 16, <= 512.
void norm_rope_write(const element *qkv, void *kv, float *scales, const int64_t *positions, const int64_t *slots,
                     const float *cos_sin, const element *q_norm, const element *k_norm, element *q, int64_t T,
                     int64_t heads, int64_t kv_heads, int64_t page_size, int64_t D, float eps) {
    Heads w = {qkv, q_norm, k_norm, kv, scales, q, positions, slots, cos_sin, heads, kv_heads, page_size, D, eps};
    share(T, ROWS_AT_ONCE, T * (heads + 2 * kv_heads) * D > 32768, write_heads, &w);
}
