/* One form of the convolution; see forms.h. What vectors leave over at the end of a row is done one by one. */

/* to = the sum of weight[i] rows[i], [D]; of no row at all, 0. */
static void NAME(weighted_sum)(const float *weight, const float *const *rows, int64_t count, int64_t D, float *to) {
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        Floats sum = {0};
        for (int64_t i = 0; i < count; i++) sum += NAME(load)(weight + i * D + d) * NAME(load)(rows[i] + d);
        NAME(store)(to + d, sum);
    }
    for (; d < D; d++) {
        float sum = 0;
        for (int64_t i = 0; i < count; i++) sum += weight[i * D + d] * rows[i][d];
        to[d] = sum;
    }
}

/* d_weight[i] += d_y rows[i], [D] each. */
static void NAME(add_products)(const float *d_y, const float *const *rows, int64_t count, int64_t D, float *d_weight) {
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        const Floats by = NAME(load)(d_y + d);
        for (int64_t i = 0; i < count; i++) {
            float *to = d_weight + i * D + d;
            NAME(store)(to, NAME(load)(to) + by * NAME(load)(rows[i] + d));
        }
    }
    for (; d < D; d++) {
        for (int64_t i = 0; i < count; i++) d_weight[i * D + d] += d_y[d] * rows[i][d];
    }
}

static int NAME(forward)(const void *argument, int64_t first, int64_t last) {
    const Job *job = argument;
    const int64_t S = job->S, D = job->D, W = job->W;
    const float **rows = malloc((size_t)W * sizeof *rows);
    if (!rows) return 1;
    for (int64_t t = first * S; t < last * S; t++) {
        for (int64_t w = 0; w < W; w++) rows[w] = seen(job, t / S, t % S, w);
        NAME(weighted_sum)(job->weight, rows, W, D, job->y + t * D);
    }
    free(rows);
    return 0;
}

static int NAME(backward)(const void *argument, int64_t first, int64_t last) {
    const Job *job = argument;
    const int64_t S = job->S, D = job->D, W = job->W;
    const float **rows = malloc((size_t)W * sizeof *rows);
    if (!rows) return 1;
    for (int64_t t = first * S; t < last * S; t++) {
        const int64_t b = t / S, s = t % S, ahead = S - 1 - s;      /* tokens that come after this one */
        const int64_t taps = W - 1 > ahead ? W - 1 - ahead : 0; /* by whose first taps no token saw this one */
        for (int64_t w = taps; w < W; w++) rows[w - taps] = job->d_y + (t + W - 1 - w) * D;
        NAME(weighted_sum)(job->weight + taps * D, rows, W - taps, D, job->d_x + t * D);
        for (int64_t w = 0; w < W; w++) rows[w] = seen(job, b, s, w);
        NAME(add_products)(job->d_y + t * D, rows, W, D, job->d_weight + b * W * D);
    }
    free(rows);
    return 0;
}
