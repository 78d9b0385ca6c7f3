/* The inner loops of topk.c for one instruction set; see isa.h.
 *
 * A tile of TILE queries meets a panel of PANEL = 2 * LANES items; all TILE x PANEL sums stay in registers
 * (24 of 32 with AVX-512; 16 of 32 with NEON, where the queries of a dimension take theirs as well; 12 of 16
 * elsewhere). Each sum starts at the bias and takes the dimensions in their order, so a score has the same bits
 * wherever its query and its item fall. */

#define PANEL (2 * LANES)
#if LANES == 16
#define TILE 12
#elif defined(__aarch64__)
#define TILE 8
#else
#define TILE 6
#endif

typedef float ISA_NAME(tile_f32) __attribute__((vector_size(LANES * 4)));
typedef float ISA_NAME(loose_f32) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ISA_NAME(tile_i32) __attribute__((vector_size(LANES * 4)));
#define vec_t ISA_NAME(tile_f32)
#define loose_t ISA_NAME(loose_f32)
#define int_t ISA_NAME(tile_i32)

/* Bit `lane` of the result is set if left[lane] > right[lane]; not if either is NaN. */
ISA_TARGET static inline uint32_t ISA_NAME(above)(vec_t left, vec_t right)
{
#if RECLM_X86 && LANES == 16
    return _mm512_cmp_ps_mask((__m512)left, (__m512)right, _CMP_GT_OQ);
#elif RECLM_X86 && LANES == 8
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)left, (__m256)right, _CMP_GT_OQ));
#elif RECLM_X86
    return (uint32_t)_mm_movemask_ps(_mm_cmpgt_ps((__m128)left, (__m128)right));
#else
    const int_t is_above = left > right;
    uint32_t bits = 0;
    for (int lane = 0; lane < LANES; lane++) bits |= (uint32_t)(is_above[lane] & 1) << lane;
    return bits;
#endif
}

ISA_TARGET static inline vec_t ISA_NAME(positive)(vec_t value)
{
    return (vec_t)((int_t)value & (value > 0.0f));
}

/* Unrolled before the compiler decides what lives in registers; else it keeps the sums in memory. */
#define EACH_QUERY _Pragma("GCC unroll 12") for (int q = 0; q < TILE; q++)

/* Stores all scores, sets hits[q] to the lanes of query q that lie above its threshold, and returns which queries
 * have any. Without a branch: the next panel's products overlap with these stores. */
#define KEEP_HITS(low, high)                                                                 \
    uint32_t hit_queries = 0;                                                                \
    EACH_QUERY {                                                                             \
        const vec_t threshold = thresholds[q] - (vec_t){0};                                  \
        *(loose_t *)(scores + q * PANEL) = low[q];                                           \
        *(loose_t *)(scores + q * PANEL + LANES) = high[q];                                  \
        hits[q] = ISA_NAME(above)(low[q], threshold) | ISA_NAME(above)(high[q], threshold) << LANES; \
        hit_queries |= (uint32_t)(hits[q] != 0) << q;                                        \
    }                                                                                        \
    return hit_queries;

/* scores[q, lane] = bias[lane] + sum_d queries[d, q] * panel[d, lane]
 *                 + sum_h max(queries[dim + h, q] + panel[dim + h, lane], 0) */
ISA_TARGET static uint32_t ISA_NAME(score_f32)(int64_t dim, int64_t relu_dim, const float *restrict queries,
                                               const float *restrict panel, const float *restrict bias,
                                               const float *restrict thresholds, float *restrict scores,
                                               uint32_t *restrict hits)
{
    vec_t low[TILE], high[TILE];
    EACH_QUERY {
        low[q] = *(const loose_t *)bias;
        high[q] = *(const loose_t *)(bias + LANES);
    }
    for (int64_t d = 0; d < dim; d++) {
        const vec_t left = *(const loose_t *)panel, right = *(const loose_t *)(panel + LANES);
        EACH_QUERY {
            low[q] += queries[q] * left;
            high[q] += queries[q] * right;
        }
        queries += TILE;
        panel += PANEL;
    }
    for (int64_t h = 0; h < relu_dim; h++) {
        const vec_t left = *(const loose_t *)panel, right = *(const loose_t *)(panel + LANES);
        EACH_QUERY {
            low[q] += ISA_NAME(positive)(queries[q] + left);
            high[q] += ISA_NAME(positive)(queries[q] + right);
        }
        queries += TILE;
        panel += PANEL;
    }
    KEEP_HITS(low, high)
}

/* Rounds exactly where score_f32 does. Explicit, because the compiler fuses the tile's vector operations but may
 * split scalar products from their sums. */
