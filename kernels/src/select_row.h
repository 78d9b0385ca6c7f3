/* The inner loop of select.c for one instruction set; see isa.h. */

typedef float ISA_NAME(select_f32) __attribute__((vector_size(LANES * 4)));
typedef float ISA_NAME(select_loose) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ISA_NAME(select_i32) __attribute__((vector_size(LANES * 4)));
#define vec_t ISA_NAME(select_f32)
#define int_t ISA_NAME(select_i32)

/* Is any of BLOCK values above the threshold? Adds to *nan_seen whether one is NaN. */
ISA_TARGET static int ISA_NAME(block_above)(const float *values, float threshold, int32_t *nan_seen)
{
    int_t above = {0}, strange = {0};
    for (int at = 0; at < BLOCK; at += LANES) {
        const vec_t value = *(const ISA_NAME(select_loose) *)(values + at);
        above |= value > threshold;
        strange |= value != value;
    }
    int32_t any = 0, any_strange = 0;
    for (int lane = 0; lane < LANES; lane++) {
        any |= above[lane];
        any_strange |= strange[lane];
    }
    *nan_seen |= any_strange;
    return any;
}

#undef vec_t
#undef int_t
