/* Vectors of one instruction set and the functions of them that operators share; see forms.h. */

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

static inline Floats NAME(load)(const float *from) {
    Floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void NAME(store)(float *to, Floats v) { memcpy(to, &v, sizeof v); }

static inline Floats NAME(everywhere)(float x) { return (Floats){0} + x; }

/* x, or the bound that it is beyond; what is no number stays none. */
static inline Floats NAME(within)(Floats x, float bound) {
    const Floats most = NAME(everywhere)(bound), least = NAME(everywhere)(-bound);
#if LANES == 16
    return (Floats)_mm512_max_ps((__m512)least, _mm512_min_ps((__m512)most, (__m512)x));
#elif LANES == 8
    return (Floats)_mm256_max_ps((__m256)least, _mm256_min_ps((__m256)most, (__m256)x));
#elif defined(__x86_64__)
    return (Floats)_mm_max_ps((__m128)least, _mm_min_ps((__m128)most, (__m128)x));
#else
    Ints above = x > most, below = x < least, between = ~(above | below);
    return (Floats)((above & (Ints)most) | (below & (Ints)least) | (between & (Ints)x));
#endif
}

static inline Floats NAME(root)(Floats x) {
#if LANES == 16
    return (Floats)_mm512_sqrt_ps((__m512)x);
#elif LANES == 8
    return (Floats)_mm256_sqrt_ps((__m256)x);
#elif defined(__x86_64__)
    return (Floats)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
    return (Floats)vsqrtq_f32((float32x4_t)x);
#else
    for (int i = 0; i < LANES; i++) x[i] = sqrtf(x[i]);
    return x;
#endif
}

/* The sum of all lanes, in each of them. */
static inline Floats NAME(total)(Floats v) {
#if LANES == 16
    v += SHUFFLED(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLED(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return v + SHUFFLED(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif LANES == 8
    v += SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += SHUFFLED(v, 2, 3, 0, 1, 6, 7, 4, 5);
    return v + SHUFFLED(v, 1, 0, 3, 2, 5, 4, 7, 6);
#else
    v += SHUFFLED(v, 2, 3, 0, 1);
    return v + SHUFFLED(v, 1, 0, 3, 2);
#endif
}

/* e^x for |x| <= 87 or no number: Cody and Waite's reduction by ln 2 and Cephes' polynomial (Moshier 1992). */
static inline Floats NAME(exponential)(Floats x) {
    const float to_integer = 12582912.0f; /* as in sincos */
    Floats shifted = x * 1.44269504088896341f + to_integer;
    Floats k = shifted - to_integer;
    Floats r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
    Floats tail = 5.0000001201e-1f +
                  r * (1.6666665459e-1f +
                       r * (4.1665795894e-2f + r * (8.3334519073e-3f + r * (1.3981999507e-3f + r * 1.9875691500e-4f))));
    /* multiplied, not added to the exponent: what is no number must stay none, whatever its bits */
    Floats power = (Floats)(((Ints)shifted << 23) + 0x3f800000);
    return (1.0f + (r + r * r * tail)) * power;
}

/* sigmoid(x), and sigmoid(-x) without the cancellation of 1 - sigmoid(x); x beyond +-87 counts as that. */
static inline void NAME(sigmoids)(Floats x, Floats *of_x, Floats *of_minus_x) {
    Floats e = NAME(exponential)(-NAME(within)(x, 87.0f)); /* both e^87 and e^-87 are normal numbers */
    *of_x = 1.0f / (1.0f + e);
    *of_minus_x = e * *of_x;
}

/* The polynomials of Cephes at an angle of quadrant pi/2 + r + low, |r| <= pi/4: low is what r rounds off. */
static inline void NAME(in_quadrant)(Ints quadrant, Floats r, Floats low, Floats *sin, Floats *cos) {
    Floats z = r * r, half = 0.5f * z;
    Floats s_tail = r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
    Floats c_tail = z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    Floats s = r + (s_tail + low), c = 1.0f - (half - (c_tail - low * r));
    Ints swap = -(quadrant & 1);
    *sin = (Floats)((((Ints)s & ~swap) | ((Ints)c & swap)) ^ ((quadrant & 2) << 30));
    *cos = (Floats)((((Ints)c & ~swap) | ((Ints)s & swap)) ^ (((quadrant + 1) & 2) << 30));
}

/* Cody and Waite's reduction by pi/2 in three parts, |x| <= 8192. What it rounds off is put back to first order: an error
   of z grows with every power of z. */
static inline void NAME(sincos)(Floats x, Floats *sin, Floats *cos) {
    const float to_integer = 12582912.0f; /* 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits */
    Floats shifted = x * 0.636619772367581343f + to_integer;
    Floats k = shifted - to_integer;
    Floats high = x - k * 1.5703125f, part = k * 4.837512969970703125e-4f; /* both exact */
    Floats near = high - part;
    Floats rest = ((high - near) - part) - k * 7.54978995489188216e-8f;
    Floats r = near + rest;
    NAME(in_quadrant)((Ints)shifted, r, (near - r) + rest, sin, cos);
}

/* The same in two parts, for |x| <= 8. */
static inline void NAME(sincos_near)(Floats x, Floats *sin, Floats *cos) {
    const float to_integer = 12582912.0f;
    Floats shifted = x * 0.636619772367581343f + to_integer;
    Floats k = shifted - to_integer;
    Floats r = (x - k * 1.5703125f) - k * 4.8382679489661923e-4f;
    NAME(in_quadrant)((Ints)shifted, r, (Floats){0}, sin, cos);
}
