// What the files here offer one another; each is described where it is defined.
#include "vectors.h"

// Processors that multiply bf16 pairs and have no tiles for it: oneDNN does all others' products, at least as well.
#if defined(ELEMENT_BF16) && defined(__AVX512BF16__) && !defined(__AMX_TILE__)
#define HAS_PRODUCT 1
#else
#define HAS_PRODUCT 0
#endif

// Processors that multiply bytes in groups of four, whatever the element.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HAS_INT8_PRODUCT 1
#else
#define HAS_INT8_PRODUCT 0
#endif

int int8_product(const element *x, const uint8_t *packed, const float *scales, const element *bias, element *out, int64_t M,
                 int64_t N, int64_t K);
void product(const element *x, const element *packed, const element *bias, element *out, int64_t M, int64_t N,
             int64_t K);
void rms_norm(const element *x, element *residual, const element *weight, element *out, int64_t T, int64_t n, float eps);
void silu_mul(const element *gate_up, element *out, int64_t T, int64_t n);
// Pages hold elements, then scales is NULL; or int8 codes, each head of a token with a scale of its own.
void norm_rope_write(const element *qkv, void *kv, float *scales, const int64_t *positions, const int64_t *slots,
                     const float *cos_sin, const element *q_norm, const element *k_norm, element *q, int64_t T,
                     int64_t heads, int64_t kv_heads, int64_t page_size, int64_t D, float eps);
// scales: NULL for attention, which reads elements; attention_codes reads codes.
int attention(const element *q, const void *kv, const float *scales, const int64_t *query_start, const int64_t *seq_lens,
              const int32_t *page_table, element *out, int64_t first_row, int64_t last_row, int64_t pages_a_row,
              int64_t heads, int64_t kv_heads, int64_t page_size, int64_t D, float scale, float soft_cap, int64_t window);
int attention_codes(const element *q, const void *kv, const float *scales, const int64_t *query_start,
                    const int64_t *seq_lens, const int32_t *page_table, element *out, int64_t first_row, int64_t last_row,
                    int64_t pages_a_row, int64_t heads, int64_t kv_heads, int64_t page_size, int64_t D, float scale,
                    float soft_cap, int64_t window);
