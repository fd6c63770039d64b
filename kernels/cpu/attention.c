// Attention over pages; kernels/paged_attention.py says what it computes.
//
// One order for every query token, whatever stands beside it: keys in spans of 64 with an online softmax, spans in
// chunks of CHUNK keys, chunks merged first to last. So a token's result is the same to the bit as a decode row or in
// a prompt's chunk, alone or in any batch, with any number of threads.
//
// Threads share decode rows by (row, chunk, some K/V heads) and prompts by (row, K/V head, tile of queries). A decode
// row goes span by span with its heads inside, because a page's heads lie side by side: runs of 8 KB, which is a page
// of one head, come from memory at half the rate of runs of 64 KB (measured).
//
// Pages may hold codes (int8) with scales: a code is exact as an element, products and sums are those of the codes, and a
// key's scale is multiplied into its score, a value's into its weight. Decode widens codes as it loads them; a tile of a
// prompt, whose rows go through them many times, widens a chunk once. attention_codes.c is this file once more, for them.
#include "operations.h"
#include "threads.h"

#include <stdlib.h>
#if defined(ELEMENT_BF16) && defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#ifndef CODES
#define CODES 0
#endif

#define BLOCK 16    // keys that are scored at once; they lie in one page
#define SPAN 64     // keys a softmax update takes: its steps wait for each other, so few of them are fast
#define BLOCKS (SPAN / BLOCK)
#define CHUNK 512   // keys between two merges; a multiple of every page size
#define TILE 32     // query tokens of a prompt that one work item takes
#define MAX_D 256
#define VECTORS (MAX_D / LANES)
#define GROUP 4     // query rows (token, head) that share a pass over the keys
#define STATES 64   // most query rows of a decode item

typedef struct {
    const void *kv;             // [pages, 2, Hkv, page_size, D] elements, or codes where there are scales
    const float *scales;        // [pages, 2, Hkv, page_size], or NULL
    const int32_t *page_table;  // [R, P]
    int64_t pages_a_row;        // P
    int kv_heads, page_size, D;
    float scale, soft_cap;      // soft_cap 0: none
    int64_t window;             // keys seen, counting the token itself; 0: all
} Keys;

typedef struct {
    float top, total;
    vf sum[VECTORS];  // two and two as load_values has them
} State;

// Where a key or value of a head lies, counted in such.
INLINE int64_t place_of(const Keys *k, int64_t row, int64_t key, int head, int side) {
    int64_t page = k->page_table[row * k->pages_a_row + key / k->page_size];
    return ((page * 2 + side) * k->kv_heads + head) * k->page_size + key % k->page_size;
}

// Sixteen of them times their scales.
INLINE vf scaled(vf x, const Keys *k, int64_t place) { return CODES ? x * load_float(k->scales + place) : x; }

// `narrow`: what is stored are codes. It is known where the code is made.
INLINE int bytes_of(int count, int narrow) { return narrow ? count : count * (int)sizeof(element); }
INLINE const void *behind(const void *p, int64_t count, int narrow) {
    return narrow ? (const void *)((const int8_t *)p + count) : (const void *)((const element *)p + count);
}
INLINE vf load_stored(const void *p, int64_t at, int narrow) {
    return narrow ? load_codes((const int8_t *)p + at) : load((const element *)p + at);
}
INLINE void load_values(const void *p, int64_t at, int narrow, vf *a, vf *b) {
    if (narrow) *a = load_codes((const int8_t *)p + at), *b = load_codes((const int8_t *)p + at + LANES);
    else load_two((const element *)p + at, a, b);
}

#if defined(ELEMENT_BF16) && defined(__AVX512BF16__)
INLINE __m512bh load_pairs(const void *p, int64_t at, int narrow) {
    if (!narrow) return (__m512bh)_mm512_loadu_si512((const element *)p + at);
    const int8_t *codes = (const int8_t *)p + at;
    return _mm512_cvtne2ps_pbh((__m512)load_codes(codes + LANES), (__m512)load_codes(codes));
}
#endif

