// The greatest logit of each row, and the greatest score plus noise; kernels/sample.py says what noise that is.
//
// A row is worked on by one thread from its first token to its last, so its result depends on nothing else.
#include "threads.h"
#include "vectors.h"

static const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

typedef struct {
    vf value;  // the greatest seen in each lane
    vi token;  // and where
} Best;

INLINE void keep(Best *best, vf value, int32_t at) {
    vi better = (vi)(value > best->value);  // the first of equals stays
    best->value = choose(better, value, best->value);
    best->token = (better & (lane + at)) | (~better & best->token);
}

INLINE int64_t winner(const Best *best) {
    int64_t token = best->token[0];
    float value = best->value[0];
    for (int i = 1; i < LANES; i++)
        if (best->value[i] > value || (best->value[i] == value && best->token[i] < token))
            value = best->value[i], token = best->token[i];
    return token;
}

// The last tokens of a row, where they are no whole vector: -inf behind them.
INLINE vf load_some(const element *p, int64_t count) {
    element some[LANES];
    vf none = splat(-INFINITY);
    store(some, none);
    memcpy(some, p, sizeof(element) * (size_t)count);
    return load(some);
}

INLINE vf load_some_floats(const float *p, int64_t count) {
    vf some = splat(-INFINITY);
    memcpy(&some, p, sizeof(float) * (size_t)count);
    return some;
}

typedef struct {
    const element *logits;
    const float *scores;
    const int32_t *keys;
    int64_t *ids, V;
} Rows;

static void greatest_of_rows(const void *what, int64_t from, int64_t to) {
    Rows w = *(const Rows *)what;
    for (int64_t r = from; r < to; r++) {
        Best best = {splat(-INFINITY), {0}};
        const element *row = w.logits + r * w.V;
        int64_t whole = w.V / LANES * LANES;
        for (int64_t i = 0; i < whole; i += LANES) keep(&best, load(row + i), (int32_t)i);
        if (whole < w.V) keep(&best, load_some(row + whole, w.V - whole), (int32_t)whole);
        w.ids[r] = winner(&best);
    }
}

// logits [R, V] -> ids [R]: ties to the lowest id. A row without any greatest gives 0.
void greatest(const element *logits, int64_t *ids, int64_t R, int64_t V) {
    share(R, 1, R * V > 1 << 20, greatest_of_rows, &(Rows){logits, NULL, NULL, ids, V});
}

INLINE vu mixed(vu h) {  // murmur3's finaliser
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    return h ^ (h >> 16);
}

// ln x for x > 0, to about one unit in the last place: the exponent, and a polynomial around 1.
INLINE vf logarithm(vf x) {
    vi bits = (vi)x;
    vi exponent = (bits - 0x3F3504F3) >> 23;  // so that the rest lies in [sqrt(1/2), sqrt(2))
    vf m = (vf)(bits - (exponent << 23)) - 1.0f;
    vf e = __builtin_convertvector(exponent, vf);
    vf p = splat(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    vf z = m * m;
    vf tail = p * m * z + e * -2.12194440e-4f - 0.5f * z;
    return m + tail + e * 0.693359375f;
}

// -ln(-ln(1 - u)), u in (0, 1) of 32 hashed bits.
INLINE vf noise(vu bits) {
    vf u = (__builtin_convertvector(bits >> 16, vf) * 65536.0f + __builtin_convertvector(bits & 0xFFFFu, vf) + 0.5f) *
           2.3283064365386963e-10f;
    vf most = splat(1.0f - 5.9604644775390625e-8f);
    u = choose((vi)(u > most), most, u);
    vf w = 1.0f - u;
    vf E = ((w - 1.0f) + u) / w - logarithm(w);  // log1p(-u) with what rounding took from 1 - u given back
    return -logarithm(E);
}

static void greatest_of_noisy_rows(const void *what, int64_t from, int64_t to) {
    Rows w = *(const Rows *)what;
    for (int64_t r = from; r < to; r++) {
        Best best = {splat(-INFINITY), {0}};
        for (int64_t i = 0; i < w.V; i += LANES) {
            const float *at = w.scores + r * w.V + i;
            vf score = i + LANES <= w.V ? load_float(at) : load_some_floats(at, w.V - i);
            vu token = (vu)(lane + (int32_t)i) * 0x9E3779B1u;
            keep(&best, score + noise(mixed(token ^ (uint32_t)w.keys[r])), (int32_t)i);
        }
        w.ids[r] = winner(&best);
    }
}

// scores [R, V] fp32, keys [R] (kernels/sample.py, row_keys) -> ids [R] of the greatest score + noise.
void greatest_noisy(const float *scores, const int32_t *keys, int64_t *ids, int64_t R, int64_t V) {
    share(R, 1, R * V > 8192, greatest_of_noisy_rows, &(Rows){NULL, scores, keys, ids, V});
}
