/* One form of the readout; see forms.h. */

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

static int NAME(within_range)(const float *theta, int64_t N, int64_t H) {
    float limit = MOST_ANGLE / (float)H;
    int inside = 1;
    for (int64_t j = 0; j < N; j++) inside &= theta[j] <= limit && theta[j] >= -limit;
    return inside;
}

static int NAME(forward)(const void *argument, int64_t first, int64_t last) {
    const Job *job = argument;
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
            float re = NAME(total)(sums[2 * n])[0] / (float)N, im = NAME(total)(sums[2 * n + 1])[0] / (float)N;
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

static int NAME(backward)(const void *argument, int64_t first, int64_t last) {
    const Job *job = argument;
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
