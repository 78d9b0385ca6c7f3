/* The inner loops of spmm.c for one instruction set; see isa.h. */

typedef float ISA_NAME(vec) __attribute__((vector_size(LANES * 4)));
typedef float ISA_NAME(loose) __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint32_t ISA_NAME(word) __attribute__((vector_size(LANES * 4)));
typedef uint16_t ISA_NAME(half) __attribute__((vector_size(LANES * 2), aligned(2)));
#define vec_t ISA_NAME(vec)
#define loose_t ISA_NAME(loose)
#define word_t ISA_NAME(word)
#define half_t ISA_NAME(half)

/* A bfloat16 is the upper half of a float32. */
#define LOAD_F32(at) (*(const loose_t *)((const float *)dense + (at)))
#define LOAD_BF16(at) ((vec_t)(__builtin_convertvector(*(const half_t *)((const uint16_t *)dense + (at)), word_t) << 16))
#define SCALAR_F32(at) (((const float *)dense)[at])
#define SCALAR_BF16(at) bf16_to_f32(((const uint16_t *)dense)[at])

/* Rounds to the nearest bfloat16, ties to even; finite input. */
ISA_TARGET static inline half_t ISA_NAME(to_half)(vec_t value)
{
    const word_t bits = (word_t)value;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, half_t);
}

#define STORE(value, at)                                                                     \
    do {                                                                                     \
        const vec_t stored = (value);                                                        \
        if (job->out) *(loose_t *)(job->out + (at)) = stored;                                \
        if (job->out_bf16) *(half_t *)(job->out_bf16 + (at)) = ISA_NAME(to_half)(stored);    \
        if (job->add_to) *(loose_t *)(job->add_to + (at)) += job->weight * stored;           \
    } while (0)

/* N_VECS vectors of columns at once, held in registers while a row's entries pass. */
#define STRIP(N_VECS, LOAD, BYTES)                                                           \
    for (; col + (N_VECS) * LANES <= dim; col += (N_VECS) * LANES) {                         \
        vec_t sum[N_VECS];                                                                   \
        for (int v = 0; v < (N_VECS); v++) sum[v] = (vec_t){0};                              \
        for (int64_t entry = begin; entry < end; entry++) {                                  \
            const float weight = data[entry];                                                \
            const int64_t source = (int64_t)indices[entry] * dim + col;                      \
            const int64_t ahead = entry + AHEAD < job->nnz ? entry + AHEAD : entry;          \
            const char *next = (const char *)dense + ((int64_t)indices[ahead] * dim + col) * (BYTES); \
            for (int line = 0; line < (N_VECS) * LANES * (BYTES); line += 64) __builtin_prefetch(next + line); \
            for (int v = 0; v < (N_VECS); v++) sum[v] += weight * LOAD(source + v * LANES);  \
        }                                                                                    \
        for (int v = 0; v < (N_VECS); v++) STORE(sum[v], target + col + v * LANES);          \
    }

#define ROWS(NAME, LOAD, SCALAR, BYTES)                                                      \
    ISA_TARGET static void ISA_NAME(NAME)(const spmm_job_t *job, int64_t first, int64_t last) \
    {                                                                                        \
        const int64_t dim = job->dim;                                                        \
        const int32_t *restrict indices = job->indices;                                      \
        const float *restrict data = job->data;                                              \
        const void *restrict dense = job->dense;                                             \
        for (int64_t row = first; row < last; row++) {                                       \
            const int64_t begin = job->indptr[row], end = job->indptr[row + 1];              \
            const int64_t target = row * dim;                                                \
            int64_t col = 0;                                                                 \
            STRIP(8, LOAD, BYTES)                                                            \
            STRIP(4, LOAD, BYTES)                                                            \
            STRIP(2, LOAD, BYTES)                                                            \
            STRIP(1, LOAD, BYTES)                                                            \
            for (; col < dim; col++) {                                                       \
                float sum = 0.0f;                                                            \
                for (int64_t entry = begin; entry < end; entry++)                            \
                    sum += data[entry] * SCALAR((int64_t)indices[entry] * dim + col);        \
                if (job->out) job->out[target + col] = sum;                                  \
                if (job->out_bf16) job->out_bf16[target + col] = f32_to_bf16(sum);           \
                if (job->add_to) job->add_to[target + col] += job->weight * sum;             \
            }                                                                                \
        }                                                                                    \
    }

ROWS(spmm_rows_f32, LOAD_F32, SCALAR_F32, 4)
ROWS(spmm_rows_bf16, LOAD_BF16, SCALAR_BF16, 2)

#undef vec_t
#undef loose_t
#undef word_t
#undef half_t
#undef LOAD_F32
#undef LOAD_BF16
#undef SCALAR_F32
#undef SCALAR_BF16
#undef STORE
#undef STRIP
#undef ROWS
