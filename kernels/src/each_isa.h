/* Includes TEMPLATE once per instruction set; see isa.h. No include guard: each kernel includes it once. */
#include "isa.h"

#define ISA_NAME(f) f##_base
#define ISA_TARGET
#define ISA_LEVEL RECLM_ISA_BASE
#define LANES 4
#include TEMPLATE
#undef ISA_NAME
#undef ISA_TARGET
#undef ISA_LEVEL
#undef LANES

#if RECLM_X86

#define ISA_NAME(f) f##_avx2
#define ISA_TARGET __attribute__((target("avx2,fma")))
#define ISA_LEVEL RECLM_ISA_AVX2
#define LANES 8
#include TEMPLATE
#undef ISA_NAME
#undef ISA_TARGET
#undef ISA_LEVEL
#undef LANES

#define ISA_NAME(f) f##_avx512
#define ISA_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define ISA_LEVEL RECLM_ISA_AVX512
#define LANES 16
#include TEMPLATE
#undef ISA_NAME
#undef ISA_TARGET
#undef ISA_LEVEL
#undef LANES

#define ISA_NAME(f) f##_avx512vnni
#define ISA_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")))
#define ISA_LEVEL RECLM_ISA_AVX512VNNI
#define LANES 16
#include TEMPLATE
#undef ISA_NAME
#undef ISA_TARGET
#undef ISA_LEVEL
#undef LANES

#endif