#if ISA_LEVEL >= RECLM_ISA_AVX2 || defined(__ARM_FEATURE_FMA)
#define ADD_PRODUCT(sum, left, right) __builtin_fmaf(left, right, sum)
#else
#define ADD_PRODUCT(sum, left, right) ((sum) + (left) * (right))
#endif

/* score_f32 of one query and AGAIN items wherever they lie, bit for bit: the second look at what int8 has kept. */
ISA_TARGET static void ISA_NAME(score_again)(int64_t dim, const float *restrict query, const float *const *rows,
                                             const float *restrict bias, float *restrict scores)
{
    float sum[AGAIN];
    _Pragma("GCC unroll 8") for (int at = 0; at < AGAIN; at++) sum[at] = bias[at];
    for (int64_t d = 0; d < dim; d++)
        _Pragma("GCC unroll 8") for (int at = 0; at < AGAIN; at++) sum[at] = ADD_PRODUCT(sum[at], query[d], rows[at][d]);
    _Pragma("GCC unroll 8") for (int at = 0; at < AGAIN; at++) scores[at] = sum[at];
}

/* Small integers are multiplied GROUP at a time into 32-bit sums: four bytes by VNNI, where the items are
 * unsigned (128 added, which offsets[q] takes away again), else two 16-bit numbers. */
#if ISA_LEVEL == RECLM_ISA_AVX512VNNI
#define GROUP 4
#define MULTIPLY_ADD(sum, items, query) \
    (int_t) _mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(items), _mm512_set1_epi32(query))
#else
#define GROUP 2
#if RECLM_X86 && LANES == 16
#define MULTIPLY_ADD(sum, items, query) \
    ((sum) + (int_t)_mm512_madd_epi16((__m512i)(items), _mm512_set1_epi32(query)))
#elif RECLM_X86 && LANES == 8
#define MULTIPLY_ADD(sum, items, query) \
    ((sum) + (int_t)_mm256_madd_epi16((__m256i)(items), _mm256_set1_epi32(query)))
#elif RECLM_X86
#define MULTIPLY_ADD(sum, items, query) ((sum) + (int_t)_mm_madd_epi16((__m128i)(items), _mm_set1_epi32(query)))
#else
#define MULTIPLY_ADD(sum, items, query) \
    ((sum) + ((items) << 16 >> 16) * ((query) << 16 >> 16) + ((items) >> 16) * ((query) >> 16))
#endif
#endif

/* scores[q, lane] = scales[q] * item_scales[lane] * (offsets[q] + sum_d queries[d, q] * panel[d, lane]) + bias[lane]
 * queries: (n_groups, TILE), panel: (n_groups, PANEL), GROUP small integers in each int32. */
ISA_TARGET static uint32_t ISA_NAME(score_int8)(int64_t n_groups, const int32_t *restrict queries,
                                                const int32_t *restrict offsets, const float *restrict scales,
                                                const int32_t *restrict panel, const float *restrict item_scales,
                                                const float *restrict bias, const float *restrict thresholds,
                                                float *restrict scores, uint32_t *restrict hits)
{
    int_t low_sum[TILE], high_sum[TILE];
    EACH_QUERY low_sum[q] = high_sum[q] = offsets[q] - (int_t){0};
    for (int64_t g = 0; g < n_groups; g++) {
        const int_t left = (int_t)*(const loose_t *)panel, right = (int_t)*(const loose_t *)(panel + LANES);
        EACH_QUERY {
            low_sum[q] = MULTIPLY_ADD(low_sum[q], left, queries[q]);
            high_sum[q] = MULTIPLY_ADD(high_sum[q], right, queries[q]);
        }
        queries += TILE;
        panel += PANEL;
    }
    const vec_t low_scale = *(const loose_t *)item_scales, high_scale = *(const loose_t *)(item_scales + LANES);
    const vec_t low_bias = *(const loose_t *)bias, high_bias = *(const loose_t *)(bias + LANES);
    vec_t low[TILE], high[TILE];
    EACH_QUERY {
        low[q] = __builtin_convertvector(low_sum[q], vec_t) * low_scale * scales[q] + low_bias;
        high[q] = __builtin_convertvector(high_sum[q], vec_t) * high_scale * scales[q] + high_bias;
    }
    KEEP_HITS(low, high)
}

static const kernel_t ISA_NAME(kernel) = {
    TILE, PANEL, GROUP, ISA_NAME(score_f32), ISA_NAME(score_again), ISA_NAME(score_int8),
};

#undef PANEL
#undef TILE
#undef GROUP
#undef MULTIPLY_ADD
#undef ADD_PRODUCT
#undef KEEP_HITS
#undef EACH_QUERY
#undef vec_t
#undef loose_t
#undef int_t
