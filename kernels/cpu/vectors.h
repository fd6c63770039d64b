// Vectors of 16 floats, in the compiler's own terms: AVX-512, AVX2 or NEON come out of one source.
//
// A file that includes this is compiled once per element type: ELEMENT is float or, as bits, bf16.
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define LANES 16
typedef float vf __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));
typedef int8_t vb __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))

INLINE vf splat(float x) { return (vf){} + x; }
INLINE vf choose(vi where, vf yes, vf no) { return (vf)((where & (vi)yes) | (~where & (vi)no)); }

#ifdef ELEMENT_BF16
typedef uint16_t element;
INLINE vf load(const element *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
INLINE void store(element *p, vf x) {  // round to nearest, ties to even; NaN stays NaN
    vu bits = (vu)x;
    vu rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    vh h = __builtin_convertvector((vu)choose((vi)(x != x), (vf)((vu){} + 0x7FC0u), (vf)rounded), vh);
    memcpy(p, &h, sizeof h);
}
INLINE vf rounded(vf x) {  // to what an element can hold
    vu bits = (vu)x;
    return choose((vi)(x != x), x, (vf)((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u));
}
// Two vectors at once: one has the even elements, the other the odd ones, which takes one instruction each.
INLINE void load_two(const element *p, vf *a, vf *b) {
    vu pairs;
    memcpy(&pairs, p, sizeof pairs);
    *a = (vf)(pairs << 16), *b = (vf)(pairs & 0xFFFF0000u);
}
INLINE void store_two(element *p, vf a, vf b) {
    vu pairs = ((vu)rounded(a) >> 16) | ((vu)rounded(b) & 0xFFFF0000u);
    memcpy(p, &pairs, sizeof pairs);
}
#else
typedef float element;
INLINE vf load(const element *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE void store(element *p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vf rounded(vf x) { return x; }
INLINE void load_two(const element *p, vf *a, vf *b) { *a = load(p), *b = load(p + LANES); }
INLINE void store_two(element *p, vf a, vf b) { store(p, a), store(p + LANES, b); }
#endif

INLINE vf load_float(const float *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}

// The sum of the lanes, always in the same order.
INLINE float sum(vf x) {
    x += __builtin_shuffle(x, (vi){8, 9, 10, 11, 12, 13, 14, 15});
    x += __builtin_shuffle(x, (vi){4, 5, 6, 7});
    x += __builtin_shuffle(x, (vi){2, 3});
    x += __builtin_shuffle(x, (vi){1});
    return x[0];
}

INLINE vf greater(vf a, vf b) { return choose((vi)(a > b), a, b); }

INLINE float highest(vf x) {
    x = greater(x, __builtin_shuffle(x, (vi){8, 9, 10, 11, 12, 13, 14, 15}));
    x = greater(x, __builtin_shuffle(x, (vi){4, 5, 6, 7}));
    x = greater(x, __builtin_shuffle(x, (vi){2, 3}));
    x = greater(x, __builtin_shuffle(x, (vi){1}));
    return x[0];
}

// The greatest magnitude of n elements, a multiple of LANES; NaN if one of them is: its bits are above all others.
INLINE float magnitude(const element *p, int64_t n) {
    vi most = {};
    for (int64_t i = 0; i < n; i += LANES) {
        vi bits = (vi)load(p + i) & 0x7FFFFFFF;
        most = (vi)choose((vi)(bits > most), (vf)bits, (vf)most);
    }
    int32_t top = most[0];
    for (int i = 1; i < LANES; i++) top = most[i] > top ? most[i] : top;
    float found;
    memcpy(&found, &top, sizeof found);
    return found;
}

// Numbers up to 127 as the nearest whole ones, ties to even: the low bits of a sum with 1.5 * 2^23.
INLINE void store_codes(int8_t *p, vf x) {
    x = choose((vi)(x > splat(127.0f)), splat(127.0f), choose((vi)(x < splat(-127.0f)), splat(-127.0f), x));
    vb codes = __builtin_convertvector((vi)(x + 12582912.0f) - 0x4B400000, vb);
    memcpy(p, &codes, sizeof codes);
}

INLINE vf load_codes(const int8_t *p) {
#if defined(__AVX512F__)  // gcc takes the conversion below apart
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
    vb codes;
    memcpy(&codes, p, sizeof codes);
    return __builtin_convertvector(__builtin_convertvector(codes, vi), vf);
#endif
}

// e^x to about one unit in the last place: 2^n times a polynomial over [-ln2/2, ln2/2]. 0 below -87.3 and for -inf.
INLINE vf exponential(vf x) {
    vf clamped = choose((vi)(x > splat(88.0f)), splat(88.0f), x);
    vi tiny = (vi)(x < splat(-87.3f));
    clamped = choose(tiny, splat(0.0f), clamped);
    vf shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are n
    vi n = (vi)shifted - 0x4B400000;
    vf whole = shifted - 12582912.0f;
    vf r = clamped - whole * 0.693359375f;
    r = r - whole * -2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return choose(tiny, splat(0.0f), (vf)((vi)p + (n << 23)));
}
