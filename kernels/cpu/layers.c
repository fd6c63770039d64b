// The small operations of a layer, fused: what each computes is said in kernels/rms_norm.py, norm_rope_write.py and
// silu_mul.py. A row is worked on by one thread in one order, so its result does not depend on the others.
#include "vectors.h"

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

// x, out [T, n]; residual [T, n] or NULL: x is added onto it first, and its norm is taken. n is a multiple of 16.
void rms_norm(const element *x, element *residual, const element *weight, element *out, int64_t T, int64_t n, float eps) {
#pragma omp parallel for schedule(static) if (T * n > 65536)
    for (int64_t t = 0; t < T; t++) {
        const element *row = x + t * n;
        if (residual) {
            element *sum_row = residual + t * n;
            for (int64_t i = 0; i < n; i += LANES) store(sum_row + i, load(sum_row + i) + load(row + i));
            row = sum_row;
        }
        normed(row, weight, n, eps, out + t * n);
    }
}

// gate_up [T, 2n], out [T, n]; n is a multiple of 16.
void silu_mul(const element *gate_up, element *out, int64_t T, int64_t n) {
#pragma omp parallel for schedule(static) if (T * n > 32768)
    for (int64_t t = 0; t < T; t++) {
        const element *gate = gate_up + t * 2 * n, *up = gate + n;
        for (int64_t i = 0; i < n; i += LANES) {
            vf g = load(gate + i);
            store(out + t * n + i, rounded(g / (1.0f + exponential(-g))) * load(up + i));
        }
    }
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

// qkv [T, (heads + 2*kv_heads) * D]; q [T, heads, D]; kv [pages, 2, kv_heads, page_size, D]; D a multiple of 16, <= 512.
void norm_rope_write(const element *qkv, element *kv, const int64_t *positions, const int64_t *slots, const float *cos_sin,
                     const element *q_norm, const element *k_norm, element *q, int64_t T, int64_t heads, int64_t kv_heads,
                     int64_t page_size, int64_t D, float eps) {
    int64_t all = heads + 2 * kv_heads;
#pragma omp parallel for schedule(static) if (T * all * D > 65536)
    for (int64_t t = 0; t < T; t++) {
        const float *angles = cos_sin + positions[t] * D;
        int64_t slot = slots[t];
        for (int64_t h = 0; h < all; h++) {
            const element *x = qkv + (t * all + h) * D;
            element own[512];
            int side = h < heads ? -1 : h < heads + kv_heads ? 0 : 1;
            const element *weight = side < 0 ? q_norm : side == 0 ? k_norm : NULL;
            if (side >= 0 && slot < 0) continue;
            element *to = side < 0 ? q + (t * heads + h) * D
                                   : kv + (((slot / page_size * 2 + side) * kv_heads + (h - heads) % kv_heads) * page_size +
                                           slot % page_size) * D;
            if (weight) normed(x, weight, D, eps, own), x = own;
            if (side == 1) memcpy(to, x, sizeof(element) * (size_t)D);
            else rotate(x, angles, D, to);
        }
    }
}
