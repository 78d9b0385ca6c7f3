/* One source, several instruction sets: the loader picks the best at run time (GNU ifunc).
 * Arithmetic is written in 8-lane vectors, which each clone lowers to what its machine has. */
#ifndef RECLM_CLONES_H
#define RECLM_CLONES_H

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define RECLM_CLONES __attribute__((noinline, target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define RECLM_CLONES
#endif

enum { LANES = 8 };
typedef float vec_t __attribute__((vector_size(32)));
/* The same at any address that is aligned for a float. */
typedef float loose_vec_t __attribute__((vector_size(32), aligned(4), may_alias));

#endif
