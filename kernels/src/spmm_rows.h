/* The inner loops of spmm.c for one instruction set; see isa.h. */

typedef float ISA_NAME(vec) __attribute__((vector_size(LANES * 4)));
typedef float ISA_NAME(loose) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t ISA_NAME(word) __attribute__((vector_size(LANES * 4)));
typedef uint32_t ISA_NAME(pair) __attribute__((vector_size(LANES * 4), aligned(2), may_alias));
typedef uint16_t ISA_NAME(half) __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
#define vec_t ISA_NAME(vec)
#define loose_t ISA_NAME(loose)
#define word_t ISA_NAME(word)
#define pair_t ISA_NAME(pair)
#define half_t ISA_NAME(half)

/* Streaming store, if the caller has found that `out` would not stay in the caches. */
#if RECLM_X86 && LANES == 16
#define STREAM(to, value) _mm512_stream_ps(to, (__m512)(value))
#elif RECLM_X86 && LANES == 8
#define STREAM(to, value) _mm256_stream_ps(to, (__m256)(value))
#elif RECLM_X86
#define STREAM(to, value) _mm_stream_ps(to, (__m128)(value))
#else
#define STREAM(to, value) (*(loose_t *)(to) = (value))
#endif

/* Rounds to the nearest bfloat16, ties to even; finite input. */
ISA_TARGET static inline half_t ISA_NAME(to_half)(vec_t value)
{
    const word_t bits = (word_t)value;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, half_t);
}

ISA_TARGET static inline void ISA_NAME(put)(const spmm_job_t *job, int64_t at, vec_t value)
{
    if (job->out) {
        if (job->stream)
            STREAM(job->out + at, value);
        else
            *(loose_t *)(job->out + at) = value;
    }
    if (job->out_bf16) *(half_t *)(job->out_bf16 + at) = ISA_NAME(to_half)(value);
    if (job->add_to) *(loose_t *)(job->add_to + at) += job->weight * value;
}

/* Prefetches the row of a later entry; its last byte may lie one cache line further. */
#define PREFETCH(N_BYTES, WIDTH, AHEAD)                                                      \
    do {                                                                                     \
        const int64_t ahead = entry + AHEAD < job->nnz ? entry + AHEAD : entry;              \
        const char *next = (const char *)dense + ((int64_t)indices[ahead] * dim + col) * (WIDTH); \
        for (int line = 0; line < (N_BYTES); line += 64) __builtin_prefetch(next + line);    \
        __builtin_prefetch(next + (N_BYTES) - 1);                                            \
    } while (0)

/* Sums N_VECS vectors of columns at once, in registers, over the entries of a row. */
#define STRIP(N_VECS)                                                                        \
    for (; col + (N_VECS) * LANES <= dim; col += (N_VECS) * LANES) {                         \
        vec_t sum[N_VECS];                                                                   \
        for (int v = 0; v < (N_VECS); v++) sum[v] = (vec_t){0};                              \
        for (int64_t entry = begin; entry < end; entry++) {                                  \
            const float weight = data[entry];                                                \
            const float *source = dense + (int64_t)indices[entry] * dim + col;               \
            PREFETCH((N_VECS) * LANES * 4, 4, AHEAD_F32);                                    \
            for (int v = 0; v < (N_VECS); v++) sum[v] += weight * *(const loose_t *)(source + v * LANES); \
        }                                                                                    \
        for (int v = 0; v < (N_VECS); v++) ISA_NAME(put)(job, target + col + v * LANES, sum[v]); \
    }

ISA_TARGET static void ISA_NAME(spmm_rows_f32)(const spmm_job_t *job, int64_t first, int64_t last)
{
    const int64_t dim = job->dim;
    const int32_t *restrict indices = job->indices;
    const float *restrict data = job->data, *restrict dense = job->dense;
    for (int64_t row = first; row < last; row++) {
        const int64_t begin = job->indptr[row], end = job->indptr[row + 1], target = row * dim;
        int64_t col = 0;
        STRIP(8)
        STRIP(4)
        STRIP(2)
        STRIP(1)
        for (; col < dim; col++) {
            float sum = 0.0f;
            for (int64_t entry = begin; entry < end; entry++) sum += data[entry] * dense[(int64_t)indices[entry] * dim + col];
            put_scalar(job, target + col, sum);
        }
    }
}

/* N_PAIRS vectors of words, each two bfloat16: the even column below, the odd one above, and above it a float32 but for
 * the lower half. Even and odd columns are summed apart and joined once a row. */
#define PAIR_STRIP(N_PAIRS)                                                                  \
    for (; col + (N_PAIRS) * 2 * LANES <= dim; col += (N_PAIRS) * 2 * LANES) {               \
        vec_t even[N_PAIRS], odd[N_PAIRS];                                                   \
        for (int v = 0; v < (N_PAIRS); v++) even[v] = odd[v] = (vec_t){0};                   \
        for (int64_t entry = begin; entry < end; entry++) {                                  \
            const float weight = data[entry];                                                \
            const uint16_t *source = dense + (int64_t)indices[entry] * dim + col;            \
            PREFETCH((N_PAIRS) * LANES * 4, 2, AHEAD_BF16);                                  \
            for (int v = 0; v < (N_PAIRS); v++) {                                            \
                const word_t words = *(const pair_t *)(source + v * 2 * LANES);              \
                even[v] += weight * (vec_t)(words << 16);                                    \
                odd[v] += weight * (vec_t)(words & 0xffff0000u);                             \
            }                                                                                \
        }                                                                                    \
        for (int v = 0; v < (N_PAIRS); v++) {                                                \
            ISA_NAME(put)(job, target + col + v * 2 * LANES, INTERLEAVE_LOW(even[v], odd[v])); \
            ISA_NAME(put)(job, target + col + v * 2 * LANES + LANES, INTERLEAVE_HIGH(even[v], odd[v])); \
        }                                                                                    \
    }

#if LANES == 16
#define LOW_LANES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_LANES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW_LANES 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_LANES 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW_LANES 0, 4, 1, 5
#define HIGH_LANES 2, 6, 3, 7
#endif
#if defined(__clang__)
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, LOW_LANES)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, HIGH_LANES)
#else
#define INTERLEAVE_LOW(a, b) __builtin_shuffle(a, b, (word_t){LOW_LANES})
#define INTERLEAVE_HIGH(a, b) __builtin_shuffle(a, b, (word_t){HIGH_LANES})
#endif

ISA_TARGET static void ISA_NAME(spmm_rows_bf16)(const spmm_job_t *job, int64_t first, int64_t last)
{
    const int64_t dim = job->dim;
    const int32_t *restrict indices = job->indices;
    const float *restrict data = job->data;
    const uint16_t *restrict dense = job->dense;
    for (int64_t row = first; row < last; row++) {
        const int64_t begin = job->indptr[row], end = job->indptr[row + 1], target = row * dim;
        int64_t col = 0;
        PAIR_STRIP(4)
        PAIR_STRIP(2)
        PAIR_STRIP(1)
        for (; col < dim; col++) {
            float sum = 0.0f;
            for (int64_t entry = begin; entry < end; entry++)
                sum += data[entry] * bf16_to_f32(dense[(int64_t)indices[entry] * dim + col]);
            put_scalar(job, target + col, sum);
        }
    }
}

#undef vec_t
#undef loose_t
#undef word_t
#undef pair_t
#undef half_t
#undef STREAM
#undef PREFETCH
#undef STRIP
#undef PAIR_STRIP
#undef LOW_LANES
#undef HIGH_LANES
#undef INTERLEAVE_LOW
#undef INTERLEAVE_HIGH
