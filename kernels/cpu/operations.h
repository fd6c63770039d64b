// What the files here offer one another; each is described where it is defined.
#include "vectors.h"

// Processors that multiply bf16 pairs and have no tiles for it: oneDNN does all others' products, at least as well.
#if defined(ELEMENT_BF16) && defined(__AVX512BF16__) && !defined(__AMX_TILE__)
#define HAS_PRODUCT 1
#else
#define HAS_PRODUCT 0
#endif

void product(const element *x, const element *packed, const element *bias, element *out, int64_t M, int64_t N,
             int64_t K);
void rms_norm(const element *x, element *residual, const element *weight, element *out, int64_t T, int64_t n, float eps);
void silu_mul(const element *gate_up, element *out, int64_t T, int64_t n);
void norm_rope_write(const element *qkv, element *kv, const int64_t *positions, const int64_t *slots, const float *cos_sin,
                     const element *q_norm, const element *k_norm, element *q, int64_t T, int64_t heads, int64_t kv_heads,
                     int64_t page_size, int64_t D, float eps);
int attention(const element *q, const element *kv, const int64_t *query_start, const int64_t *seq_lens,
              const int32_t *page_table, element *out, int64_t first_row, int64_t last_row, int64_t pages_a_row,
              int64_t heads, int64_t kv_heads, int64_t page_size, int64_t D, float scale, float soft_cap, int64_t window);