#if defined(__x86_64__)  // into the second cache: a span takes the whole first one
#define FETCH(p) __builtin_prefetch((p), 0, 2)
#else
#define FETCH(p) __builtin_prefetch((p), 0, 3)
#endif

// Have so many bytes come from memory before their time.
INLINE void fetch(const void *p, int bytes) {
    for (int i = 0; i < bytes; i += 64) FETCH((const char *)p + i);
}

// Sixteen vectors to the vector of their sums. Always the same tree.
INLINE vf sums(vf *x) {
    static const vi low = {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30};
    static const vi high = {1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31};
    static const vi low2 = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
    static const vi high2 = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
    static const vi low4 = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27};
    static const vi high4 = {4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31};
    static const vi low8 = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
    static const vi high8 = {8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31};
#define FOLD(a, b, l, h) (__builtin_shuffle(a, b, l) + __builtin_shuffle(a, b, h))
    vf a[8], b[4], c[2];
    for (int i = 0; i < 8; i++) a[i] = FOLD(x[2 * i], x[2 * i + 1], low, high);
    for (int i = 0; i < 4; i++) b[i] = FOLD(a[2 * i], a[2 * i + 1], low2, high2);
    for (int i = 0; i < 2; i++) c[i] = FOLD(b[2 * i], b[2 * i + 1], low4, high4);
    return FOLD(c[0], c[1], low8, high8);
}

// Scores of `rows` query rows against BLOCK keys. Products of bf16 are exact in fp32; pairs of them where the processor
// adds these up by itself. later: a block of keys to be fetched meanwhile, or NULL.
INLINE void score(const element *const *q, const void *keys, const void *later, int rows, int D, int narrow, vf *scores) {
    vf part[GROUP][BLOCK];
#if defined(ELEMENT_BF16) && defined(__AVX512BF16__)
    if (D % (2 * LANES) == 0) {
        for (int j = 0; j < BLOCK; j += 2) {
            __m512 a[GROUP], b[GROUP];
            if (later) fetch(behind(later, j * D, narrow), bytes_of(2 * D, narrow));
            for (int m = 0; m < rows; m++) a[m] = b[m] = _mm512_setzero_ps();
            for (int d = 0; d < D; d += 2 * LANES) {
                __m512bh k0 = load_pairs(keys, j * D + d, narrow), k1 = load_pairs(keys, (j + 1) * D + d, narrow);
                for (int m = 0; m < rows; m++) {
                    __m512bh own = (__m512bh)_mm512_loadu_si512(q[m] + d);
                    a[m] = _mm512_dpbf16_ps(a[m], own, k0);
                    b[m] = _mm512_dpbf16_ps(b[m], own, k1);
                }
            }
            for (int m = 0; m < rows; m++) part[m][j] = (vf)a[m], part[m][j + 1] = (vf)b[m];
        }
        for (int m = 0; m < rows; m++) scores[m] = sums(part[m]);
        return;
    }
#endif
    vf wide[GROUP][VECTORS];
    for (int m = 0; m < rows; m++)
        for (int d = 0; d < D / LANES; d++) wide[m][d] = load(q[m] + d * LANES);
    for (int j = 0; j < BLOCK; j += 2) {
        vf a[GROUP] = {}, b[GROUP] = {};
        if (later) fetch(behind(later, j * D, narrow), bytes_of(2 * D, narrow));
        for (int d = 0; d < D / LANES; d++) {
            vf k0 = load_stored(keys, j * D + d * LANES, narrow), k1 = load_stored(keys, (j + 1) * D + d * LANES, narrow);
            for (int m = 0; m < rows; m++) {
                a[m] += wide[m][d] * k0;
                b[m] += wide[m][d] * k1;
            }
        }
        for (int m = 0; m < rows; m++) part[m][j] = a[m], part[m][j + 1] = b[m];
    }
    for (int m = 0; m < rows; m++) scores[m] = sums(part[m]);
}

