/* Checks that the binding runs before it trusts an array. */
#include <stddef.h>

#include "../include/reclm_kernels.h"

int32_t reclm_abi_version(void)
{
    return RECLM_ABI_VERSION;
}

int32_t reclm_check_csr(int64_t n_rows, int64_t n_cols, int64_t nnz, const int64_t *indptr,
                        const int32_t *indices)
{
    if (n_rows < 0 || n_cols < 0 || nnz < 0) return RECLM_ERR_SIZE;
    if (indptr[0] != 0 || indptr[n_rows] != nnz) return RECLM_ERR_INDPTR;
    for (int64_t row = 0; row < n_rows; row++)
        if (indptr[row + 1] < indptr[row]) return RECLM_ERR_INDPTR;
    for (int64_t entry = 0; entry < nnz; entry++)
        if (indices[entry] < 0 || indices[entry] >= n_cols) return RECLM_ERR_INDEX;
    return RECLM_OK;
}
