/* Detects the instruction sets of this processor and chooses the one that the kernels use. */
#include "../include/reclm_kernels.h"
#include "isa.h"

int32_t reclm_isa_in_use = RECLM_ISA_BASE;

int32_t reclm_isa_supported(int32_t isa)
{
    if (isa == RECLM_ISA_BASE) return 1;
#if RECLM_X86
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (isa == RECLM_ISA_AVX2) return avx2;
    if (isa == RECLM_ISA_AVX512) return avx512;
    if (isa == RECLM_ISA_AVX512VNNI) return avx512 && __builtin_cpu_supports("avx512vnni");
#endif
    return 0;
}

int32_t reclm_isa(void)
{
    return reclm_isa_in_use;
}

int32_t reclm_use_isa(int32_t isa)
{
    if (!reclm_isa_supported(isa)) return RECLM_ERR_ISA;
    reclm_isa_in_use = isa;
    return RECLM_OK;
}