// Weighted sum of `count` values, of blocks one after the other, onto each row's state: vectors [d, d + n) of it.
// later: blocks of values to be fetched meanwhile, or NULL.
INLINE void gather(const float (*weight)[SPAN], const void *const *values, const void *const *later, int rows, int count,
                   int D, int narrow, int d, int n, State *state) {
    vf sum[GROUP][VECTORS];
    for (int m = 0; m < rows; m++)
        for (int i = 0; i < n; i++) sum[m][i] = state[m].sum[d + i];
    for (int j = 0; j < count; j++) {
        const void *v = values[j / BLOCK];
        int64_t at = j % BLOCK * D + d * LANES;
        if (later) fetch(behind(later[j / BLOCK], at, narrow), bytes_of(n * LANES, narrow));
        for (int i = 0; i < n; i += 2) {
            vf v0, v1 = splat(0.0f);
            if (i + 1 < n) load_values(v, at + i * LANES, narrow, &v0, &v1);
            else v0 = load_stored(v, at + i * LANES, narrow);
            for (int m = 0; m < rows; m++) {
                sum[m][i] += weight[m][j] * v0;
                if (i + 1 < n) sum[m][i + 1] += weight[m][j] * v1;
            }
        }
    }
    for (int m = 0; m < rows; m++)
        for (int i = 0; i < n; i++) state[m].sum[d + i] = sum[m][i];
}

INLINE vf capped(vf x, float cap) {  // cap * tanh(x / cap)
    vf e = exponential(x * (2.0f / cap));
    return cap * (1.0f - 2.0f / (e + 1.0f));
}

INLINE void begin(State *state, int rows, int D) {
    for (int m = 0; m < rows; m++) {
        state[m].top = -INFINITY, state[m].total = 0.0f;
        for (int d = 0; d < D / LANES; d++) state[m].sum[d] = splat(0.0f);
    }
}

typedef struct {
    int64_t row, key, to;  // keys [key, to) of a row; none: NULL
} Later;

// Up to SPAN keys [key, to) onto the states of `rows` query rows at positions pos. later: keys whose first SPAN come next.
INLINE void attend(const Keys *k, int64_t row, int head, const element *const *q, const int64_t *pos, int rows, int D,
                   int narrow, int64_t key, int64_t to, const Later *later, State *state) {
    static const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int count = to - key < SPAN ? (int)(to - key) : SPAN, blocks = (count + BLOCK - 1) / BLOCK;
    vf scores[BLOCKS][GROUP];
    float weight[GROUP][SPAN];
    const void *values[BLOCKS], *later_values[BLOCKS];
    int64_t key_place[BLOCKS], value_place[BLOCKS];
    for (int b = 0; b < blocks; b++) {
        int64_t own_key = place_of(k, row, key + b * BLOCK, head, 0), later_key = own_key;
        int64_t own_value = place_of(k, row, key + b * BLOCK, head, 1), later_value = own_value;
        if (later && later->key + b * BLOCK < later->to) {
            later_key = place_of(k, later->row, later->key + b * BLOCK, head, 0);
            later_value = place_of(k, later->row, later->key + b * BLOCK, head, 1);
            if (narrow) FETCH(k->scales + later_key), FETCH(k->scales + later_value);
        }
        key_place[b] = own_key, value_place[b] = own_value;
        values[b] = behind(k->kv, own_value * D, narrow), later_values[b] = behind(k->kv, later_value * D, narrow);
        const void *later_keys = later ? behind(k->kv, later_key * D, narrow) : NULL;
        score(q, behind(k->kv, own_key * D, narrow), later_keys, rows, D, narrow, scores[b]);
    }
    for (int m = 0; m < rows; m++) {
        vf seen_scores[BLOCKS], most = splat(-INFINITY), total = splat(0.0f);
        for (int b = 0; b < blocks; b++) {
            vf s = scaled(scores[b][m], k, key_place[b]) * k->scale;
            if (k->soft_cap > 0) s = capped(s, k->soft_cap);
            int64_t last = pos[m] - key - b * BLOCK, first = k->window ? last - k->window + 1 : 0;
            vi seen = (vi)(lane <= (int32_t)(last < BLOCK ? (last < -1 ? -1 : last) : BLOCK)) &
                      (vi)(lane >= (int32_t)(first > 0 ? (first < BLOCK ? first : BLOCK) : 0));
            seen_scores[b] = choose(seen, s, splat(-INFINITY));
            most = greater(most, seen_scores[b]);
        }
        float top = highest(most);
        if (top > state[m].top) {
            float fade = exponential(splat(state[m].top - top))[0];
            state[m].total *= fade;
            for (int d = 0; d < D / LANES; d++) state[m].sum[d] *= fade;
            state[m].top = top;
        }
        for (int b = 0; b < blocks; b++) {
            vf w = state[m].top > -INFINITY ? exponential(seen_scores[b] - state[m].top) : splat(0.0f);
            total += w;
            w = scaled(w, k, value_place[b]);
            memcpy(weight[m] + b * BLOCK, &w, sizeof w);
        }
        state[m].total += sum(total);
    }
    int n = rows <= 2 ? 8 : 4;  // vectors of all rows that stay in registers: 16 of 32
    for (int d = 0; d < D / LANES; d += n)
        gather((const float(*)[SPAN])weight, values, later ? later_values : NULL, rows, count, D, narrow, d,
               D / LANES - d < n ? D / LANES - d : n, state);
}

