/* One form of the readout, included once for each instruction set with
     FORM          suffix of its names
     LANES         floats in a vector
     SIDE_BY_SIDE  vectors of oscillators that share a pass over the harmonics, as many as registers hold
   which it takes away again at its end. */

typedef float NAME(Floats) __attribute__((vector_size(LANES * 4)));
typedef int32_t NAME(Ints) __attribute__((vector_size(LANES * 4)));
#define Floats NAME(Floats)
#define Ints NAME(Ints)
#define BLOCK (LANES * SIDE_BY_SIDE)

static inline Floats NAME(load)(const float *from) {
    Floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void NAME(store)(float *to, Floats v) { memcpy(to, &v, sizeof v); }

/* Cody and Waite's reduction by pi/2 in three parts and the polynomials of Cephes (Moshier 1992), |x| <= MOST_ANGLE.
   What the reduction rounds off is put back to first order: an error of z grows with every power of z. */
static inline void NAME(sincos)(Floats x, Floats *sin, Floats *cos) {
    const float to_integer = 12582912.0f; /* 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits */
    Floats shifted = x * 0.636619772367581343f + to_integer;
    Floats k = shifted - to_integer;
    Ints quadrant = (Ints)shifted;
    Floats high = x - k * 1.5703125f, part = k * 4.837512969970703125e-4f; /* both exact */
    Floats near = high - part;
    Floats rest = ((high - near) - part) - k * 7.54978995489188216e-8f;
    Floats r = near + rest, low = (near - r) + rest;
    Floats z = r * r, half = 0.5f * z;
    Floats s_tail = r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
    Floats c_tail = z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    Floats s = r + (s_tail + low), c = 1.0f - (half - (c_tail - low * r));
    Ints swap = -(quadrant & 1);
    *sin = (Floats)((((Ints)s & ~swap) | ((Ints)c & swap)) ^ ((quadrant & 2) << 30));
    *cos = (Floats)((((Ints)c & ~swap) | ((Ints)s & swap)) ^ (((quadrant + 1) & 2) << 30));
}

/* A block of phases; lanes beyond the bank's end become z = 0, whose powers add nothing. */
typedef struct {
    Floats x[SIDE_BY_SIDE], inside[SIDE_BY_SIDE];
} NAME(Phases);

static inline NAME(Phases) NAME(phases)(const float *theta, int64_t left) {
    NAME(Phases) p;
    float x[BLOCK] = {0}, inside[BLOCK] = {0};
    int64_t count = left < BLOCK ? left : BLOCK;
    for (int64_t j = 0; j < count; j++) inside[j] = 1.0f;
    memcpy(x, theta, (size_t)count * sizeof(float));
    UNROLLED
    for (int v = 0; v < SIDE_BY_SIDE; v++) {
        p.x[v] = NAME(load)(x + v * LANES);
        p.inside[v] = NAME(load)(inside + v * LANES);
    }
    return p;
}

static inline void NAME(power)(const NAME(Phases) *p, float n, Floats *re, Floats *im) {
    UNROLLED
    for (int v = 0; v < SIDE_BY_SIDE; v++) {
        NAME(sincos)(p->x[v] * n, &im[v], &re[v]);
        re[v] *= p->inside[v];
        im[v] *= p->inside[v];
    }
}

/* Adds the powers 1..H of a block's z to the sums, [H, 2, LANES]. */
static inline void NAME(add_powers)(const NAME(Phases) *p, Floats *sums, int64_t H) {
    Floats c[SIDE_BY_SIDE], s[SIDE_BY_SIDE], re[SIDE_BY_SIDE], im[SIDE_BY_SIDE];
    NAME(power)(p, 1.0f, c, s);
    UNROLLED
    for (int v = 0; v < SIDE_BY_SIDE; v++) {
        re[v] = c[v];
        im[v] = s[v];
    }
    for (int64_t n = 0; n < H;) {
        int64_t end = end_of_chain(n, H);
        if (n) NAME(power)(p, (float)(n + 1), re, im);
        for (;;) {
            Floats sum_re = re[0], sum_im = im[0];
            UNROLLED
            for (int v = 1; v < SIDE_BY_SIDE; v++) {
                sum_re += re[v];
                sum_im += im[v];
            }
            sums[2 * n] += sum_re;
            sums[2 * n + 1] += sum_im;
            if (++n == end) break;
            UNROLLED
            for (int v = 0; v < SIDE_BY_SIDE; v++) {
                Floats old = re[v];
                re[v] = old * c[v] - im[v] * s[v];
                im[v] = old * s[v] + im[v] * c[v];
            }
        }
    }
}

static inline float NAME(total)(Floats v) {
    float lanes[LANES];
    NAME(store)(lanes, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

static int NAME(within_range)(const float *theta, int64_t N, int64_t H) {
    float limit = MOST_ANGLE / (float)H;
    int inside = 1;
    for (int64_t j = 0; j < N; j++) inside &= theta[j] <= limit && theta[j] >= -limit;
    return inside;
}

static int NAME(forward)(const Job *job, int64_t first, int64_t last) {
    const int64_t N = job->N, H = job->H;
    Floats *sums = NULL;
    if (posix_memalign((void **)&sums, ALIGNMENT, (size_t)H * 2 * sizeof(Floats))) return 1;
    for (int64_t m = first; m < last; m++) {
        const float *theta = job->theta + m * N;
        float *out = job->readings + m * 3 * H;
        if (!NAME(within_range)(theta, N, H)) {
            forward_slowly(theta, out, N, H);
            continue;
        }
        memset(sums, 0, (size_t)H * 2 * sizeof(Floats));
        for (int64_t j = 0; j < N; j += BLOCK) {
            NAME(Phases) p = NAME(phases)(theta + j, N - j);
            NAME(add_powers)(&p, sums, H);
        }
        for (int64_t n = 0; n < H; n++) {
            float re = NAME(total)(sums[2 * n]) / (float)N, im = NAME(total)(sums[2 * n + 1]) / (float)N;
            out[n] = re;
            out[H + n] = im;
            out[2 * H + n] = sqrtf(re * re + im * im + MAGNITUDE_FLOOR);
        }
    }
    free(sums);
    return 0;
}

/* dL/dtheta_j = -Im sum_n (n g_n / N) z_j^n by Horner's rule. */
static inline void NAME(horner)(const NAME(Phases) *p, const float *g, int64_t H, float *d) {
    Floats c[SIDE_BY_SIDE], s[SIDE_BY_SIDE], re[SIDE_BY_SIDE], im[SIDE_BY_SIDE];
    NAME(power)(p, 1.0f, c, s);
    UNROLLED
    for (int v = 0; v < SIDE_BY_SIDE; v++) {
        re[v] = (Floats){0} + g[H - 1];
        im[v] = (Floats){0} + g[2 * H - 1];
    }
    for (int64_t n = H - 2; n >= 0; n--) {
        UNROLLED
        for (int v = 0; v < SIDE_BY_SIDE; v++) {
            Floats old = re[v];
            re[v] = (g[n] + old * c[v]) - im[v] * s[v];
            im[v] = (g[H + n] + old * s[v]) + im[v] * c[v];
        }
    }
    UNROLLED
    for (int v = 0; v < SIDE_BY_SIDE; v++) NAME(store)(d + v * LANES, -(re[v] * s[v] + im[v] * c[v]));
}

static int NAME(backward)(const Job *job, int64_t first, int64_t last) {
    const int64_t N = job->N, H = job->H;
    float d[BLOCK], *g = malloc((size_t)H * 2 * sizeof(float));
    if (!g) return 1;
    for (int64_t m = first; m < last; m++) {
        const float *theta = job->theta + m * N;
        float *d_theta = job->d_theta + m * N;
        harmonic_gradients(job->readings + m * 3 * H, job->d_readings + m * 3 * H, g, N, H);
        if (!NAME(within_range)(theta, N, H)) {
            backward_slowly(theta, g, d_theta, N, H);
            continue;
        }
        for (int64_t j = 0; j < N; j += BLOCK) {
            NAME(Phases) p = NAME(phases)(theta + j, N - j);
            NAME(horner)(&p, g, H, d);
            memcpy(d_theta + j, d, (size_t)(N - j < BLOCK ? N - j : BLOCK) * sizeof(float));
        }
    }
    free(g);
    return 0;
}

#undef Floats
#undef Ints
#undef BLOCK
#undef FORM
#undef LANES
#undef SIDE_BY_SIDE
