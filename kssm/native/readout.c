/* The order parameters of banks of oscillators, forward and backward; called from kssm/readout_native.py.

   Every token is computed on its own and in one fixed order, so the result does not depend on how many threads share
   the tokens. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "library.h"

#define MAGNITUDE_FLOOR 1e-8f
/* Beyond this angle the three-part reduction of sincos loses digits. */
#define MOST_ANGLE 8192.0f
#define ALIGNMENT 64
/* Vectors of oscillators that share a pass over the harmonics: as many as registers hold. */
#define SIDE_BY_SIDE (LANES == 4 ? 2 : 4)
#define BLOCK (LANES * SIDE_BY_SIDE)
/* Below this many oscillators times harmonics a second thread costs more than it does. */
#define WORTH_A_THREAD (1 << 18)

typedef struct {
    const float *theta;      /* [M, N] */
    float *readings;         /* [M, 3H]: Re Z_1..Z_H, Im Z_1..Z_H, |Z_1|..|Z_H| */
    const float *d_readings; /* [M, 3H], backward only */
    float *d_theta;          /* [M, N], backward only */
    int64_t N, H;
} Job;

/* A phase so large, infinite or not a number: in double precision and one at a time. */
static void forward_slowly(const float *theta, float *readings, int64_t N, int64_t H) {
    for (int64_t n = 1; n <= H; n++) {
        double re = 0, im = 0;
        for (int64_t j = 0; j < N; j++) {
            re += cos((double)n * (double)theta[j]);
            im += sin((double)n * (double)theta[j]);
        }
        re /= (double)N;
        im /= (double)N;
        readings[n - 1] = (float)re;
        readings[H + n - 1] = (float)im;
        readings[2 * H + n - 1] = (float)sqrt(re * re + im * im + MAGNITUDE_FLOOR);
    }
}

/* g: n dL/dZ_n / N, real parts then imaginary ones. */
static void backward_slowly(const float *theta, const float *g, float *d_theta, int64_t N, int64_t H) {
    for (int64_t j = 0; j < N; j++) {
        double sum = 0;
        for (int64_t n = 1; n <= H; n++) {
            double angle = (double)n * (double)theta[j];
            sum += (double)g[n - 1] * sin(angle) + (double)g[H + n - 1] * cos(angle);
        }
        d_theta[j] = (float)-sum;
    }
}

/* With g_n = dL/d Re Z_n - i dL/d Im Z_n, the gradient of the magnitude folded in: n g_n / N. */
static void harmonic_gradients(const float *readings, const float *d_readings, float *g, int64_t N, int64_t H) {
    for (int64_t n = 0; n < H; n++) {
        float scale = (float)(n + 1) / (float)N;
        float d_mag = d_readings[2 * H + n] / readings[2 * H + n];
        g[n] = scale * (d_readings[n] + d_mag * readings[n]);
        g[H + n] = -scale * (d_readings[H + n] + d_mag * readings[H + n]);
    }
}

/* The powers 16, 32, 64, ... of z are taken afresh, as e^{i n theta}: n theta is exact there, and rounding does not
   pile up from one harmonic to the next. Not the last one: a sincos for it alone is not worth it. */
static int64_t end_of_chain(int64_t n, int64_t H) {
    int64_t next = 16;
    while (next <= n + 1) next *= 2;
    return next < H ? next - 1 : H;
}

#define KERNEL "readout_kernel.h"
#include "forms.h"

static const Rows forward[] = FORMS_OF(forward), backward[] = FORMS_OF(backward);

static int on_tokens(const Job *job, Rows rows, int64_t M, int threads) {
    return on_threads(job, rows, M, M * job->N * job->H < WORTH_A_THREAD ? 1 : threads);
}

/* All arrays are contiguous float32; form counts from the fastest. 0, or 1 where memory did not suffice. */
int kssm_readout_forward(const float *theta, float *readings, int64_t M, int64_t N, int64_t H, int threads, int form) {
    Job job = {.theta = theta, .readings = readings, .N = N, .H = H};
    return on_tokens(&job, forward[form_at(form)], M, threads);
}

int kssm_readout_backward(const float *theta, float *readings, const float *d_readings, float *d_theta, int64_t M,
                          int64_t N, int64_t H, int threads, int form) {
    Job job = {theta, readings, d_readings, d_theta, N, H};
    return on_tokens(&job, backward[form_at(form)], M, threads);
}
