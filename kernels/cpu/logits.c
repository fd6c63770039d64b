// What is done to logits before a draw, and what is read from them: kernels/adjust_logits.py, kernels/token_logprobs.py.
//
// A row is worked on by one thread from its first token to its last, so its result depends on nothing else.
#include "threads.h"
#include "vectors.h"

static const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

typedef struct {
    float *logits;
    const int32_t *allowed;                    // NULL: all are
    const int64_t *seats;                      // NULL: no penalties
    const int32_t *in_prompt, *counts;
    const float *repetition, *presence, *frequency;
    int64_t V;
} Adjusting;

// All ones in the lanes of tokens i, i + 1, ... whose bit is set; i is a multiple of 16.
INLINE vi set_bits(const int32_t *words, int64_t i) {
    uint32_t word = (uint32_t)words[i / 32] >> (i % 32);
    return -(vi)((((vu){} + word) >> (vu)lane) & 1u);
}

INLINE vf penalised(vf x, vi in_prompt, vi count, float repetition, float presence, float frequency) {
    vi had = count > 0;
    x = choose(in_prompt | had, choose((vi)(x > splat(0.0f)), x / repetition, x * repetition), x);
    return x - frequency * __builtin_convertvector(count, vf) - choose(had, splat(presence), splat(0.0f));
}

static void adjust_rows(const void *what, int64_t from, int64_t to) {
    Adjusting w = *(const Adjusting *)what;
    int64_t words = (w.V + 31) / 32;
    for (int64_t r = from; r < to; r++) {
        float *row = w.logits + r * w.V;
        const int32_t *allowed = w.allowed ? w.allowed + r * words : NULL;
        const int32_t *in_prompt = w.seats ? w.in_prompt + w.seats[r] * words : NULL;
        const int32_t *counts = w.seats ? w.counts + w.seats[r] * w.V : NULL;
        for (int64_t i = 0; i < w.V; i += LANES) {
            size_t some = sizeof(float) * (size_t)(w.V - i < LANES ? w.V - i : LANES);
            vf x = splat(0.0f);
            memcpy(&x, row + i, some);
            if (allowed) x = choose(set_bits(allowed, i), x, splat(-INFINITY));
            if (counts) {
                vi count = {0};
                memcpy(&count, counts + i, some);
                x = penalised(x, set_bits(in_prompt, i), count, w.repetition[r], w.presence[r], w.frequency[r]);
            }
            memcpy(row + i, &x, some);
        }
    }
}

// logits [R, V] fp32, in place; the rest as in kernels/adjust_logits.py.
void adjust_logits(float *logits, const int32_t *allowed, const int64_t *seats, const int32_t *in_prompt,
                   const int32_t *counts, const float *repetition, const float *presence, const float *frequency,
                   int64_t R, int64_t V) {
    Adjusting w = {logits, allowed, seats, in_prompt, counts, repetition, presence, frequency, V};
    share(R, 1, R * V > 8192, adjust_rows, &w);
}

typedef struct {
    const element *logits;
    const int64_t *ids;
    float *logprobs;
    int64_t V, K;
} Telling;

INLINE vf load_up_to(const element *p, int64_t count) {  // -inf behind `count` elements
    if (count >= LANES) return load(p);
    element some[LANES];
    store(some, splat(-INFINITY));
    memcpy(some, p, sizeof(element) * (size_t)count);
    return load(some);
}

static void tell_rows(const void *what, int64_t from, int64_t to) {
    Telling w = *(const Telling *)what;
    for (int64_t r = from; r < to; r++) {
        const element *row = w.logits + r * w.V;
        vf top = splat(-INFINITY);
        for (int64_t i = 0; i < w.V; i += LANES) top = greater(top, load_up_to(row + i, w.V - i));
        float greatest = highest(top);
        vf total = splat(0.0f);
        for (int64_t start = 0; start < w.V; start += 64 * LANES) {  // sums of sums, for the sake of the last bits
            vf some = splat(0.0f);
            int64_t end = start + 64 * LANES < w.V ? start + 64 * LANES : w.V;
            for (int64_t i = start; i < end; i += LANES)
                some += exponential(load_up_to(row + i, w.V - i) - greatest);
            total += some;
        }
        float mass = logf(sum(total));
        for (int64_t k = 0; k < w.K; k++)
            w.logprobs[r * w.K + k] = load_up_to(row + w.ids[r * w.K + k], 1)[0] - greatest - mass;
    }
}

// logits [R, V], ids [R, K] -> logprobs [R, K] fp32.
void token_logprobs(const element *logits, const int64_t *ids, float *logprobs, int64_t R, int64_t V, int64_t K) {
    share(R, 1, R * V > 8192, tell_rows, &(Telling){logits, ids, logprobs, V, K});
}
