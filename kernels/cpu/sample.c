// A token for each row: the greatest logit, or of what min-p, top-k and top-p leave the greatest score plus noise, without
// a sort and without a [rows, vocab] tensor; kernels/sample.py says what is computed.
//
// A row is worked on by one thread from its first token to its last, so its result depends on nothing else. Tokens are
// ruled out by one number a row, the `key` of the least likely that stays: a score's bits without its sign, so that of
// scores up to 0 the likelier has the smaller key. top-k and top-p look for the least key up to which there are k
// tokens, or p of the mass: by the eleven upper bits of the keys, then by ten more, then by the last ten.
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

typedef struct {
    const element *logits;
    const float *temperature, *top_p, *min_p;
    const int64_t *top_k, *seed, *offset;
    int64_t *ids, V;
} Draws;

typedef struct {
    const element *logits;
    int64_t V;
    float top, temperature;
} Row;

INLINE vf logits_at(const Row *row, int64_t i) {
    return i + LANES <= row->V ? load(row->logits + i) : load_some(row->logits + i, row->V - i);
}

// (logit - top) / temperature: 0 at the top, whatever the temperature.
INLINE vf scores_at(const Row *row, int64_t i) {
    vf logit = logits_at(row, i);
    return choose((vi)(logit == splat(row->top)), splat(0.0f), (logit - row->top) / row->temperature);
}

INLINE vi keys_of(vf scores) { return (vi)scores & 0x7FFFFFFF; }

INLINE int any(vi where) {
    uint64_t words[8];
    memcpy(words, &where, sizeof words);
    return (words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7]) != 0;
}

static int64_t greatest(const Row *row) {
    Best best = {splat(-INFINITY), {0}};
    for (int64_t i = 0; i < row->V; i += LANES) keep(&best, logits_at(row, i), (int32_t)i);
    return winner(&best);
}

typedef struct {
    int32_t key;           // the least up to which the target is reached
    double target, below;  // what was to be reached, and what smaller keys hold
} Cut;

#define BINS 2048

// The weight of tokens by `bits` of their keys from `shift` on; those with key <= limit whose upper bits are `upper`.
static void weigh(const Row *row, int32_t limit, int32_t upper, int shift, int bits, int by_mass, double *bins) {
    memset(bins, 0, sizeof(double) << bits);
    int32_t mask = (1 << bits) - 1;
    for (int64_t i = 0; i < row->V; i += LANES) {
        vf score = scores_at(row, i);
        vi key = keys_of(score);
        vi counts = (key <= limit) & ((key >> shift >> bits) == upper) & ((lane + (int32_t)i) < (int32_t)row->V);
        if (!any(counts)) continue;
        vf weight = choose(counts, by_mass ? exponential(score) : splat(1.0f), splat(0.0f));
        vi bin = (key >> shift) & mask;
        for (int l = 0; l < LANES; l++) bins[bin[l]] += (double)weight[l];
    }
}

// share_of_all 0: the least key up to which there are `target` tokens; else up to which there is that share of the mass.
static Cut search(const Row *row, int32_t limit, double target, double share_of_all) {
    static const int shifts[] = {20, 10, 0}, widths[] = {11, 10, 10};
    double bins[BINS];
    Cut cut = {0, target, 0.0};
    for (int level = 0; level < 3; level++) {
        int last = (1 << widths[level]) - 1, bin = 0;
        weigh(row, limit, cut.key, shifts[level], widths[level], share_of_all > 0, bins);
        if (level == 0 && share_of_all > 0) {
            double all = 0.0;
            for (int b = 0; b <= last; b++) all += bins[b];
            cut.target = share_of_all * all;
        }
        while (bin < last && cut.below + bins[bin] < cut.target) cut.below += bins[bin++];
        cut.key = cut.key << widths[level] | bin;
    }
    return cut;
}

// The id of the last of `count` tokens that have this key, ids upward; the last id of all if there are fewer.
static int32_t last_of(const Row *row, int32_t key, double count) {
    double seen = 0.0;
    for (int64_t i = 0; i < row->V; i += LANES) {
        vi equal = keys_of(scores_at(row, i)) == key;
        if (!any(equal)) continue;
        for (int l = 0; l < LANES; l++) {
            seen += equal[l] != 0;
            if (equal[l] && seen >= count) return (int32_t)i + l;
        }
    }
    return (int32_t)row->V - 1;
}

INLINE uint32_t mixed_one(uint32_t h) {
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    return h ^ (h >> 16);
}

// Tokens with a key below `key` stay, and those that have it up to the id `last`.
static int64_t greatest_noisy(const Row *row, int32_t key, int32_t last, int64_t seed, int64_t offset) {
    uint32_t own = mixed_one(mixed_one((uint32_t)seed ^ 0x9747B28Cu) ^ (uint32_t)((uint64_t)seed >> 32));
    own = mixed_one(own ^ (uint32_t)offset);
    Best best = {splat(-INFINITY), {0}};
    for (int64_t i = 0; i < row->V; i += LANES) {
        vf score = scores_at(row, i);
        vi token = lane + (int32_t)i, keys = keys_of(score);
        vi stays = (keys < key) | ((keys == key) & (token <= last));
        if (!any(stays)) continue;
        vf noisy = score + noise(mixed(((vu)token * 0x9E3779B1u) ^ own));
        keep(&best, choose(stays, noisy, splat(-INFINITY)), (int32_t)i);
    }
    return winner(&best);
}

static void draw_rows(const void *what, int64_t from, int64_t to) {
    Draws w = *(const Draws *)what;
    for (int64_t r = from; r < to; r++) {
        Row row = {w.logits + r * w.V, w.V, 0.0f, w.temperature[r]};
        int64_t first = w.ids[r] = greatest(&row);
        if (!(row.temperature > 0.0f)) continue;
        element top[LANES] = {row.logits[first]};
        row.top = load(top)[0];
        // in fp64, as kernels/sample.py has it; log 0 is -inf, and no key is above its
        float floor = (float)log((double)w.min_p[r]);
        int32_t key = keys_of(splat(floor))[0], last = (int32_t)w.V - 1;
        if (w.top_k[r] > 0 && w.top_k[r] < w.V) {
            int32_t cut = search(&row, key, (double)w.top_k[r], 0.0).key;
            key = cut < key ? cut : key;
        }
        if (w.top_p[r] < 1.0f) {
            Cut cut = search(&row, key, 0.0, (double)w.top_p[r]);
            float least;
            memcpy(&least, &cut.key, sizeof least);
            double one = (double)exponential(splat(-least))[0];
            if (cut.key < key) key = cut.key;
            if (one > 0.0 && cut.key == key) last = last_of(&row, key, ceil((cut.target - cut.below) / one));
        }
        w.ids[r] = greatest_noisy(&row, key, last, w.seed[r], w.offset[r]);
    }
}

// logits [R, V], a temperature and so on for each row -> ids [R]; equal logits at temperature 0 give the lowest id. A row
// without any greatest gives some id of the vocabulary. warm: some temperature is over 0.
void draw(const element *logits, const float *temperature, const int64_t *top_k, const float *top_p, const float *min_p,
          const int64_t *seed, const int64_t *offset, int64_t *ids, int64_t R, int64_t V, int64_t warm) {
    Draws what = {logits, temperature, top_p, min_p, top_k, seed, offset, ids, V};
    share(R, 1, R * V > (warm ? 8192 : 1 << 20), draw_rows, &what);
}
