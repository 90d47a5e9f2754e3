/* What the operators of this library share: which form of a kernel runs here, and on how many threads. */

#ifndef KSSM_LIBRARY_H
#define KSSM_LIBRARY_H

#include <stdint.h>

#if defined(__GNUC__)
#define WITHIN_LIBRARY __attribute__((visibility("hidden")))
#else
#define WITHIN_LIBRARY
#endif

/* Computes the rows first..last-1 of a job; 0, or 1 where memory did not suffice. */
typedef int (*Rows)(const void *job, int64_t first, int64_t last);

/* Place of a form, counted from the fastest that this processor has, in the tables that FORMS_OF makes (forms.h);
   -1 where there is none. The slower ones are there to be tested. */
WITHIN_LIBRARY int form_at(int form);

/* Shares the rows among at most so many threads. Threads live as long as one call: nothing is left behind that a fork
   could lose. They round as the caller does, and flush denormals if it does. 0, or 1 where one of them failed. */
WITHIN_LIBRARY int on_threads(const void *job, Rows rows, int64_t count, int threads);

#endif
