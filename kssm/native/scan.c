/* The coupled scan of kssm/scan.py, forward and backward; called from kssm/scan_native.py.

   One pass over the inputs: what a token needs of sigmoids, sines and roots is computed beside the recurrence, and once
   more in the backward pass, so that nothing but the states is kept. Every token is computed by the same instructions
   wherever a sequence begins, and sums over sequences are taken in one order, so the bits depend neither on the number
   of threads nor on where a scan was cut. */

#include <math.h>
#include <stdlib.h>

#include "library.h"

#define INPUT_FLOOR 1e-6f /* as in kssm/scan_loop.py, and the next two */
#define COUPLING_BIAS -2.0f
#define UNIT_FLOOR 1e-12f
#define PI 3.14159265358979324f
#define ALIGNMENT 64
/* Below this many oscillators times positions a second thread costs more than it does. */
#define WORTH_A_THREAD (1 << 15)

/* P = 6N + G inputs a token, F = 2N: real parts, then imaginary ones; G groups of n oscillators. */
typedef struct {
    const float *p;           /* [B, S, P] */
    const float *beta, *omega; /* [N] */
    const float *start;       /* [B, F] */
    float *y, *z;             /* [B, S, F] */
    float *order, *coupling;  /* [B, S], forward only */
    const float *d_y;         /* [B, S, F], backward only, and what follows */
    float *d_p, *d_start;     /* as p and start */
    float *d_bank;            /* [B, 2, N]: of beta and of omega, sequence by sequence */
    int64_t S, N, n, G;
    int coupled, rotating;
} Job;

/* The inputs that sigmoids are taken of: channels of p, counted from the third. */
enum { DECAY, TURN, GATE_RE, GATE_IM };

/* An angle within [-pi, pi], exactly where it is there already; no number for what is none. */
static float on_circle(float angle) { return (float)remainder((double)angle, 6.28318530717958647692); }

/* Calls what backward needs of a token from memory: processors foresee a way backwards badly. */
static void fetch_token(const Job *job, int64_t t) {
    const int64_t F = 2 * job->N, P = 6 * job->N + job->G, line = 64 / sizeof(float);
    for (int64_t i = 0; i < P; i += line) {
        __builtin_prefetch(job->p + t * P + i);
        __builtin_prefetch(job->d_p + t * P + i, 1);
    }
    for (int64_t i = 0; i < F; i += line) {
        __builtin_prefetch(job->z + t * F + i);
        __builtin_prefetch(job->d_y + t * F + i);
    }
}

#define KERNEL "scan_kernel.h"
#include "forms.h"

static const Rows forward[] = FORMS_OF(forward), backward[] = FORMS_OF(backward);

static int on_sequences(const Job *job, Rows rows, int64_t B, int threads) {
    return on_threads(job, rows, B, B * job->S * job->N < WORTH_A_THREAD ? 1 : threads);
}

/* All arrays are contiguous float32, S is 1 or more, n divides N; form counts from the fastest. 0, or 1 where memory
   did not suffice. */
int kssm_scan_forward(const float *p, const float *beta, const float *omega, const float *start, float *y, float *z,
                      float *order, float *coupling, int64_t B, int64_t S, int64_t N, int64_t n, int coupled,
                      int rotating, int threads, int form) {
    Job job = {.p = p, .beta = beta, .omega = omega, .start = start, .y = y, .z = z, .order = order};
    job.coupling = coupling;
    job.S = S, job.N = N, job.n = n, job.G = N / n, job.coupled = coupled, job.rotating = rotating;
    return on_sequences(&job, forward[form_at(form)], B, threads);
}

int kssm_scan_backward(const float *p, const float *beta, const float *omega, const float *start, float *z,
                       const float *d_y, float *d_p, float *d_beta, float *d_omega, float *d_start, int64_t B,
                       int64_t S, int64_t N, int64_t n, int coupled, int rotating, int threads, int form) {
    Job job = {.p = p, .beta = beta, .omega = omega, .start = start, .z = z, .d_y = d_y, .d_p = d_p};
    job.d_start = d_start;
    job.S = S, job.N = N, job.n = n, job.G = N / n, job.coupled = coupled, job.rotating = rotating;
    job.d_bank = malloc((size_t)(B * 2 * N + 1) * sizeof(float));
    if (!job.d_bank) return 1;
    int failed = on_sequences(&job, backward[form_at(form)], B, threads);
    for (int64_t j = 0; j < N; j++) {
        double beta_sum = 0, omega_sum = 0;
        for (int64_t b = 0; b < B && !failed; b++) {
            beta_sum += job.d_bank[b * 2 * N + j];
            omega_sum += job.d_bank[b * 2 * N + N + j];
        }
        d_beta[j] = (float)beta_sum;
        d_omega[j] = (float)omega_sum;
    }
    free(job.d_bank);
    return failed;
}
