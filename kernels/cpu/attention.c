// Attention over pages; kernels/paged_attention.py says what it computes.
//
// One order for every query token, whatever stands beside it: keys in blocks of 16 with an online softmax, blocks in
// chunks of CHUNK keys, chunks merged first to last. So a token's result is the same to the bit as a decode row or in
// a prompt's chunk, alone or in any batch, with any number of threads. Threads share the work by (row, K/V head, chunk)
// for decode rows and by (row, K/V head, tile of queries) for prompts; the heads of one K/V head read it together.
#include "vectors.h"

#include <stdlib.h>

#define BLOCK 16    // keys a softmax update takes
#define CHUNK 512   // keys between two merges; a multiple of every page size
#define TILE 32     // query tokens of a prompt that one work item takes
#define MAX_D 256
#define VECTORS (MAX_D / LANES)
#define GROUP 4     // query rows (token, head) that share a pass over the keys

typedef struct {
    const element *kv;          // [pages, 2, Hkv, page_size, D]
    const int32_t *page_table;  // [R, P]
    int64_t pages_a_row;        // P
    int kv_heads, page_size, D;
    float scale, soft_cap;      // soft_cap 0: none
    int64_t window;             // keys seen, counting the token itself; 0: all
} Keys;

typedef struct {
    float top, total;
    vf sum[VECTORS];
} State;

