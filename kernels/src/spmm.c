/* out[i, :]     = sum over j in row i of data[j] * dense[indices[j], :]
 * add_to[i, :] += weight * out[i, :]      in the same pass
 *
 * `dense` is float32 or bfloat16; sums are float32. A row is summed in one thread, in storage
 * order: the bits do not depend on the number of threads. Rows of `dense` that the coming entries
 * need are prefetched, since their addresses are known and the hardware cannot guess them. */
#include <stddef.h>
#include <string.h>

#include "../include/reclm_kernels.h"
#include "isa.h"
#if RECLM_X86
#include <immintrin.h>
#endif

#define ROWS_PER_TASK 128
/* With fewer multiplications, waking the threads costs more than it saves. */
#define SMALL_WORK 2000000
/* A larger result does not stay in a core's cache; streaming stores leave the cache to `dense`. */
#define CACHED_BYTES (4 << 20)
/* Entries between a prefetch and its use: about as many bytes in flight either way. */
#define AHEAD_F32 16
#define AHEAD_BF16 28

typedef struct {
    int64_t n_rows, dim, nnz;
    const int64_t *indptr;
    const int32_t *indices;
    const float *data;
    const void *dense;
    float *out;
    uint16_t *out_bf16;
    float *add_to;
    float weight;
    int32_t stream; /* write `out` with streaming stores */
} spmm_job_t;

static inline float bf16_to_f32(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline void put_scalar(const spmm_job_t *job, int64_t at, float value)
{
    if (job->out) job->out[at] = value;
    if (job->out_bf16) job->out_bf16[at] = f32_to_bf16(value);
    if (job->add_to) job->add_to[at] += job->weight * value;
}

#define TEMPLATE "spmm_rows.h"
#include "each_isa.h"

int32_t reclm_to_bf16(int64_t n, const float *values, uint16_t *out)
{
    if (n < 0) return RECLM_ERR_SIZE;
    for (int64_t at = 0; at < n; at++) out[at] = f32_to_bf16(values[at]);
    return RECLM_OK;
}

int32_t reclm_spmm(int64_t n_rows, int64_t dim, const int64_t *indptr, const int32_t *indices, const float *data,
                   const void *dense, int32_t dense_is_bf16, float *out, uint16_t *out_bf16, float *add_to,
                   float weight, int32_t n_threads)
{
    if (n_rows < 0 || dim < 0 || n_threads < 1) return RECLM_ERR_SIZE;
    const int64_t nnz = indptr[n_rows];
    const int32_t stream = out && dim % 16 == 0 && (uintptr_t)out % 64 == 0 && n_rows * dim * 4 > CACHED_BYTES;
    const spmm_job_t job = {n_rows, dim, nnz, indptr, indices, data, dense, out, out_bf16, add_to, weight, stream};
    void (*rows)(const spmm_job_t *, int64_t, int64_t) =
        dense_is_bf16 ? ISA_DISPATCH(spmm_rows_bf16) : ISA_DISPATCH(spmm_rows_f32);
    const int64_t n_tasks = (n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
    const int worth_it = (nnz + n_rows) * dim > SMALL_WORK;
#pragma omp parallel num_threads(n_threads) if (worth_it)
    {
#pragma omp for schedule(dynamic, 2)
        for (int64_t task = 0; task < n_tasks; task++) {
            const int64_t first = task * ROWS_PER_TASK;
            rows(&job, first, first + ROWS_PER_TASK < n_rows ? first + ROWS_PER_TASK : n_rows);
        }
#if RECLM_X86
        if (stream) _mm_sfence(); /* streaming stores are visible to other threads only after a fence */
#endif
    }
    return RECLM_OK;
}