// Add a later chunk to an earlier one.
INLINE void merge(State *into, const State *more, int D) {
    float top = into->top > more->top ? into->top : more->top;
    if (top == -INFINITY) return;
    float a = exponential(splat(into->top - top))[0], b = exponential(splat(more->top - top))[0];
    into->top = top;
    into->total = into->total * a + more->total * b;
    for (int d = 0; d < D / LANES; d++) into->sum[d] = into->sum[d] * a + more->sum[d] * b;
}

// narrow: sums lie as load_values has those of codes.
INLINE void write(element *out, const State *state, int D, int narrow) {
    for (int d = 0; d < D / LANES; d += 2) {
        vf a = state->sum[d] / state->total, b = d + 1 < D / LANES ? state->sum[d + 1] / state->total : a;
        if (d + 1 < D / LANES && !narrow) store_two(out + d * LANES, a, b);
        else {
            store(out + d * LANES, a);
            if (d + 1 < D / LANES) store(out + (d + 1) * LANES, b);
        }
    }
}

INLINE int64_t first_key(const Keys *k, int64_t pos) {
    int64_t first = k->window ? pos - k->window + 1 : 0;
    return first > 0 ? first / SPAN * SPAN : 0;
}

#define BY_ROWS(n, call)              \
    switch (n) {                      \
        case 1: { enum { N = 1 }; call; } break; \
        case 2: { enum { N = 2 }; call; } break; \
        case 3: { enum { N = 3 }; call; } break; \
        default: { enum { N = 4 }; call; } break; \
    }

#define BY_D(D, call)                  \
    switch (D) {                       \
        case 32: { enum { SIZE = 32 }; call; } break;   \
        case 64: { enum { SIZE = 64 }; call; } break;   \
        case 128: { enum { SIZE = 128 }; call; } break; \
        default: { int SIZE = D; call; } break;         \
    }

typedef struct {
    int64_t start, end;
} Range;  // of keys

// All that query rows at positions pos see, from the beginning of a span.
INLINE Range seen_by(const Keys *k, const int64_t *pos, int rows) {
    Range seen = {INT64_MAX, 0};
    for (int m = 0; m < rows; m++) {
        int64_t first = first_key(k, pos[m]);
        seen.start = first < seen.start ? first : seen.start;
        seen.end = pos[m] + 1 > seen.end ? pos[m] + 1 : seen.end;
    }
    return seen;
}

