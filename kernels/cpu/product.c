// out = x W^T + bias in bf16, for processors that multiply bf16 pairs (AVX512-BF16) and have no tiles for it (AMX).
//
// The weight is packed once (panels.h), in pairs along K. An output is one sum over K in one order, in fp32, rounded
// once: the same to the bit for any number of rows or threads.
#include "operations.h"
#include "panels.h"
#include "threads.h"

#if HAS_PRODUCT
#include <immintrin.h>

int has_product(void) { return 1; }

int64_t packed_elements(int64_t N, int64_t K) { return padded_columns(N) * K; }

typedef struct {
    const element *weight;
    element *packed;
    int64_t N, K;
} Packing;

static void pack_panels(const void *what, int64_t from, int64_t to) {
    Packing w = *(const Packing *)what;
    for (int64_t p = from; p < to; p++) {
        int64_t width = vectors_in(w.N, p) * LANES;
        element *out = w.packed + p * PANEL * w.K;
        for (int64_t begin = 0; begin < w.K; begin += 64)  // two cache lines of every column: 8 KB to be filled at a time
            for (int64_t n = 0; n < width; n++) {
                const element *in = w.weight + (p * PANEL + n) * w.K;
                int64_t end = begin + 64 < w.K ? begin + 64 : w.K;
                for (int64_t k = begin; k < end; k += 2) {
                    uint32_t pair = 0;
                    if (p * PANEL + n < w.N) memcpy(&pair, in + k, sizeof pair);
                    memcpy(out + k * width + 2 * n, &pair, sizeof pair);
                }
            }
    }
}

// weight [N, K] -> packed [packed_elements(N, K)]; K is even.
void pack_weight(const element *weight, element *packed, int64_t N, int64_t K) {
    share(panels(N), 1, 1, pack_panels, &(Packing){weight, packed, N, K});
}

// `rows` rows of x times one panel of `vectors` vectors. columns: how many of the panel's columns there are.
INLINE void tile(const element *x, const element *panel, const element *bias, element *out, int rows, int vectors,
                 int64_t columns, int64_t N, int64_t K) {
    __m512 sum[ROWS][VECTORS_A_PANEL];
    for (int m = 0; m < rows; m++)
        for (int v = 0; v < vectors; v++) sum[m][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k += 2) {
        const char *w = (const char *)(panel + k * vectors * LANES);
        __m512bh column[VECTORS_A_PANEL];
        for (int v = 0; v < vectors; v++) {
            column[v] = (__m512bh)_mm512_loadu_si512(w + 64 * v);
            _mm_prefetch(w + AHEAD + 64 * v, _MM_HINT_T0);
        }
        for (int m = 0; m < rows; m++) {
            int32_t pair;
            memcpy(&pair, x + m * K + k, sizeof pair);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            for (int v = 0; v < vectors; v++) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], both, column[v]);
        }
    }
    for (int v = 0; v < vectors; v++) {
        int64_t left = columns - v * LANES;
        __mmask16 there = left >= LANES ? 0xFFFF : (__mmask16)((1u << left) - 1);
        __m512 add = _mm512_setzero_ps();
        if (bias) {
            __m256i b = _mm256_maskz_loadu_epi16(there, bias + v * LANES);
            add = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
        }
        for (int m = 0; m < rows; m++) {
            __m256i rounded_sum = (__m256i)_mm512_cvtneps_pbh(bias ? _mm512_add_ps(sum[m][v], add) : sum[m][v]);
            _mm256_mask_storeu_epi16(out + m * N + v * LANES, there, rounded_sum);
        }
    }
}

static void one_panel(const element *x, const element *panel, const element *bias, element *out, int64_t rows,
                      int64_t vectors, int64_t columns, int64_t N, int64_t K) {
    int64_t tiles = (rows + ROWS - 1) / ROWS;
    for (int64_t t = 0; t < tiles; t++) {
        int n = height_of(rows, t, tiles);
        BY_SIZE(n, vectors, tile(x, panel, bias, out, HEIGHT, WIDTH, columns, N, K))
        x += n * K, out += n * N;
    }
}

typedef struct {
    const element *x, *packed, *bias;
    element *out;
    int64_t M, N, K, parts;
} Product;

// Items are panels, each in as many parts of the rows as `parts` says.
static void multiply(const void *what, int64_t from, int64_t to) {
    Product w = *(const Product *)what;
    for (int64_t i = from; i < to; i++) {
        int64_t p = i / w.parts, part = i % w.parts, first = w.M * part / w.parts, last = w.M * (part + 1) / w.parts;
        int64_t columns = w.N - p * PANEL < PANEL ? w.N - p * PANEL : PANEL;
        one_panel(w.x + first * w.K, w.packed + p * PANEL * w.K, w.bias ? w.bias + p * PANEL : NULL,
                  w.out + first * w.N + p * PANEL, last - first, vectors_in(w.N, p), columns, w.N, w.K);
    }
}

// x [M, K], packed weight of [N, K], bias [N] or NULL -> out [M, N]. K is even.
void product(const element *x, const element *packed, const element *bias, element *out, int64_t M, int64_t N,
             int64_t K) {
    int64_t parts = parts_of_rows(M, N);
    share(panels(N) * parts, 1, M * N * K > 16384, multiply, &(Product){x, packed, bias, out, M, N, K, parts});
}
#else
int has_product(void) { return 0; }
#endif
