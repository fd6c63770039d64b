// A decoder's whole forward pass in one call: the operations of the other files one after the other, over buffers that
// the caller keeps. kernels/whole_pass.py says what it computes.
//
// In a narrow step an operation takes some 10 us, as long as one call from Python with its tensors takes.
#include "operations.h"

#if HAS_PRODUCT
#include <stdlib.h>

typedef struct {
    const void *packed;  // elements, or int8 codes where there are scales
    const float *scales;
    const element *bias;  // NULL where there is none
    int64_t N, K;
} Matrix;

typedef struct {
    Matrix qkv, o, gate_up, down;
    const element *input_norm, *post_norm, *q_norm, *k_norm;  // the last two NULL where heads are not normed
    int64_t window;                                           // 0: all keys
} Layer;

typedef struct {
    const Layer *layers;
    Matrix head;
    const element *embedding, *norm;
    const float *cos_sin;
    int64_t num_layers, hidden, inner, heads, kv_heads, D;
    float eps, scale;
} Model;

typedef struct {
    const int64_t *input_ids, *positions, *slots, *query_start, *seq_lens;
    const int32_t *page_table;
    const int64_t *logits_index;
    int64_t T, R, P, L;  // tokens, rows, pages a row of the table, wanted logits
} Batch;

typedef struct {
    void *kv;       // [layers, pages, 2, kv_heads, page_size, D]: elements, or int8 codes where there are scales
    float *scales;  // without D; or NULL
    int64_t layer;  // heads of tokens in a layer
    int64_t page_size;
} Pages;

static Pages of_layer(Pages p, int64_t i, int64_t D) {
    size_t size = p.scales ? 1 : sizeof(element);
    return (Pages){(char *)p.kv + (size_t)(i * p.layer * D) * size, p.scales ? p.scales + i * p.layer : NULL, p.layer,
                   p.page_size};
}

typedef struct {  // the step's tokens, and what each layer makes of them
    element *residual, *x, *wide, *q, *attended;
} Buffers;

#define ALIGNED(n) (((n) + 63) / 64 * 64)

typedef struct {
    int64_t residual, x, wide, q, attended;
} Widths;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Elements a token of each buffer: a buffer serves several operations.
static Widths widths(const Model *m) {
    int64_t q = m->heads * m->D, qkv = q + 2 * m->kv_heads * m->D, h = m->hidden;
    return (Widths){h, larger(h, m->inner), larger(larger(2 * m->inner, qkv), h), larger(q, h), larger(q, h)};
}

// Elements of scratch that a pass over T tokens takes.
int64_t forward_scratch(const Model *m, int64_t T) {
    Widths w = widths(m);
    return ALIGNED(T * w.residual) + ALIGNED(T * w.x) + ALIGNED(T * w.wide) + ALIGNED(T * w.q) + ALIGNED(T * w.attended);
}

static Buffers lay_out(const Model *m, int64_t T, element *scratch) {
    Widths w = widths(m);
    Buffers b = {.residual = scratch};
    b.x = b.residual + ALIGNED(T * w.residual), b.wide = b.x + ALIGNED(T * w.x);
    b.q = b.wide + ALIGNED(T * w.wide), b.attended = b.q + ALIGNED(T * w.q);
    return b;
}

static int multiply_by(const Matrix *w, const element *x, element *out, int64_t T) {
#if HAS_INT8_PRODUCT
    if (w->scales) return int8_product(x, w->packed, w->scales, w->bias, out, T, w->N, w->K);
#endif
    product(x, w->packed, w->bias, out, T, w->N, w->K);
    return 0;
}

// Row l of out is row index[l] of x.
static void gather(const element *x, const int64_t *index, element *out, int64_t L, int64_t n) {
    for (int64_t l = 0; l < L; l++) memcpy(out + l * n, x + index[l] * n, sizeof(element) * (size_t)n);
}

