/* The k best of each row of given scores: a block of a row is compared with the worst kept score, and its elements
 * are inspected only if one lies above it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../include/reclm_kernels.h"
#include "heap.h"

/* With fewer scores, waking the threads costs more than it saves. */
#define SMALL_WORK 500000
enum { BLOCK = 64 };

#define TEMPLATE "select_row.h"
#include "each_isa.h"

typedef struct {
    int64_t n_candidates, k;
    const int32_t *candidates;
    int (*block_above)(const float *values, float threshold, int32_t *nan_seen);
} rule_t;

/* The heap's new size; *nan_seen becomes nonzero at a NaN. */
static int64_t select_row(const rule_t *rule, const float *row, const int32_t *seen, const int32_t *end, entry_t *heap,
                          int32_t *nan_seen)
{
    float block[BLOCK], threshold = -INFINITY;
    int64_t size = 0;
    for (int64_t start = 0; start < rule->n_candidates; start += BLOCK) {
        const int filled = rule->n_candidates - start < BLOCK ? (int)(rule->n_candidates - start) : BLOCK;
        const float *values = row + start;
        if (rule->candidates || filled < BLOCK) {
            for (int at = 0; at < filled; at++) block[at] = row[rule->candidates ? rule->candidates[start + at] : start + at];
            for (int at = filled; at < BLOCK; at++) block[at] = -INFINITY;
            values = block;
        }
        if (!rule->block_above(values, threshold, nan_seen)) continue;
        for (int at = 0; at < filled; at++) {
            if (!(values[at] > threshold)) continue;
            const int32_t id = rule->candidates ? rule->candidates[start + at] : (int32_t)(start + at);
            while (seen < end && *seen < id) seen++;
            if (seen < end && *seen == id) continue;
            push(heap, &size, rule->k, make_entry(values[at], id));
            if (size == rule->k) threshold = entry_score(heap[0]);
        }
    }
    return size;
}

int32_t reclm_select(int64_t n_rows, int64_t n_items, int64_t n_candidates, int64_t k, const float *scores,
                     const int32_t *candidates, const int64_t *seen_indptr, const int32_t *seen_indices,
                     int32_t *out_ids, float *out_scores, int32_t n_threads)
{
    if (n_rows < 0 || n_items < 0 || n_candidates < 0 || k < 1 || n_threads < 1) return RECLM_ERR_SIZE;
    const rule_t rule = {n_candidates, k, candidates, ISA_DISPATCH(block_above)};
    int failed = 0, nan_seen = 0;
#pragma omp parallel num_threads(n_threads) reduction(| : failed, nan_seen) if ((double)n_rows * (double)n_candidates > SMALL_WORK)
    {
        entry_t *heap = malloc((size_t)k * sizeof *heap);
        failed |= !heap;
#pragma omp for schedule(dynamic, 8)
        for (int64_t row = 0; row < n_rows; row++) {
            if (!heap) continue;
            const int32_t *seen = NULL, *end = NULL;
            int32_t strange = 0;
            if (seen_indptr) {
                seen = seen_indices + seen_indptr[row];
                end = seen_indices + seen_indptr[row + 1];
            }
            const int64_t size = select_row(&rule, scores + row * n_items, seen, end, heap, &strange);
            nan_seen |= strange != 0;
            drain(heap, size, k, out_ids + row * k, out_scores + row * k);
        }
        free(heap);
    }
    return failed ? RECLM_ERR_MEMORY : nan_seen ? RECLM_ERR_NAN : RECLM_OK;
}