// GROUP or fewer query rows of a prompt, of one K/V head, through the keys `seen` of one chunk of elements: onto their
// states, or where it is the first into them. Keys and pos count from where k's do.
INLINE void run_rows(const Keys *k, int64_t row, int head, const element *const *q, const int64_t *pos, int rows, int D,
                     Range seen, int first, State *state) {
    State part[GROUP];
    State *target = first ? state : part;
    begin(target, rows, D);
    for (int64_t key = seen.start; key < seen.end; key += SPAN)
        attend(k, row, head, q, pos, rows, D, 0, key, seen.end, NULL, target);
    for (int m = 0; m < rows && !first; m++)
        if (part[m].top > -INFINITY) merge(&state[m], &part[m], D);
}

INLINE Range within(Range keys, int64_t chunk) {
    int64_t from = chunk * CHUNK, to = from + CHUNK;
    return (Range){keys.start > from ? keys.start : from, keys.end < to ? keys.end : to};
}

typedef struct {
    element kv[2 * CHUNK * MAX_D];  // [2, CHUNK, D]
    float scales[2 * CHUNK];
} Widened;

// The keys and values of one head and chunk as elements, codes as they are, with their scales: pages of another kind, in
// which the chunk's first key is key 0.
INLINE Keys widen(const Keys *k, int64_t row, int head, int64_t chunk, Range seen, int D, Widened *into) {
    static const int32_t only_page = 0;
    for (int side = 0; side < 2; side++)
        for (int64_t key = seen.start; key < seen.end; key += BLOCK) {
            int64_t place = place_of(k, row, key, head, side), at = side * CHUNK + key - chunk * CHUNK;
            memcpy(into->scales + at, k->scales + place, sizeof(float) * BLOCK);
            for (int64_t i = 0; i < BLOCK * D; i += LANES)
                store(into->kv + at * D + i, load_codes((const int8_t *)k->kv + place * D + i));
        }
    return (Keys){into->kv, into->scales, &only_page, 0, 1, CHUNK, D, k->scale, k->soft_cap, k->window};
}

// A prompt's query rows of one K/V head, GROUP at a time through all their chunks; over pages of codes all of them
// together, chunk after chunk.
INLINE void run_tile(const Keys *k, int64_t row, int head, const element **q, const int64_t *pos, element **out, int rows,
                     int D) {
    State state[GROUP * TILE];
    Widened widened;
    int together = CODES ? rows : GROUP;
    for (int at = 0; at < rows; at += together) {
        int last = rows - at < together ? rows : at + together;
        Range all = seen_by(k, pos + at, last - at);
        for (int64_t chunk = all.start / CHUNK; chunk * CHUNK < all.end; chunk++) {
            int64_t from = CODES ? chunk * CHUNK : 0;  // where own's keys begin
            Keys own = CODES ? widen(k, row, head, chunk, within(all, chunk), D, &widened) : *k;
            for (int m = at; m < last; m += GROUP) {
                int n = last - m < GROUP ? last - m : GROUP;
                Range seen = seen_by(k, pos + m, n), here = within(seen, chunk);
                if (here.start >= here.end) continue;
                int first = chunk * CHUNK <= seen.start;
                int64_t own_pos[GROUP];
                for (int i = 0; i < n; i++) own_pos[i] = pos[m + i] - from;
                here.start -= from, here.end -= from;
                BY_ROWS(n, run_rows(&own, CODES ? 0 : row, CODES ? 0 : head, q + m, own_pos, N, D, here, first,
                                    state + m))
            }
        }
        for (int m = at; m < last; m++) write(out[m], &state[m], D, 0);
    }
}

// The keys of a chunk that a query at `pos` sees.
INLINE Later keys_of(const Keys *k, int64_t row, int64_t pos, int64_t chunk) {
    int64_t from = first_key(k, pos), to = (chunk + 1) * CHUNK < pos + 1 ? (chunk + 1) * CHUNK : pos + 1;
    return (Later){row, from < chunk * CHUNK ? chunk * CHUNK : from, to};
}

