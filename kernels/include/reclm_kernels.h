/* Numerics over plain arrays. The caller (native.py) validates shapes, index ranges and
 * finiteness; the C code trusts it. Every function returns RECLM_OK or an error code and
 * gives the same bits with any number of threads. */
#ifndef RECLM_KERNELS_H
#define RECLM_KERNELS_H

#include <stdint.h>

#define RECLM_ABI_VERSION 2

enum reclm_status {
    RECLM_OK = 0,
    RECLM_ERR_MEMORY = 1, /* an allocation failed */
    RECLM_ERR_SIZE = 2,   /* a negative size, or k < 1 */
    RECLM_ERR_INDPTR = 3, /* indptr does not start at 0, decreases, or does not end at nnz */
    RECLM_ERR_INDEX = 4,  /* a column index outside [0, n_cols) */
    RECLM_ERR_ISA = 5,    /* this processor lacks the requested instruction set */
    RECLM_ERR_NAN = 6     /* a score is NaN */
};

int32_t reclm_abi_version(void);

/* Instruction sets, by the RECLM_ISA_ numbers of src/isa.h. Must not change while a kernel runs. */
int32_t reclm_isa_supported(int32_t isa); /* 1 or 0 */
int32_t reclm_isa(void);
int32_t reclm_use_isa(int32_t isa);

/* Is (indptr, indices) a CSR structure of n_rows x n_cols with nnz entries? */
int32_t reclm_check_csr(int64_t n_rows, int64_t n_cols, int64_t nnz,
                        const int64_t *indptr, const int32_t *indices);

/* values (n,) rounded to the nearest bfloat16, ties to even. */
int32_t reclm_to_bf16(int64_t n, const float *values, uint16_t *out);

/* A (n_rows, n_cols; CSR) x dense (n_cols, dim), all row-major, into any of out, out_bf16 and add_to. */
int32_t reclm_spmm(int64_t n_rows, int64_t dim,
                   const int64_t *indptr,  /* (n_rows + 1,) */
                   const int32_t *indices, /* (nnz,) */
                   const float *data,      /* (nnz,) */
                   const void *dense,      /* float32, or bfloat16 if dense_is_bf16 */
                   int32_t dense_is_bf16,
                   float *out,             /* (n_rows, dim) or NULL */
                   uint16_t *out_bf16,     /* (n_rows, dim) or NULL: the result rounded */
                   float *add_to,          /* (n_rows, dim) or NULL: += weight * result */
                   float weight, int32_t n_threads);

/* The k best candidates of each query by
 *     score = sum of query * item over the first dim columns
 *           + sum of max(query + item, 0) over the last relu_dim columns + bias
 * without the n_queries x n_candidates matrix. Equal scores go to the lower id. Short rows end in id -1, score -inf;
 * a score that overflows to -inf or NaN is never ranked.
 * n_kept > 0: score rows rounded to int8 first, then the n_kept best of these (n_kept >= k) again in float32;
 * only without a ReLU part and with at most RECLM_TOPK_INT8_MAX_DIM columns. out_unsure becomes 1 for a query whose
 * kept scores are so close that rounding may have lost one of its k best. n_kept 0: float32 throughout.
 * prune: candidates may have any order (the closer to descending score, the faster), and norm bounds skip panels
 * that cannot enter the k best of any query in the tile; the result is the same. */
#define RECLM_TOPK_INT8_MAX_DIM 65536
int32_t reclm_topk(int64_t n_queries, int64_t n_candidates, int64_t dim, int64_t relu_dim, int64_t k, int64_t n_kept,
                   int32_t prune,
                   const float *queries,        /* (n_queries, dim + relu_dim) */
                   const float *items,          /* (n_items, dim + relu_dim) */
                   const float *bias,           /* (n_items,) or NULL */
                   const int32_t *candidates,   /* (n_candidates,) item ids, ascending unless prune */
                   const int64_t *seen_indptr,  /* (n_queries + 1,) or NULL: nothing masked */
                   const int32_t *seen_indices, /* item ids, ascending within a row */
                   int32_t *out_ids,            /* (n_queries, k) */
                   float *out_scores,           /* (n_queries, k) */
                   uint8_t *out_unsure,         /* (n_queries,) zeros, or NULL if n_kept is 0 */
                   int32_t n_threads);

/* The k best candidates of each row of given scores, ties and short rows as above; -inf is never ranked.
 * RECLM_ERR_NAN if a candidate's score is NaN. */
int32_t reclm_select(int64_t n_rows, int64_t n_items, int64_t n_candidates, int64_t k,
                     const float *scores,         /* (n_rows, n_items) */
                     const int32_t *candidates,   /* (n_candidates,) ascending item ids, or NULL: all items */
                     const int64_t *seen_indptr,  /* as above */
                     const int32_t *seen_indices,
                     int32_t *out_ids, float *out_scores, int32_t n_threads);

#endif
