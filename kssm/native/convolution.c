/* Causal depthwise convolution, forward and backward; called from kssm/convolution.py. The taps of a token are added in
   one order wherever a sequence begins, so the bits do not depend on where it was cut, nor on the number of threads. */

#include <stdlib.h>

#include "library.h"

/* Below this many numbers times taps a second thread costs more than it does. */
#define WORTH_A_THREAD (1 << 20)

/* W taps, the last one for the token itself; T = W - 1 earlier inputs. */
typedef struct {
    const float *x;      /* [B, S, D] */
    const float *weight; /* [W, D] */
    const float *tail;   /* [B, T, D] */
    float *y;            /* as x, forward only */
    const float *d_y;    /* as x, backward only, and what follows */
    float *d_x;
    float *d_weight; /* [B, W, D]: sequence by sequence */
    int64_t S, D, W;
} Job;

/* The input that tap w of token s sees, [D]. */
static const float *seen(const Job *job, int64_t b, int64_t s, int64_t w) {
    const int64_t T = job->W - 1, at = s + w - T;
    return at < 0 ? job->tail + (b * T + s + w) * job->D : job->x + (b * job->S + at) * job->D;
}

#define KERNEL "convolution_kernel.h"
#include "forms.h"

static const Rows forward[] = FORMS_OF(forward), backward[] = FORMS_OF(backward);

static int on_sequences(const Job *job, Rows rows, int64_t B, int threads) {
    return on_threads(job, rows, B, B * job->S * job->D * job->W < WORTH_A_THREAD ? 1 : threads);
}

/* All arrays are contiguous float32; form counts from the fastest. 0, or 1 where memory did not suffice. */
int kssm_convolution_forward(const float *x, const float *weight, const float *tail, float *y, int64_t B, int64_t S,
                             int64_t D, int64_t W, int threads, int form) {
    Job job = {.x = x, .weight = weight, .tail = tail, .y = y, .S = S, .D = D, .W = W};
    return on_sequences(&job, forward[form_at(form)], B, threads);
}

int kssm_convolution_backward(const float *x, const float *weight, const float *tail, const float *d_y, float *d_x,
                              float *d_weight, int64_t B, int64_t S, int64_t D, int64_t W, int threads, int form) {
    Job job = {.x = x, .weight = weight, .tail = tail, .d_y = d_y, .d_x = d_x, .S = S, .D = D, .W = W};
    job.d_weight = calloc((size_t)(B * W * D + 1), sizeof(float));
    if (!job.d_weight) return 1;
    int failed = on_sequences(&job, backward[form_at(form)], B, threads);
    for (int64_t i = 0; i < W * D; i++) {
        double sum = 0;
        for (int64_t b = 0; b < B; b++) sum += job.d_weight[b * W * D + i];
        d_weight[i] = (float)sum;
    }
    free(job.d_weight);
    return failed;
}