// One chunk of a decode row: its query rows of the K/V heads [head, last_head), G each, span by span. While one is
// worked on the next is fetched, at the end the first of `later`: memory gives half as much to those who wait for it.
INLINE void run_chunk(const Keys *k, int64_t row, int head, int last_head, int G, const element *q, int64_t pos, int D,
                      int narrow, int64_t chunk, Later later, State *state) {
    Later own = keys_of(k, row, pos, chunk);
    int64_t from = own.key, to = own.to;
    begin(state, (last_head - head) * G, D);
    int64_t all[GROUP] = {pos, pos, pos, pos};
    for (int64_t key = from; key < to; key += SPAN) {
        Later next = key + SPAN < to ? (Later){row, key + SPAN, to} : later;
        for (int h = head; h < last_head; h++)
            for (int m = 0; m < G; m += GROUP) {
                int n = G - m < GROUP ? G - m : GROUP;
                const element *queries[GROUP];
                for (int i = 0; i < n; i++) queries[i] = q + (h * G + m + i) * D;
                BY_ROWS(n, attend(k, row, h, queries, all, N, D, narrow, key, to, &next, state + (h - head) * G + m))
            }
    }
}

typedef struct {
    int32_t row, at, head, last_head;  // at: the chunk of a decode row, or the first query token of a tile
    int64_t part;                      // of a decode row of several chunks: where its states lie; else -1
} Item;

typedef struct {
    Item *items;
    State *parts;   // [parts, heads]
    int64_t count, num_parts;
} Work;

// Lists what is to be done for rows [first_row, last_row): -1 without memory.
static int list_work(Work *w, const Keys *k, const int64_t *query_start, const int64_t *seq_lens, int64_t first_row,
                     int64_t last_row, int heads, int threads) {
    int G = heads / k->kv_heads, most = STATES / G > 0 ? STATES / G : 1;
    int64_t chunks = 0, tiles = 0;
    for (int64_t r = first_row; r < last_row; r++) {
        int64_t n = query_start[r + 1] - query_start[r], last = seq_lens[r] - 1;
        if (n > 1) tiles += (n + TILE - 1) / TILE;
        else chunks += last / CHUNK - first_key(k, last) / CHUNK + 1;
    }
    // K/V heads of a decode item: all that its states have room for, fewer where threads would find too little to do
    int together = most < k->kv_heads ? most : k->kv_heads;
    while (together > 1 && chunks * ((k->kv_heads + together - 1) / together) < 4 * threads) together = (together + 1) / 2;
    w->items = malloc(sizeof(Item) * (size_t)(tiles * k->kv_heads + chunks * ((k->kv_heads + together - 1) / together) + 1));
    w->parts = NULL;
    w->count = w->num_parts = 0;
    if (!w->items) return -1;
    for (int64_t r = first_row; r < last_row; r++) {
        int64_t n = query_start[r + 1] - query_start[r], last = seq_lens[r] - 1;
        if (n > 1) {
            for (int64_t at = 0; at < n; at += TILE)
                for (int h = 0; h < k->kv_heads; h++) w->items[w->count++] = (Item){(int32_t)r, (int32_t)at, h, h + 1, -1};
            continue;
        }
        int64_t first = first_key(k, last) / CHUNK, end = last / CHUNK + 1;
        for (int64_t c = first; c < end; c++) {
            int64_t part = end - first > 1 || G > STATES ? w->num_parts++ : -1;
            for (int h = 0; h < k->kv_heads; h += together) {
                int last_head = h + together < k->kv_heads ? h + together : k->kv_heads;
                w->items[w->count++] = (Item){(int32_t)r, (int32_t)c, h, last_head, part};
            }
        }
    }
    if (w->num_parts) w->parts = aligned_alloc(64, sizeof(State) * (size_t)(w->num_parts * heads));
    if (w->num_parts && !w->parts) {
        free(w->items);
        return -1;
    }
    return 0;
}

static void run_prompt_item(const Keys *k, Item it, const element *q, element *out, int64_t start, int64_t n,
                            int64_t past, int heads) {
    int G = heads / k->kv_heads, tokens = (int)(n - it.at < TILE ? n - it.at : TILE);
    const element *qs[GROUP * TILE];
    element *outs[GROUP * TILE];
    int64_t pos[GROUP * TILE];
    int rows = 0;
    for (int t = 0; t < tokens; t++)
        for (int g = 0; g < G; g++) {
            int64_t place = ((start + it.at + t) * heads + it.head * G + g) * k->D;
            qs[rows] = q + place, outs[rows] = out + place, pos[rows] = past + it.at + t;
            if (++rows < GROUP * TILE && (t + 1 < tokens || g + 1 < G)) continue;
            BY_D(k->D, run_tile(k, it.row, it.head, qs, pos, outs, rows, SIZE))
            rows = 0;
        }
}