INLINE const element *page_of(const Keys *k, int64_t row, int64_t key, int head, int side) {
    int64_t page = k->page_table[row * k->pages_a_row + key / k->page_size];
    return k->kv + (((page * 2 + side) * k->kv_heads + head) * k->page_size + key % k->page_size) * k->D;
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

// Scores of `rows` query rows against BLOCK keys.
INLINE void score(const vf (*q)[VECTORS], const element *keys, int rows, int D, vf *scores) {
    vf part[GROUP][BLOCK];
    for (int j = 0; j < BLOCK; j += 2) {
        vf a[GROUP] = {}, b[GROUP] = {};
        for (int d = 0; d < D / LANES; d++) {
            vf k0 = load(keys + j * D + d * LANES), k1 = load(keys + (j + 1) * D + d * LANES);
            for (int m = 0; m < rows; m++) {
                a[m] += q[m][d] * k0;
                b[m] += q[m][d] * k1;
            }
        }
        for (int m = 0; m < rows; m++) part[m][j] = a[m], part[m][j + 1] = b[m];
    }
    for (int m = 0; m < rows; m++) scores[m] = sums(part[m]);
}

// Weighted sum of the first `count` values onto each row's state.
INLINE void gather(const float (*weight)[BLOCK], const element *values, int rows, int count, int D, State *state) {
    for (int d = 0; d < D / LANES; d += 2) {
        int both = d + 1 < D / LANES;
        vf a[GROUP], b[GROUP];
        for (int m = 0; m < rows; m++) a[m] = state[m].sum[d], b[m] = both ? state[m].sum[d + 1] : splat(0.0f);
        for (int j = 0; j < count; j++) {
            const element *v = values + j * D + d * LANES;
            vf v0 = load(v), v1 = both ? load(v + LANES) : splat(0.0f);
            for (int m = 0; m < rows; m++) {
                a[m] += weight[m][j] * v0;
                b[m] += weight[m][j] * v1;
            }
        }
        for (int m = 0; m < rows; m++) {
            state[m].sum[d] = a[m];
            if (both) state[m].sum[d + 1] = b[m];
        }
    }
}

INLINE vf capped(vf x, float cap) {  // cap * tanh(x / cap)
    vf e = exponential(x * (2.0f / cap));
    return cap * (1.0f - 2.0f / (e + 1.0f));
}

// Keys [from, to) of one chunk onto the states of `rows` query rows at positions pos.
INLINE void attend(const Keys *k, int64_t row, int head, const vf (*q)[VECTORS], const int64_t *pos, int rows, int D,
                   int64_t from, int64_t to, State *state) {
    static const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int m = 0; m < rows; m++) {
        state[m].top = -INFINITY, state[m].total = 0.0f;
        for (int d = 0; d < D / LANES; d++) state[m].sum[d] = splat(0.0f);
    }
    for (int64_t key = from; key < to; key += BLOCK) {
        int count = to - key < BLOCK ? (int)(to - key) : BLOCK;
        vf scores[GROUP];
        float weight[GROUP][BLOCK];
        score(q, page_of(k, row, key, head, 0), rows, D, scores);
        for (int m = 0; m < rows; m++) {
            vf s = k->soft_cap > 0 ? capped(scores[m], k->soft_cap) : scores[m];
            int64_t last = pos[m] - key, first = k->window ? last - k->window + 1 : 0;
            vi seen = (vi)(lane <= (int32_t)(last < BLOCK ? last : BLOCK)) &
                      (vi)(lane >= (int32_t)(first > 0 ? (first < BLOCK ? first : BLOCK) : 0));
            s = choose(seen, s, splat(-INFINITY));
            float top = highest(s);
            if (top > state[m].top) {
                float fade = exponential(splat(state[m].top - top))[0];
                state[m].total *= fade;
                for (int d = 0; d < D / LANES; d++) state[m].sum[d] *= fade;
                state[m].top = top;
            }
            vf w = state[m].top > -INFINITY ? exponential(s - state[m].top) : splat(0.0f);
            state[m].total += sum(w);
            memcpy(weight[m], &w, sizeof w);
        }
        gather(weight, page_of(k, row, key, head, 1), rows, count, D, state);
    }
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

INLINE void write(element *out, const State *state, int D) {
    for (int d = 0; d < D / LANES; d++) store(out + d * LANES, state->sum[d] / state->total);
}

INLINE void load_query(const element *q, float scale, int D, vf *to) {
    for (int d = 0; d < D / LANES; d++) to[d] = load(q + d * LANES) * scale;
}

INLINE int64_t first_chunk(const Keys *k, int64_t pos) {
    int64_t first = k->window ? pos - k->window + 1 : 0;
    return first > 0 ? first / CHUNK : 0;
}

// `rows` query rows through all their chunks, or only through chunk `only` where that is not negative.
INLINE void run_rows(const Keys *k, int64_t row, int head, const element *const *q, const int64_t *pos, int rows, int D,
                     int64_t only, State *state) {
    vf wide[GROUP][VECTORS];
    int64_t last = 0, begin = INT64_MAX;
    for (int m = 0; m < rows; m++) {
        load_query(q[m], k->scale, D, wide[m]);
        last = pos[m] > last ? pos[m] : last;
        int64_t first = first_chunk(k, pos[m]);
        begin = first < begin ? first : begin;
    }
    int64_t end = last / CHUNK + 1;
    if (only >= 0) begin = only, end = only + 1;
    for (int64_t chunk = begin; chunk < end; chunk++) {
        int64_t from = chunk * CHUNK, to = from + CHUNK < last + 1 ? from + CHUNK : last + 1;
        State part[GROUP];
        State *target = chunk == begin ? state : part;
        attend(k, row, head, (const vf(*)[VECTORS])wide, pos, rows, D, from, to, target);
        if (chunk > begin)
            for (int m = 0; m < rows; m++)
                if (part[m].top > -INFINITY) merge(&state[m], &part[m], D);
    }
}

#define BY_ROWS(n, call)              \
    switch (n) {                      \
        case 1: { enum { N = 1 }; call; } break; \
        case 2: { enum { N = 2 }; call; } break; \
        case 3: { enum { N = 3 }; call; } break; \
        default: { enum { N = 4 }; call; } break; \
    }

// A run of query rows, GROUP at a time. q, pos and out by row; states (if given) take the result instead of out.
INLINE void run_many(const Keys *k, int64_t row, int head, const element **q, const int64_t *pos, element **out, int rows,
                     int D, int64_t only, State *states) {
    for (int m = 0; m < rows; m += GROUP) {
        int n = rows - m < GROUP ? rows - m : GROUP;
        State local[GROUP], *state = states ? states + m : local;
        BY_ROWS(n, run_rows(k, row, head, q + m, pos + m, N, D, only, state))
        if (!states)
            for (int i = 0; i < n; i++) write(out[m + i], &state[i], D);
    }
}

#define BY_D(D, call)                  \
    switch (D) {                       \
        case 32: { enum { SIZE = 32 }; call; } break;   \
        case 64: { enum { SIZE = 64 }; call; } break;   \
        case 128: { enum { SIZE = 128 }; call; } break; \
        default: { int SIZE = D; call; } break;         \
    }

typedef struct {
    int32_t row, head, at, count;  // at: the chunk of a decode row, or the first query token of a tile
    int64_t cost;
} Item;

// q, out [T, Hq, D]; query_start [R+1], seq_lens [R]. rows [first_row, last_row). Returns 0, or -1 without memory.
int attention(const element *q, const element *kv, const int64_t *query_start, const int64_t *seq_lens,
              const int32_t *page_table, element *out, int64_t first_row, int64_t last_row, int64_t pages_a_row,
              int64_t heads, int64_t kv_heads, int64_t page_size, int64_t D, float scale, float soft_cap, int64_t window) {
    Keys k = {kv, page_table, pages_a_row, (int)kv_heads, (int)page_size, (int)D, scale, soft_cap, window};
    int G = (int)(heads / kv_heads);
    int64_t room = 0, partials = 0, work = 0;
    for (int64_t r = first_row; r < last_row; r++) {
        int64_t n = query_start[r + 1] - query_start[r], chunks = (seq_lens[r] - 1) / CHUNK + 1;
        room += n == 1 ? chunks : (n + TILE - 1) / TILE;
        if (n == 1 && chunks > 1) partials += chunks;
        work += n * seq_lens[r];
    }
    Item *items = malloc(sizeof(Item) * (size_t)(room * kv_heads));
    State *states = partials ? aligned_alloc(64, sizeof(State) * (size_t)(partials * heads)) : NULL;
    if (!items || (partials && !states)) {
        free(items), free(states);
        return -1;
    }
    int64_t count = 0;
    for (int64_t r = first_row; r < last_row; r++) {
        int64_t n = query_start[r + 1] - query_start[r];
        int64_t begin = n == 1 ? first_chunk(&k, seq_lens[r] - 1) : 0;
        int64_t end = n == 1 ? (seq_lens[r] - 1) / CHUNK + 1 : n;
        for (int64_t at = begin; at < end; at += n == 1 ? 1 : TILE)
            for (int64_t h = 0; h < kv_heads; h++)
                items[count++] = (Item){(int32_t)r, (int32_t)h, (int32_t)at, (int32_t)(n == 1 ? end - begin : 0), 0};
    }
    // Where a decode row's partial states begin: rows in order, those of more than one chunk only.
    int64_t *offset = malloc(sizeof(int64_t) * (size_t)(last_row - first_row + 1));
    if (!offset) {
        free(items), free(states);
        return -1;
    }
    int64_t next = 0;
    for (int64_t r = first_row; r < last_row; r++) {
        int64_t n = query_start[r + 1] - query_start[r], chunks = (seq_lens[r] - 1) / CHUNK + 1;
        offset[r - first_row] = next;
        if (n == 1 && chunks > 1) next += chunks;
    }
#pragma omp parallel for schedule(dynamic, 1) if (work * heads > 4096)
    for (int64_t i = 0; i < count; i++) {
        Item it = items[i];
        int64_t start = query_start[it.row], n = query_start[it.row + 1] - start, past = seq_lens[it.row] - n;
        const element *qs[TILE * 16];
        element *outs[TILE * 16];
        int64_t pos[TILE * 16];
        int tokens = n == 1 ? 1 : (int)(n - it.at < TILE ? n - it.at : TILE), at_once = (TILE * 16) / G;
        int64_t token = n == 1 ? 0 : it.at;
        while (tokens > 0) {
            int some = tokens < at_once ? tokens : at_once;
            for (int t = 0; t < some; t++)
                for (int g = 0; g < G; g++) {
                    int64_t place = ((start + token + t) * heads + it.head * G + g) * D;
                    qs[t * G + g] = q + place, outs[t * G + g] = out + place, pos[t * G + g] = past + token + t;
                }
            State *parts = n == 1 && it.count > 1
                ? states + (offset[it.row - first_row] + it.at) * heads + it.head * G : NULL;
            BY_D(D, run_many(&k, it.row, it.head, qs, pos, outs, some * G, SIZE, n == 1 ? it.at : -1, parts))
            tokens -= some, token += some;
        }
    }
    for (int64_t i = 0; i < count && partials; i++) {
        Item it = items[i];
        int64_t start = query_start[it.row], begin = first_chunk(&k, seq_lens[it.row] - 1);
        if (query_start[it.row + 1] - start != 1 || it.count < 2 || it.at != begin) continue;
        for (int g = 0; g < G; g++) {
            State *first = states + (offset[it.row - first_row] + begin) * heads + it.head * G + g;
            for (int c = 1; c < it.count; c++)
                if (first[c * heads].top > -INFINITY) merge(first, first + c * heads, (int)D);
            write(out + (start * heads + it.head * G + g) * D, first, (int)D);
        }
    }
    free(items), free(states), free(offset);
    return 0;
}
