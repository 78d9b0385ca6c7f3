/* The k best candidates per query, fused with the product that scores them.
 *
 * Candidates are packed once into panels of 16, dimension-major (n_panels, dim, 16); a tile of
 * 6 queries meets one panel at a time: 6 x 16 sums fit the registers of AVX2.
 * Each query keeps a heap of its k best whose root is the worst; since candidates come in
 * ascending id, "strictly better than the root" also breaks ties by lower id.
 * Every score sums the dimensions in the same order, wherever it falls in a tile. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../include/reclm_kernels.h"
#include "clones.h"

/* Below this many multiplications waking the threads costs more than they save. */
#define SMALL_WORK 2000000

enum { PANEL = 2 * LANES, TILE = 6 };

typedef struct {
    float score;
    int32_t id;
} entry_t;

/* Does `a` rank below `b`? */
static inline int worse(entry_t a, entry_t b)
{
    return a.score < b.score || (a.score == b.score && a.id > b.id);
}

static void sift_down(entry_t *heap, int64_t size, int64_t at)
{
    const entry_t moved = heap[at];
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && worse(heap[child + 1], heap[child])) child++;
        if (!worse(heap[child], moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static void push(entry_t *heap, int64_t *size, int64_t k, entry_t entry)
{
    if (*size == k) {
        heap[0] = entry;
        sift_down(heap, k, 0);
        return;
    }
    int64_t at = (*size)++;
    while (at > 0 && worse(entry, heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = entry;
}

/* scores[q, lane] = bias[lane] + sum over d of queries[d, q] * panel[d, lane] */
RECLM_CLONES
static void score_tile(int64_t dim, const float *restrict queries, const float *restrict panel,
                       const float *restrict bias, float *restrict scores)
{
    vec_t low[TILE], high[TILE];
    for (int q = 0; q < TILE; q++) {
        low[q] = *(const loose_vec_t *)bias;
        high[q] = *(const loose_vec_t *)(bias + LANES);
    }
    for (int64_t d = 0; d < dim; d++) {
        const vec_t left = *(const loose_vec_t *)(panel + d * PANEL);
        const vec_t right = *(const loose_vec_t *)(panel + d * PANEL + LANES);
        for (int q = 0; q < TILE; q++) {
            low[q] += queries[d * TILE + q] * left;
            high[q] += queries[d * TILE + q] * right;
        }
    }
    for (int q = 0; q < TILE; q++) {
        *(loose_vec_t *)(scores + q * PANEL) = low[q];
        *(loose_vec_t *)(scores + q * PANEL + LANES) = high[q];
    }
}

typedef struct {
    int64_t n_queries, n_candidates, dim, k;
    const float *queries, *panels, *biases;
    const int32_t *candidates;
    const int64_t *seen_indptr;
    const int32_t *seen_indices;
    int32_t *out_ids;
    float *out_scores;
} job_t;

static void topk_tile(const job_t *job, int64_t first, float *packed, entry_t *heaps)
{
    const int64_t dim = job->dim, k = job->k;
    const int n = job->n_queries - first < TILE ? (int)(job->n_queries - first) : TILE;
    int64_t size[TILE] = {0}, seen[TILE] = {0}, seen_end[TILE] = {0};
    float scores[TILE * PANEL];

    memset(packed, 0, (size_t)(dim * TILE) * sizeof *packed);
    for (int q = 0; q < n; q++) {
        for (int64_t d = 0; d < dim; d++) packed[d * TILE + q] = job->queries[(first + q) * dim + d];
        if (job->seen_indptr) {
            seen[q] = job->seen_indptr[first + q];
            seen_end[q] = job->seen_indptr[first + q + 1];
        }
    }
    for (int64_t start = 0; start < job->n_candidates; start += PANEL) {
        const int width = job->n_candidates - start < PANEL ? (int)(job->n_candidates - start) : PANEL;
        score_tile(dim, packed, job->panels + start * dim, job->biases + start, scores);
        for (int q = 0; q < n; q++) {
            entry_t *heap = heaps + q * k;
            const float *row = scores + q * PANEL;
            if (size[q] == k) {
                int hit = 0;
                for (int lane = 0; lane < PANEL; lane++) hit |= row[lane] > heap[0].score;
                if (!hit) continue;
            }
            for (int lane = 0; lane < width; lane++) {
                if (size[q] == k && !(row[lane] > heap[0].score)) continue;
                const int32_t id = job->candidates[start + lane];
                while (seen[q] < seen_end[q] && job->seen_indices[seen[q]] < id) seen[q]++;
                if (seen[q] < seen_end[q] && job->seen_indices[seen[q]] == id) continue;
                push(heap, &size[q], k, (entry_t){row[lane], id});
            }
        }
    }
    for (int q = 0; q < n; q++) {
        entry_t *heap = heaps + q * k;
        int32_t *ids = job->out_ids + (first + q) * k;
        float *best = job->out_scores + (first + q) * k;
        for (int64_t at = size[q]; at < k; at++) {
            ids[at] = -1;
            best[at] = -INFINITY;
        }
        for (int64_t left = size[q]; left > 0; left--) {
            ids[left - 1] = heap[0].id;
            best[left - 1] = heap[0].score;
            heap[0] = heap[left - 1];
            if (left > 1) sift_down(heap, left - 1, 0);
        }
    }
}

int32_t reclm_topk_f32(int64_t n_queries, int64_t n_candidates, int64_t dim, int64_t k,
                       const float *queries, const float *items, const float *bias,
                       const int32_t *candidates, const int64_t *seen_indptr,
                       const int32_t *seen_indices, int32_t *out_ids, float *out_scores,
                       int32_t n_threads)
{
    if (n_queries < 0 || n_candidates < 0 || dim < 0 || k < 1 || n_threads < 1) return RECLM_ERR_SIZE;
    const int64_t n_padded = (n_candidates + PANEL - 1) / PANEL * PANEL;
    /* +1 keeps the sizes above zero; padding lanes stay zero and are never read as candidates. */
    float *panels = calloc((size_t)(n_padded * dim + 1), sizeof *panels);
    float *biases = calloc((size_t)(n_padded + 1), sizeof *biases);
    if (!panels || !biases) {
        free(panels);
        free(biases);
        return RECLM_ERR_MEMORY;
    }
    for (int64_t c = 0; c < n_candidates; c++) {
        const float *item = items + (int64_t)candidates[c] * dim;
        float *panel = panels + c / PANEL * PANEL * dim + c % PANEL;
        for (int64_t d = 0; d < dim; d++) panel[d * PANEL] = item[d];
        if (bias) biases[c] = bias[candidates[c]];
    }
    const job_t job = {n_queries, n_candidates, dim,     k,          queries, panels, biases,
                       candidates, seen_indptr, seen_indices, out_ids, out_scores};
    const int64_t n_tiles = (n_queries + TILE - 1) / TILE;
    int failed = 0;
    const int worth_it = n_queries * n_candidates * (dim + 1) > SMALL_WORK;
#pragma omp parallel num_threads(n_threads) if (worth_it)
    {
        float *packed = malloc((size_t)(dim * TILE + 1) * sizeof *packed);
        entry_t *heaps = malloc((size_t)(TILE * k) * sizeof *heaps);
        if (!packed || !heaps) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
#pragma omp for schedule(dynamic, 8)
            for (int64_t tile = 0; tile < n_tiles; tile++) topk_tile(&job, tile * TILE, packed, heaps);
        }
        free(packed);
        free(heaps);
    }
    free(panels);
    free(biases);
    return failed ? RECLM_ERR_MEMORY : RECLM_OK;
}
