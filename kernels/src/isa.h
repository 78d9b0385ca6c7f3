/* One source, several instruction sets, chosen when the library runs.
 *
 * A kernel's file sets TEMPLATE to the header with its inner loops and includes each_isa.h,
 * which includes that template once per instruction set with
 *
 *     ISA_NAME(f)   the name of f in this set: f_base, f_avx2, f_avx512, f_avx512vnni
 *     ISA_TARGET    the attribute that every function of the template carries
 *     ISA_LEVEL     one of the numbers below
 *     LANES         floats in a vector
 *
 * and then calls ISA_DISPATCH(f)(...). The rest of the library is compiled for the baseline of
 * the architecture (x86-64, or Arm with NEON, where the base template is all there is). */
#ifndef RECLM_ISA_H
#define RECLM_ISA_H

#include <stdint.h>

/* Numbers for the preprocessor too: a template may ask for ISA_LEVEL. */
#define RECLM_ISA_BASE 0
#define RECLM_ISA_AVX2 1
#define RECLM_ISA_AVX512 2
#define RECLM_ISA_AVX512VNNI 3

/* The set in use; isa.c owns it. */
extern int32_t reclm_isa_in_use;

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define RECLM_X86 1
#define ISA_DISPATCH(f)                                          \
    (reclm_isa_in_use == RECLM_ISA_AVX512VNNI ? f##_avx512vnni   \
     : reclm_isa_in_use == RECLM_ISA_AVX512   ? f##_avx512       \
     : reclm_isa_in_use == RECLM_ISA_AVX2     ? f##_avx2         \
                                              : f##_base)
#else
#define RECLM_X86 0
#define ISA_DISPATCH(f) f##_base
#endif

#endif
