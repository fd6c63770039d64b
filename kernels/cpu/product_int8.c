// out = x W^T + bias with weights of int8, for processors that multiply bytes in groups of four (AVX512-VNNI).
//
// w[n, k] = code[n, k] * scale[n]. A row of x is rounded to codes as well, with a scale for every BLOCK inputs, so that a
// great value costs only its own block's accuracy; within a block sums are whole numbers and exact, and blocks are
// added in fp32, first to last. So an output is the same to the bit for any number of rows or threads.
//
// The instruction multiplies unsigned by signed bytes: the weight's codes are kept as code + 128, and 128 times the sum of
// a block of x is taken off beforehand.
#include "operations.h"
#include "panels.h"
#include "threads.h"

#if HAS_INT8_PRODUCT
#include <immintrin.h>
#include <stdlib.h>

#define BLOCK 128

int has_int8_product(void) { return 1; }

int64_t int8_packed_bytes(int64_t N, int64_t K) { return padded_columns(N) * K; }

int64_t int8_scales(int64_t N) { return padded_columns(N); }

typedef struct {
    const element *weight;
    uint8_t *packed;
    float *scales;
    int64_t N, K;
} Packing;

static void pack_panels(const void *what, int64_t from, int64_t to) {
    Packing w = *(const Packing *)what;
    for (int64_t p = from; p < to; p++) {
        int64_t width = vectors_in(w.N, p) * LANES;
        uint8_t *out = w.packed + p * PANEL * w.K;
        for (int64_t n = 0; n < width; n++) {
            int64_t column = p * PANEL + n;
            const element *in = w.weight + column * w.K;
            float scale = column < w.N ? magnitude(in, w.K) / 127.0f : 0.0f;
            w.scales[column] = scale;
            for (int64_t k = 0; k < w.K; k += LANES) {
                int8_t codes[LANES] = {0};
                if (column < w.N) store_codes(codes, scale == 0 ? splat(0.0f) : load(in + k) / scale);
                for (int64_t i = 0; i < LANES; i++) out[(k + i) / 4 * 4 * width + 4 * n + i % 4] = (uint8_t)(codes[i] + 128);
            }
        }
    }
}

// weight [N, K] -> packed [int8_packed_bytes(N, K)], scales [int8_scales(N)]; K is a multiple of 16.
void pack_int8_weight(const element *weight, uint8_t *packed, float *scales, int64_t N, int64_t K) {
    share(panels(N), 1, 1, pack_panels, &(Packing){weight, packed, scales, N, K});
}

typedef struct {
    const element *x;
    int8_t *codes;    // [M, K]
    float *scales;    // [M, blocks]
    int32_t *starts;  // [M, blocks]: -128 times the sum of a block's codes
    int64_t K, blocks;
} Rounded;

static void round_rows(const void *what, int64_t from, int64_t to) {
    Rounded r = *(const Rounded *)what;
    for (int64_t i = from * r.blocks; i < to * r.blocks; i++) {
        int64_t begin = i % r.blocks * BLOCK, count = r.K - begin < BLOCK ? r.K - begin : BLOCK;
        const element *x = r.x + i / r.blocks * r.K + begin;
        int8_t *codes = r.codes + i / r.blocks * r.K + begin;
        float top = magnitude(x, count), inverse = top > 0 ? 127.0f / top : 0.0f;
        vi sum = {};
        for (int64_t k = 0; k < count; k += LANES) {
            vi code = (vi)(load(x + k) * inverse + 12582912.0f) - 0x4B400000;
            vb narrow = __builtin_convertvector(code, vb);
            memcpy(codes + k, &narrow, sizeof narrow);
            sum += code;
        }
        int32_t all = 0;
        for (int l = 0; l < LANES; l++) all += sum[l];
        r.scales[i] = top / 127.0f, r.starts[i] = -128 * all;  // a scale that is not finite makes the output so
    }
}

typedef struct {
    const uint8_t *codes;
    const float *scales;
    const element *bias;
} Columns;