static void run_decode_item(const Keys *k, Item it, const element *q, element *out, int64_t pos, int heads, Later later,
                            State *part) {
    int G = heads / k->kv_heads, count = (it.last_head - it.head) * G;
    State local[STATES], *state = part ? part + it.head * G : local;
    BY_D(k->D, run_chunk(k, it.row, it.head, it.last_head, G, q, pos, SIZE, CODES, it.at, later, state))
    if (!part)
        for (int i = 0; i < count; i++) write(out + (it.head * G + i) * k->D, &state[i], k->D, CODES);
}

typedef struct {
    const Keys *k;
    const Work *work;
    const element *q;
    element *out;
    const int64_t *query_start, *seq_lens;
    int heads, threads;
} Attention;

static void run_items(const void *what, int64_t from, int64_t to) {
    Attention a = *(const Attention *)what;
    for (int64_t i = from; i < to; i++) {
        Item it = a.work->items[i];
        int64_t start = a.query_start[it.row], n = a.query_start[it.row + 1] - start, past = a.seq_lens[it.row] - n;
        int64_t place = start * a.heads * a.k->D;
        State *part = it.part < 0 ? NULL : a.work->parts + it.part * a.heads;
        Later later = {0, 0, 0};
        if (i + a.threads < a.work->count) {  // what this thread will probably take next
            Item then = a.work->items[i + a.threads];
            later = keys_of(a.k, then.row, a.seq_lens[then.row] - 1, then.at);
        }
        if (n > 1) run_prompt_item(a.k, it, a.q, a.out, start, n, past, a.heads);
        else run_decode_item(a.k, it, a.q + place, a.out + place, past, a.heads, later, part);
    }
}

// q, out [T, Hq, D]; query_start [R+1], seq_lens [R]. rows [first_row, last_row). scales: not NULL for attention_codes
// alone. Returns 0, or -1 without memory.
int attention(const element *q, const void *kv, const float *scales, const int64_t *query_start, const int64_t *seq_lens,
              const int32_t *page_table, element *out, int64_t first_row, int64_t last_row, int64_t pages_a_row,
              int64_t heads, int64_t kv_heads, int64_t page_size, int64_t D, float scale, float soft_cap, int64_t window) {
    Keys k = {kv, scales, page_table, pages_a_row, (int)kv_heads, (int)page_size, (int)D, scale, soft_cap, window};
    int64_t load = 0;
    for (int64_t r = first_row; r < last_row; r++) load += (query_start[r + 1] - query_start[r]) * seq_lens[r];
    int worth = load * heads > 4096;
    Work w;
    if (list_work(&w, &k, query_start, seq_lens, first_row, last_row, (int)heads, worth ? threads() : 1)) return -1;
    share(w.count, 1, worth, run_items, &(Attention){&k, &w, q, out, query_start, seq_lens, (int)heads, threads()});
    for (int64_t i = 0; i < w.count;) {  // merge the chunks of a row, first to last
        Item it = w.items[i];
        int64_t chunks = 0;
        for (; i < w.count && w.items[i].row == it.row; i++) chunks += it.part >= 0 && w.items[i].head == 0;
        element *to = out + query_start[it.row] * heads * D;
        for (int64_t h = 0; h < heads && chunks; h++) {
            State *first = w.parts + it.part * heads + h;
            for (int64_t c = 1; c < chunks; c++)
                if (first[c * heads].top > -INFINITY) merge(first, first + c * heads, (int)D);
            write(to + h * D, first, (int)D, CODES);
        }
    }
    free(w.items), free(w.parts);
    return 0;
}