// After the last layer's K and V are written, only tokens whose logits are wanted matter: each becomes a row that adds
// one token, whose attention is the same to the bit. Needs `numbers` [2 L + 1] and `table` [L, P]. 0: not possible.
static int keep_wanted(const Batch *b, Batch *kept, int64_t *numbers, int32_t *table) {
    *kept = *b;
    kept->query_start = numbers, kept->seq_lens = numbers + b->L + 1, kept->page_table = table;
    kept->T = kept->R = b->L;
    for (int64_t l = 0, r = 0; l < b->L; l++) {
        int64_t at = b->logits_index[l];
        if (l && at < b->logits_index[l - 1]) r = 0;
        while (r < b->R && b->query_start[r + 1] <= at) r++;
        if (r == b->R) return 0;  // padding: no row's token
        numbers[l] = l, numbers[b->L + 1 + l] = b->positions[at] + 1;
        memcpy(table + l * b->P, b->page_table + r * b->P, sizeof(int32_t) * (size_t)b->P);
    }
    numbers[b->L] = b->L;
    return 1;
}

static int attend_all(const Model *m, const Layer *w, const Batch *b, const element *q, Pages of, element *out) {
    return (of.scales ? attention_codes : attention)(q, of.kv, of.scales, b->query_start, b->seq_lens, b->page_table, out,
                                                     0, b->R, b->P, m->heads, m->kv_heads, of.page_size, m->D, m->scale,
                                                     0.0f, w->window);
}

// pages: of the first layer. logits [L, vocabulary]. Returns 0, or -1 without memory.
int forward(const Model *m, const Batch *given, const Pages *pages, element *scratch, element *logits) {
    Buffers to = lay_out(m, larger(given->T, given->L), scratch);
    Batch b = *given, kept;
    while (b.R && b.query_start[b.R] == b.query_start[b.R - 1]) b.R--;  // rows of padding
    b.T = b.query_start[b.R];                                           // and tokens of it: values that mean nothing
    int64_t *numbers = malloc(sizeof(int64_t) * (size_t)(2 * b.L + 1));
    int32_t *table = malloc(sizeof(int32_t) * (size_t)(b.L * b.P + 1));
    int failed = !numbers || !table;
    if (!failed) {
        gather(m->embedding, b.input_ids, to.residual, b.T, m->hidden);
        rms_norm(to.residual, NULL, m->layers[0].input_norm, to.x, b.T, m->hidden, m->eps);
    }
    for (int64_t i = 0; i < m->num_layers && !failed; i++) {
        const Layer *w = m->layers + i;
        Pages own = of_layer(*pages, i, m->D);
        element *q = to.q;
        failed = multiply_by(&w->qkv, to.x, to.wide, b.T);
        norm_rope_write(to.wide, own.kv, own.scales, b.positions, b.slots, m->cos_sin, w->q_norm, w->k_norm, q, b.T,
                        m->heads, m->kv_heads, own.page_size, m->D, m->eps);
        int last = i + 1 == m->num_layers, fewer = last && b.L < b.T && keep_wanted(&b, &kept, numbers, table);
        if (fewer) {
            gather(q, b.logits_index, to.wide, b.L, m->heads * m->D);  // wide is free here
            gather(to.residual, b.logits_index, to.x, b.L, m->hidden);
            memcpy(to.residual, to.x, sizeof(element) * (size_t)(b.L * m->hidden));
            b = kept, q = to.wide;
        }
        failed |= attend_all(m, w, &b, q, own, to.attended);
        failed |= multiply_by(&w->o, to.attended, to.x, b.T);
        rms_norm(to.x, to.residual, w->post_norm, to.x, b.T, m->hidden, m->eps);
        failed |= multiply_by(&w->gate_up, to.x, to.wide, b.T);
        silu_mul(to.wide, to.x, b.T, m->inner);
        failed |= multiply_by(&w->down, to.x, to.attended, b.T);
        if (last && !fewer) {
            gather(to.attended, b.logits_index, to.wide, b.L, m->hidden);
            gather(to.residual, b.logits_index, to.q, b.L, m->hidden);
            to.attended = to.wide, to.residual = to.q;
        }
        rms_norm(to.attended, to.residual, last ? m->norm : w[1].input_norm, to.x, last ? b.L : b.T, m->hidden, m->eps);
    }
    if (!failed) failed = multiply_by(&m->head, to.x, logits, b.L);
    free(numbers), free(table);
    return failed ? -1 : 0;
}
#endif
