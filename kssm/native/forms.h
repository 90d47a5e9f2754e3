/* Includes KERNEL, a file, once for each instruction set that a processor of this kind may have, and vectors.h before
   it. The processor is asked at run time which it can do: a library that was built on one machine runs on another.
   Within KERNEL:
     NAME(x)        x with the form's suffix
     LANES          floats in a vector
     Floats, Ints   one vector */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(name) PASTE(name, FORM)
#define Floats NAME(float_vector)
#define Ints NAME(int_vector)
/* Only an unrolled loop over an array of vectors keeps them in registers. */
#if defined(__clang__)
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLED(v, ...) __builtin_shuffle(v, (Ints){__VA_ARGS__})
#endif

#define FORM _plain
#define LANES 4
#include "vectors.h"
#include KERNEL
#undef FORM
#undef LANES

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define FORM _avx2
#define LANES 8
#include "vectors.h"
#include KERNEL
#undef FORM
#undef LANES
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
#include "vectors.h"
#include KERNEL
#undef FORM
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* The forms of a function, the fastest first: where form_at points to. */
#if defined(__x86_64__)
#define FORMS_OF(function) {function##_avx512, function##_avx2, function##_plain}
#else
#define FORMS_OF(function) {function##_plain}
#endif
