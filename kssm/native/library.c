/* The library as a whole: its version, the instruction sets of this processor, its threads. The operators are in
   readout.c, scan.c and convolution.c. Plain C with the vector extensions of gcc and clang. */

#include "library.h"

#include <fenv.h>
#include <pthread.h>
#include <stddef.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* Raised with every change of the functions that Python calls, so that a library left by an older one is not called. */
#define KSSM_NATIVE_VERSION 3

#define MOST_THREADS 256

/* In the order of FORMS_OF. */
static const char *const names[] = {
#if defined(__x86_64__)
    "avx512", "avx2", "sse2",
#elif defined(__aarch64__)
    "neon",
#else
    "plain",
#endif
};
#define FORMS ((int)(sizeof names / sizeof *names))

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

int form_at(int form) {
    pthread_once(&asked, ask_processor);
    return form >= 0 && form < FORMS - fastest ? fastest + form : -1;
}

typedef struct {
    pthread_t thread;
    const fenv_t *rounding;
    const void *job;
    Rows rows;
    int64_t first, last;
    int failed, started;
} Share;

static void *run_share(void *argument) {
    Share *share = argument;
    if (share->started) fesetenv(share->rounding); /* not every system hands it to a new thread */
    share->failed = share->rows(share->job, share->first, share->last);
    return NULL;
}

int on_threads(const void *job, Rows rows, int64_t count, int threads) {
    Share shares[MOST_THREADS];
    fenv_t rounding;
    int failed = 0, used = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    if (used > count) used = count < 1 ? 1 : (int)count;
    fegetenv(&rounding);
    for (int i = 0; i < used; i++) {
        shares[i] = (Share){.rounding = &rounding, .job = job, .rows = rows, .started = i > 0};
        shares[i].first = count * i / used;
        shares[i].last = count * (i + 1) / used;
        if (i) shares[i].started = !pthread_create(&shares[i].thread, NULL, run_share, &shares[i]);
    }
    for (int i = 0; i < used; i++) { /* what got no thread is done here */
        if (!shares[i].started) run_share(&shares[i]);
    }
    for (int i = 0; i < used; i++) {
        if (shares[i].started) pthread_join(shares[i].thread, NULL);
        failed |= shares[i].failed;
    }
    return failed;
}

/* Name of a form; NULL where this processor has none of that index. */
const char *kssm_native_form(int form) {
    int found = form_at(form);
    return found < 0 ? NULL : names[found];
}

int kssm_native_version(void) { return KSSM_NATIVE_VERSION; }