// `rows` rows of x, from row `first` on, times one panel of `vectors` vectors. columns: how many the panel has.
INLINE void tile(const Rounded *x, int64_t first, Columns panel, element *out, int rows, int vectors, int64_t columns,
                 int64_t N) {
    vf sum[ROWS][VECTORS_A_PANEL];
    for (int m = 0; m < rows; m++)
        for (int v = 0; v < vectors; v++) sum[m][v] = splat(0.0f);
    const int8_t *codes = x->codes + first * x->K;
    for (int64_t b = 0; b < x->blocks; b++) {
        int64_t end = (b + 1) * BLOCK < x->K ? (b + 1) * BLOCK : x->K, place = first * x->blocks + b;
        __m512i part[ROWS][VECTORS_A_PANEL];
        for (int m = 0; m < rows; m++)
            for (int v = 0; v < vectors; v++) part[m][v] = _mm512_set1_epi32(x->starts[place + m * x->blocks]);
        for (int64_t k = b * BLOCK; k < end; k += 4) {
            const uint8_t *w = panel.codes + k * vectors * LANES;
            __m512i column[VECTORS_A_PANEL];
            for (int v = 0; v < vectors; v++) {
                column[v] = _mm512_loadu_si512(w + 64 * v);
                _mm_prefetch(w + AHEAD + 64 * v, _MM_HINT_T0);
            }
            for (int m = 0; m < rows; m++) {
                int32_t four;
                memcpy(&four, codes + m * x->K + k, sizeof four);
                __m512i own = _mm512_set1_epi32(four);
                for (int v = 0; v < vectors; v++) part[m][v] = _mm512_dpbusd_epi32(part[m][v], column[v], own);
            }
        }
        for (int m = 0; m < rows; m++)
            for (int v = 0; v < vectors; v++)
                sum[m][v] += (vf)_mm512_cvtepi32_ps(part[m][v]) * x->scales[place + m * x->blocks];
    }
    for (int v = 0; v < vectors; v++) {
        int64_t left = columns - v * LANES;
        vf scale = load_float(panel.scales + v * LANES), add = splat(0.0f);
        element some[LANES] = {0};
        if (panel.bias) {
            memcpy(some, panel.bias + v * LANES, sizeof(element) * (size_t)(left < LANES ? left : LANES));
            add = load(some);
        }
        for (int m = 0; m < rows; m++) {
            store(some, sum[m][v] * scale + add);
            memcpy(out + m * N + v * LANES, some, sizeof(element) * (size_t)(left < LANES ? left : LANES));
        }
    }
}

typedef struct {
    const Rounded *x;
    Columns weight;
    element *out;
    int64_t M, N, parts;
} Product;

// Items are panels, each in as many parts of the rows as `parts` says.
static void multiply(const void *what, int64_t from, int64_t to) {
    Product w = *(const Product *)what;
    for (int64_t i = from; i < to; i++) {
        int64_t p = i / w.parts, part = i % w.parts, at = w.M * part / w.parts, last = w.M * (part + 1) / w.parts;
        int64_t columns = w.N - p * PANEL < PANEL ? w.N - p * PANEL : PANEL, vectors = vectors_in(w.N, p);
        Columns panel = {w.weight.codes + p * PANEL * w.x->K, w.weight.scales + p * PANEL,
                         w.weight.bias ? w.weight.bias + p * PANEL : NULL};
        int64_t rows = last - at, tiles = (rows + ROWS - 1) / ROWS;
        for (int64_t t = 0; t < tiles; t++) {
            int n = height_of(rows, t, tiles);
            BY_SIZE(n, vectors, tile(w.x, at, panel, w.out + at * w.N + p * PANEL, HEIGHT, WIDTH, columns, w.N))
            at += n;
        }
    }
}

// x [M, K], packed weight of [N, K] and its scales, bias [N] or NULL -> out [M, N]. K is a multiple of 16. Returns 0, or
// -1 without memory.
int int8_product(const element *x, const uint8_t *packed, const float *scales, const element *bias, element *out, int64_t M,
                 int64_t N, int64_t K) {
    int64_t blocks = (K + BLOCK - 1) / BLOCK, parts = parts_of_rows(M, N);
    char *scratch = malloc((size_t)(M * blocks * 8 + M * K + 1));
    if (!scratch) return -1;
    float *own_scales = (float *)scratch;
    int32_t *starts = (int32_t *)(own_scales + M * blocks);
    Rounded r = {x, (int8_t *)(starts + M * blocks), own_scales, starts, K, blocks};
    share(M, 8, M * K > 32768, round_rows, &r);
    share(panels(N) * parts, 1, M * N * K > 32768, multiply, &(Product){&r, {packed, scales, bias}, out, M, N, parts});
    free(scratch);
    return 0;
}
#else
int has_int8_product(void) { return 0; }
#endif
