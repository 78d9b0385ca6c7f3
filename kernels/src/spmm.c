/* out[i, :] = sum over j in row i of data[j] * dense[indices[j], :]
 *
 * A row is summed in one thread, in storage order: the bits do not depend on the number of
 * threads. Columns go in strips held in registers, so `out` is written once. */
#include <stddef.h>

#include "../include/reclm_kernels.h"
#include "clones.h"

#define ROWS_PER_TASK 256
/* Below this many multiplications waking the threads costs more than they save. */
#define SMALL_WORK 2000000

/* N_VECS vectors of 8 columns at once. */
#define STRIP(N_VECS)                                                                       \
    for (; col + N_VECS * LANES <= dim; col += N_VECS * LANES) {                            \
        vec_t sum[N_VECS] = {0};                                                            \
        for (int64_t entry = begin; entry < end; entry++) {                                 \
            const float weight = data[entry];                                               \
            const float *source = dense + (int64_t)indices[entry] * dim + col;              \
            for (int v = 0; v < N_VECS; v++)                                                \
                sum[v] += weight * *(const loose_vec_t *)(source + v * LANES);              \
        }                                                                                   \
        for (int v = 0; v < N_VECS; v++) *(loose_vec_t *)(target + col + v * LANES) = sum[v]; \
    }

RECLM_CLONES
static void spmm_rows(int64_t first, int64_t last, int64_t dim, const int64_t *restrict indptr,
                      const int32_t *restrict indices, const float *restrict data,
                      const float *restrict dense, float *restrict out)
{
    for (int64_t row = first; row < last; row++) {
        const int64_t begin = indptr[row], end = indptr[row + 1];
        float *restrict target = out + row * dim;
        int64_t col = 0;
        STRIP(8)
        STRIP(4)
        STRIP(1)
        for (; col < dim; col++) {
            float sum = 0.0f;
            for (int64_t entry = begin; entry < end; entry++)
                sum += data[entry] * dense[(int64_t)indices[entry] * dim + col];
            target[col] = sum;
        }
    }
}

int32_t reclm_spmm_f32(int64_t n_rows, int64_t dim, const int64_t *indptr, const int32_t *indices,
                       const float *data, const float *dense, float *out, int32_t n_threads)
{
    if (n_rows < 0 || dim < 0 || n_threads < 1) return RECLM_ERR_SIZE;
    const int64_t n_tasks = (n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
    const int worth_it = n_rows > 0 && (indptr[n_rows] + n_rows) * dim > SMALL_WORK;
#pragma omp parallel for schedule(dynamic, 4) num_threads(n_threads) if (worth_it)
    for (int64_t task = 0; task < n_tasks; task++) {
        const int64_t first = task * ROWS_PER_TASK;
        const int64_t last = first + ROWS_PER_TASK < n_rows ? first + ROWS_PER_TASK : n_rows;
        spmm_rows(first, last, dim, indptr, indices, data, dense, out);
    }
    return RECLM_OK;
}
