/* The order parameters of banks of oscillators, forward and backward; called from kssm/readout_native.py.

   Every token is computed on its own and in one fixed order, so the result does not depend on how many threads share
   the tokens. Three forms of readout_kernel.h are compiled, and the processor is asked at run time which it can do: a
   library that was built on one machine runs on another. Plain C with the vector extensions of gcc and clang. */

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* Raised with every change of the functions below, so that a library left by an older version is not called. */
#define KSSM_NATIVE_VERSION 2

#define MAGNITUDE_FLOOR 1e-8f
/* Beyond this angle the three-part reduction of sincos loses digits. */
#define MOST_ANGLE 8192.0f
#define ALIGNMENT 64
/* Below this many oscillators times harmonics a second thread costs more than it does. */
#define WORTH_A_THREAD (1 << 18)
#define MOST_THREADS 256

typedef struct {
    const float *theta;      /* [M, N] */
    float *readings;         /* [M, 3H]: Re Z_1..Z_H, Im Z_1..Z_H, |Z_1|..|Z_H| */
    const float *d_readings; /* [M, 3H], backward only */
    float *d_theta;          /* [M, N], backward only */
    int64_t N, H;
} Job;

typedef int (*Rows)(const Job *job, int64_t first, int64_t last);

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

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(name) PASTE(name, FORM)
/* Only an unrolled loop over an array of vectors keeps them in registers. */
#if defined(__clang__)
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif

#define FORM _plain
#define LANES 4
#define SIDE_BY_SIDE 2
#include "readout_kernel.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define FORM _avx2
#define LANES 8
#define SIDE_BY_SIDE 4
#include "readout_kernel.h"
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,fma")
#endif
#define FORM _avx512
#define LANES 16
#define SIDE_BY_SIDE 4
#include "readout_kernel.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

typedef struct {
    const char *name;
    Rows forward, backward;
} Form;

static const Form forms[] = {
#if defined(__x86_64__)
    {"avx512", forward_avx512, backward_avx512},
    {"avx2", forward_avx2, backward_avx2},
    {"sse2", forward_plain, backward_plain},
#elif defined(__aarch64__)
    {"neon", forward_plain, backward_plain},
#else
    {"plain", forward_plain, backward_plain},
#endif
};
#define FORMS ((int)(sizeof forms / sizeof *forms))

static pthread_once_t asked = PTHREAD_ONCE_INIT;
static int fastest; /* the first of the forms that this processor has; it has those after it too */

/* Asks the processor itself: not every compiler's library knows what __builtin_cpu_supports wants to know. */
static void ask_processor(void) {
#if defined(__x86_64__)
    unsigned a, b = 0, c = 0, d, saved = 0;
    const unsigned avx2 = 1u << 5, avx512f = 1u << 16, fma_and_xsave = 1u << 12 | 1u << 27;
    const unsigned ymm = 0x6, zmm = 0xe6; /* registers that the system keeps for a thread that does not run */
    fastest = FORMS - 1;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & fma_and_xsave) != fma_and_xsave) return;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & avx2) || (saved & ymm) != ymm) return;
    fastest = b & avx512f && (saved & zmm) == zmm ? 0 : 1;
#endif
}

/* What this processor can do, the fastest first; NULL beyond the last. The slower ones are there to be tested. */
static const Form *form_at(int index) {
    pthread_once(&asked, ask_processor);
    return index >= 0 && index < FORMS - fastest ? &forms[fastest + index] : NULL;
}

typedef struct {
    pthread_t thread;
    const Job *job;
    Rows rows;
    int64_t first, last;
    int failed, started;
} Share;

static void *run_share(void *argument) {
    Share *share = argument;
    share->failed = share->rows(share->job, share->first, share->last);
    return NULL;
}

/* Threads live as long as one call: nothing is left behind that a fork could lose. */
static int on_threads(const Job *job, Rows rows, int64_t M, int threads) {
    Share shares[MOST_THREADS];
    int failed = 0, count = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    if (count > M) count = M < 1 ? 1 : (int)M;
    if (M * job->N * job->H < WORTH_A_THREAD) count = 1;
    for (int i = 0; i < count; i++) {
        shares[i] = (Share){.job = job, .rows = rows, .first = M * i / count, .last = M * (i + 1) / count};
        if (i) shares[i].started = !pthread_create(&shares[i].thread, NULL, run_share, &shares[i]);
    }
    for (int i = 0; i < count; i++) { /* what got no thread is done here */
        if (!shares[i].started) run_share(&shares[i]);
    }
    for (int i = 0; i < count; i++) {
        if (shares[i].started) pthread_join(shares[i].thread, NULL);
        failed |= shares[i].failed;
    }
    return failed;
}

/* All arrays are contiguous float32; form counts from the fastest. 0, or 1 where memory did not suffice. */
int kssm_readout_forward(const float *theta, float *readings, int64_t M, int64_t N, int64_t H, int threads, int form) {
    Job job = {.theta = theta, .readings = readings, .N = N, .H = H};
    return on_threads(&job, form_at(form)->forward, M, threads);
}

int kssm_readout_backward(const float *theta, float *readings, const float *d_readings, float *d_theta, int64_t M,
                          int64_t N, int64_t H, int threads, int form) {
    Job job = {theta, readings, d_readings, d_theta, N, H};
    return on_threads(&job, form_at(form)->backward, M, threads);
}

/* Name of a form; NULL where this processor has none of that index. */
const char *kssm_native_form(int form) {
    const Form *found = form_at(form);
    return found ? found->name : NULL;
}

int kssm_native_version(void) { return KSSM_NATIVE_VERSION; }
