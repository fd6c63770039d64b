// From rows to the flat batch; kernels/prepare_batch.py says what goes where. A few hundred numbers a step: one call
// here instead of some twenty of torch's, each of which takes longer than its work.
#include <stdint.h>

typedef struct {
    const int32_t *tokens, *page_table;
    const int64_t *computed, *rows, *query_lens, *logits_rows;
    int64_t max_len, max_pages, page_size;  // of the tables' rows
    int64_t R, wanted;                      // rows of this step, and how many logits
} Rows;

// sizes: the tokens of the step, the pages of its longest row.
void batch_sizes(const Rows *in, int64_t *sizes) {
    int64_t longest = 0;
    sizes[0] = 0;
    for (int64_t r = 0; r < in->R; r++) {
        int64_t length = in->computed[in->rows[r]] + in->query_lens[r];
        sizes[0] += in->query_lens[r];
        longest = length > longest ? length : longest;
    }
    sizes[1] = (longest + in->page_size - 1) / in->page_size;
}

// ids, positions, slots [T]; query_start [R+1]; seq_lens [R]; index [L]; pages [R, P]. T and L may be more than there is.
void prepare_batch(const Rows *in, int64_t *ids, int64_t *positions, int64_t *slots, int64_t *query_start,
                   int64_t *seq_lens, int64_t *index, int32_t *pages, int64_t T, int64_t L, int64_t P) {
    int64_t t = 0;
    for (int64_t r = 0; r < in->R; r++) {
        int64_t row = in->rows[r], start = in->computed[row], length = start + in->query_lens[r];
        const int32_t *own = in->page_table + row * in->max_pages, *tokens = in->tokens + row * in->max_len;
        query_start[r] = t, seq_lens[r] = length;
        for (int64_t at = start; at < length; at++, t++) {
            ids[t] = tokens[at], positions[t] = at;
            slots[t] = own[at / in->page_size] * in->page_size + at % in->page_size;
        }
        for (int64_t p = 0; p < P; p++) pages[r * P + p] = p < in->max_pages ? own[p] : 0;
    }
    query_start[in->R] = t;
    for (; t < T; t++) ids[t] = positions[t] = 0, slots[t] = -1;
    for (int64_t l = 0; l < L; l++) index[l] = l < in->wanted ? query_start[in->logits_rows[l] + 1] - 1 : 0;
}
