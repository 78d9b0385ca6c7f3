/* The k best candidates of each query, fused with the product that scores them.
 *
 * Items are packed once into panels, dimension-major, shared by all threads. A task is a few tiles of queries;
 * its tiles pass over one block of panels after another, so that a block stays in the second-level cache. Each
 * query keeps a list of its best, and a panel's scores are inspected only if one lies above the worst kept.
 * With int8 the panels hold quantized items, and the kept candidates are scored again in float32.
 * With pruning, a panel is skipped when no query of the tile can reach its list by the bound
 * |query| * |item| + bias  (Cauchy-Schwarz; LEMP, Teflioudi et al., SIGMOD 2015, uses it the same way). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../include/reclm_kernels.h"
#include "heap.h"
#include "isa.h"
#include "quantize.h"
#if RECLM_X86
#include <immintrin.h>
#endif

/* With fewer multiplications, waking the threads costs more than it saves. */
#define SMALL_WORK 2000000
/* Bytes of a block of panels, which stays in the second-level cache while tiles pass over it. */
#define BLOCK_BYTES (256 << 10)
/* Bytes for the tiles of a task, in addition to the block. */
#define TASK_BYTES (128 << 10)
#define MAX_TASK_TILES 8
enum { MAX_TILE = 12, MAX_PANEL = 32, AGAIN = 8 };

typedef struct {
    int tile, panel, group;
    uint32_t (*score_f32)(int64_t dim, int64_t relu_dim, const float *queries, const float *panel, const float *bias,
                          const float *thresholds, float *scores, uint32_t *hits);
    void (*score_again)(int64_t dim, const float *query, const float *const *rows, const float *bias, float *scores);
    uint32_t (*score_int8)(int64_t n_groups, const int32_t *queries, const int32_t *offsets, const float *scales,
                           const int32_t *panel, const float *item_scales, const float *bias, const float *thresholds,
                           float *scores, uint32_t *hits);
} kernel_t;

#define TEMPLATE "topk_tile.h"
#include "each_isa.h"

/* The largest among some items. */
typedef struct {
    double norm, scale, bias;
} sizes_t;

typedef struct {
    kernel_t kernel;
    int64_t n_queries, n_candidates, dim, relu_dim, k;
    int64_t n_kept; /* candidates that a query keeps: k, or more with int8, to be scored again */
    int64_t room;   /* in its list, which is cut to n_kept when full */
    int64_t n_groups; /* of small integers in a row; 0: float32 */
    int ascending, prune;
    const float *queries, *items, *bias;
    const int32_t *candidates;
    const int64_t *seen_indptr;
    const int32_t *seen_indices;
    int32_t *out_ids;
    float *out_scores;
    uint8_t *out_unsure;
    int64_t n_panels, n_tiles, n_tasks, task_tiles;
    /* (n_panels, rows, PANEL) float32 or groups of small integers; (n_panels, PANEL) the others. */
    void *panels;
    float *biases, *item_scales;
    sizes_t *sizes, largest; /* (n_panels,) and of all items */
    /* (n_panels,): an item of panel p scores query q at most  reach_q * reach[p] + rest_q + rest[p]. */
    double *reach, *rest;
} job_t;

/* One query of a task. */
typedef struct {
    int64_t size;      /* of its list */
    int was_cut;       /* has its list been cut to the n_kept best? */
    int64_t seen, end; /* its masked items not yet passed */
    double reach, rest;
} query_t;

typedef struct {
    int8_t *small;    /* (4 * n_groups,): a row on its way into a panel or tile; zeros beyond its dim */
    float *packed;    /* (task_tiles, rows, TILE), as the panels */
    int32_t *offsets; /* (task_tiles, TILE), as the following */
    float *scales, *thresholds;
    query_t *queries;
    entry_t *lists;    /* (task_tiles, TILE, room) */
    entry_t *again;    /* (n_kept,) */
} scratch_t;

static int64_t row_words(const job_t *job)
{
    return job->n_groups ? job->n_groups : job->dim + job->relu_dim;
}

/* Room for the roundings of a score's float32 sum, relative to the sizes of its terms. */
static double slack(const job_t *job)
{
    return (double)(job->dim + job->relu_dim + 16) * 0x1p-22;
}

static void bounds(const job_t *job, const float *row, double bias, double *reach, double *rest)
{
    double positive = 0.0;
    for (int64_t h = job->dim; h < job->dim + job->relu_dim; h++) positive += row[h] > 0.0f ? row[h] : 0.0f;
    *reach = norm(row, job->dim) * (1.0 + slack(job));
    *rest = bias + positive + (fabs(bias) + positive) * slack(job) + 0x1p-120;
}

static void pack_panel(const job_t *job, int8_t *small, int64_t p)
{
    const int panel = job->kernel.panel;
    const int64_t width = job->dim + job->relu_dim, words = row_words(job), start = p * panel;
    const int filled = job->n_candidates - start < panel ? (int)(job->n_candidates - start) : panel;
    float *biases = job->biases + start, *out = (float *)job->panels + p * words * panel;
    const float *rows[MAX_PANEL];
    if (filled < panel) memset(out, 0, (size_t)(words * panel) * sizeof *out);
    for (int lane = 0; lane < panel; lane++) {
        /* A lane without an item is never above any threshold. */
        biases[lane] = -INFINITY;
        if (lane >= filled) continue;
        const int64_t id = job->candidates[start + lane];
        rows[lane] = job->items + id * width;
        biases[lane] = job->bias ? job->bias[id] : 0.0f;
    }
    if (job->n_groups) {
        memset(job->item_scales + start, 0, (size_t)panel * sizeof(float));
        for (int lane = 0; lane < filled; lane++) {
            job->item_scales[start + lane] = quantize(rows[lane], width, small);
            interleave(small, words, job->kernel.group, 1, panel, (uint32_t *)out + lane);
        }
        sizes_t *sizes = job->sizes + p;
        *sizes = (sizes_t){0};
        for (int lane = 0; lane < filled; lane++) {
            sizes->norm = fmax(sizes->norm, norm(rows[lane], width));
            sizes->scale = fmax(sizes->scale, job->item_scales[start + lane]);
            sizes->bias = fmax(sizes->bias, fabs(biases[lane]));
        }
    } else if (filled == panel) {
        for (int64_t d = 0; d < width; d++)
            for (int lane = 0; lane < panel; lane++) out[d * panel + lane] = rows[lane][d];
    } else {
        for (int64_t d = 0; d < width; d++)
            for (int lane = 0; lane < filled; lane++) out[d * panel + lane] = rows[lane][d];
    }
    if (!job->prune) return;
    job->reach[p] = job->rest[p] = -INFINITY;
    for (int lane = 0; lane < filled; lane++) {
        double reach, rest;
        bounds(job, rows[lane], biases[lane], &reach, &rest);
        job->reach[p] = fmax(job->reach[p], reach);
        job->rest[p] = fmax(job->rest[p], rest);
    }
}

/* Fills what the tile at place `at` of a task needs to start: queries from `first` on. */
static void start_tile(const job_t *job, const scratch_t *scratch, int64_t at, int64_t first)
{
    const int tile = job->kernel.tile;
    const int64_t width = job->dim + job->relu_dim, words = row_words(job);
    float *packed = scratch->packed + at * words * tile;
    memset(packed, 0, (size_t)(words * tile) * sizeof *packed);
    for (int q = 0; q < tile; q++) {
        const int64_t slot = at * tile + q;
        query_t *query = scratch->queries + slot;
        *query = (query_t){0};
        scratch->offsets[slot] = 0;
        scratch->scales[slot] = 0.0f;
        /* Nothing is above the threshold of a place without a query. */
        scratch->thresholds[slot] = INFINITY;
        query->reach = query->rest = -INFINITY;
        if (first + q >= job->n_queries) continue;
        scratch->thresholds[slot] = -INFINITY;
        const float *row = job->queries + (first + q) * width;
        if (job->n_groups) {
            scratch->scales[slot] = quantize(row, width, scratch->small);
            interleave(scratch->small, words, job->kernel.group, 0, tile, (uint32_t *)packed + q);
            if (job->kernel.group == 4)
                for (int64_t d = 0; d < width; d++) scratch->offsets[slot] -= 128 * scratch->small[d];
        } else {
            for (int64_t d = 0; d < width; d++) packed[d * tile + q] = row[d];
        }
        if (job->prune) bounds(job, row, 0.0, &query->reach, &query->rest);
        if (job->seen_indptr) {
            query->seen = job->seen_indptr[first + q];
            query->end = job->seen_indptr[first + q + 1];
        }
    }
}

static int out_of_reach(const job_t *job, const scratch_t *scratch, int64_t at, int64_t p)
{
    for (int64_t slot = at * job->kernel.tile; slot < (at + 1) * job->kernel.tile; slot++) {
        const query_t *query = scratch->queries + slot;
        if (query->reach < 0.0) continue;
        /* Written so that NaN, from vectors whose norm overflows, is within reach. */
        if (!(query->reach * job->reach[p] + query->rest + job->rest[p] < scratch->thresholds[slot])) return 0;
    }
    return 1;
}

static int is_seen(const job_t *job, query_t *query, int32_t id)
{
    const int32_t *seen = job->seen_indices;
    if (query->seen == query->end) return 0;
    if (job->ascending) {
        while (query->seen < query->end && seen[query->seen] < id) query->seen++;
        return query->seen < query->end && seen[query->seen] == id;
    }
    /* Halves without a branch, since each way is as likely as the other. */
    const int32_t *from = seen + query->seen;
    int64_t left = query->end - query->seen;
    for (; left > 1; left -= left / 2) from += (left / 2) & -(int64_t)(from[left / 2 - 1] < id);
    return *from == id;
}

/* Adds to a query's list the lanes of a panel that lie above its threshold. */
static void offer(const job_t *job, const scratch_t *scratch, int64_t slot, int64_t start, uint32_t hits, const float *scores)
{
    query_t *query = scratch->queries + slot;
    entry_t *list = scratch->lists + slot * job->room;
    for (; hits; hits &= hits - 1) {
        const int lane = __builtin_ctz(hits);
        if (!(scores[lane] > scratch->thresholds[slot])) continue;
        const int32_t id = job->candidates[start + lane];
        if (is_seen(job, query, id)) continue;
        list[query->size++] = make_entry(scores[lane], id);
        if (query->size < job->room) continue;
        const float worst = entry_score(keep_best(list, query->size, job->n_kept));
        query->size = job->n_kept;
        query->was_cut = 1;
        /* Out of order, an equal score may still win by its lower id. */
        scratch->thresholds[slot] = job->ascending ? worst : nextafterf(worst, -INFINITY);
    }
}

/* Scores in float32 what int8 has kept for a query; returns how many can be ranked. */
static int64_t look_again(const job_t *job, const float *query, const entry_t *kept, int64_t n_kept, entry_t *again)
{
    int64_t size = 0;
    for (int64_t start = 0; start < n_kept; start += AGAIN) {
        const int filled = n_kept - start < AGAIN ? (int)(n_kept - start) : AGAIN;
        const float *rows[AGAIN];
        float bias[AGAIN], scores[AGAIN];
        for (int64_t at = start + AGAIN; at < n_kept && at < start + 3 * AGAIN; at++)
            for (int64_t d = 0; d < job->dim; d += 16) __builtin_prefetch(job->items + entry_id(kept[at]) * job->dim + d);
        for (int at = 0; at < AGAIN; at++) {
            const int64_t id = entry_id(kept[start + (at < filled ? at : 0)]);
            rows[at] = job->items + id * job->dim;
            bias[at] = job->bias ? job->bias[id] : 0.0f;
        }
        job->kernel.score_again(job->dim, query, rows, bias, scores);
        for (int at = 0; at < filled; at++)
            if (scores[at] > -INFINITY) again[size++] = make_entry(scores[at], entry_id(kept[start + at]));
    }
    return size;
}

/* Whether an item that int8 has not kept may belong to the k best, of which the worst scores `worst`.
 * Rounding moves the coordinates of a row by up to scale / 2, and by scale / sqrt(12) in the mean square. A score is
 * off by both rows' shares, at most  (scale_q |item| + scale_i |query|) sqrt(dim) / 2 + scale_q scale_i dim / 4
 * (Cauchy-Schwarz), which serves where dimensions are few; beyond, roundings are taken for independent, and four
 * standard deviations of their sum. */
static int is_unsure(const job_t *job, int64_t user, float scale, int left_out, float worst_kept, float worst)
{
    const double query_norm = norm(job->queries + user * job->dim, job->dim), dim = (double)job->dim;
    /* A rounded score may overflow where the score itself does not. */
    if (!(query_norm * job->largest.norm + job->largest.bias < 1e37)) return 1;
    /* So may its integers times the item's scale, before a small scale of the query brings it back. */
    if (!(127.0 * 127.0 * dim * job->largest.scale < 1e37)) return 1;
    if (!left_out) return 0;
    const double query_scale = fmax(scale, QUANTIZE_TO_ZERO), item_scale = fmax(job->largest.scale, QUANTIZE_TO_ZERO);
    const double of_query = query_scale * job->largest.norm, of_item = item_scale * query_norm;
    const double error = dim <= 16.0 ? 0.5 * sqrt(dim) * (of_query + of_item) + 0.25 * dim * query_scale * item_scale
                                     : 4.0 * sqrt((of_query * of_query + of_item * of_item) / 12.0);
    const double roundings = slack(job) * (query_norm * job->largest.norm + job->largest.bias) + 0x1p-120;
    return !(worst - worst_kept > 1.001 * error + roundings);
}

/* Writes the result of one query, after its list has seen all candidates. */
static void finish_query(const job_t *job, const scratch_t *scratch, int64_t slot, int64_t user)
{
    int32_t *ids = job->out_ids + user * job->k;
    float *best = job->out_scores + user * job->k;
    entry_t *list = scratch->lists + slot * job->room;
    query_t *query = scratch->queries + slot;
    if (!job->n_groups) {
        rank(list, query->size, job->k, ids, best);
        return;
    }
    float worst_kept = -INFINITY;
    if (query->size > job->n_kept || query->was_cut) {
        worst_kept = entry_score(keep_best(list, query->size, job->n_kept));
        query->was_cut = 1;
        query->size = job->n_kept;
    }
    const int64_t size = look_again(job, job->queries + user * job->dim, list, query->size, scratch->again);
    rank(scratch->again, size, job->k, ids, best);
    job->out_unsure[user] =
        (uint8_t)is_unsure(job, user, scratch->scales[slot], query->was_cut, worst_kept, best[job->k - 1]);
}

static void run_task(const job_t *job, const scratch_t *scratch, int64_t task)
{
    const kernel_t *kernel = &job->kernel;
    const int tile = kernel->tile, panel = kernel->panel;
    const int64_t first_tile = task * job->n_tiles / job->n_tasks;
    const int64_t n_tiles = (task + 1) * job->n_tiles / job->n_tasks - first_tile;
    const int64_t words = row_words(job), panel_bytes = (words + 1) * panel * (int64_t)sizeof(float);
    const int64_t block = BLOCK_BYTES / panel_bytes > 1 ? BLOCK_BYTES / panel_bytes : 1;
    float scores[MAX_TILE * MAX_PANEL];
    uint32_t hits[MAX_TILE];

    for (int64_t at = 0; at < n_tiles; at++) start_tile(job, scratch, at, (first_tile + at) * tile);
    for (int64_t from = 0; from < job->n_panels; from += block) {
        const int64_t to = from + block < job->n_panels ? from + block : job->n_panels;
        for (int64_t at = 0; at < n_tiles; at++) {
            const float *thresholds = scratch->thresholds + at * tile;
            for (int64_t p = from; p < to; p++) {
                if (job->prune && out_of_reach(job, scratch, at, p)) continue;
                const float *bias = job->biases + p * panel;
                uint32_t hit_queries =
                    job->n_groups
                        ? kernel->score_int8(words, (int32_t *)scratch->packed + at * words * tile, scratch->offsets + at * tile,
                                             scratch->scales + at * tile, (int32_t *)job->panels + p * words * panel,
                                             job->item_scales + p * panel, bias, thresholds, scores, hits)
                        : kernel->score_f32(job->dim, job->relu_dim, scratch->packed + at * words * tile,
                                            (float *)job->panels + p * words * panel, bias, thresholds, scores, hits);
                for (; hit_queries; hit_queries &= hit_queries - 1) {
                    const int q = __builtin_ctz(hit_queries);
                    offer(job, scratch, at * tile + q, p * panel, hits[q], scores + q * panel);
                }
            }
        }
    }
    const int64_t first = first_tile * tile;
    for (int64_t slot = 0; slot < n_tiles * tile && first + slot < job->n_queries; slot++)
        finish_query(job, scratch, slot, first + slot);
}

/* Allocates `bytes`, aligned to a cache line; NULL if that fails. */
static void *lines(int64_t bytes)
{
    return aligned_alloc(64, ((size_t)bytes / 64 + 1) * 64);
}

static int take_scratch(const job_t *job, scratch_t *scratch)
{
    const int64_t slots = job->task_tiles * job->kernel.tile;
    scratch->small = lines(4 * job->n_groups);
    scratch->packed = lines(slots * row_words(job) * (int64_t)sizeof(float));
    scratch->offsets = lines(slots * (int64_t)sizeof(int32_t));
    scratch->scales = lines(slots * (int64_t)sizeof(float));
    scratch->thresholds = lines(slots * (int64_t)sizeof(float));
    scratch->queries = lines(slots * (int64_t)sizeof(query_t));
    scratch->lists = lines(slots * job->room * (int64_t)sizeof(entry_t));
    scratch->again = lines(job->n_groups ? job->n_kept * (int64_t)sizeof(entry_t) : 0);
    if (scratch->small) memset(scratch->small, 0, (size_t)(4 * job->n_groups));
    return scratch->small && scratch->packed && scratch->offsets && scratch->scales && scratch->thresholds && scratch->queries &&
           scratch->lists && scratch->again;
}

static void give_scratch(scratch_t *scratch)
{
    free(scratch->small);
    free(scratch->packed);
    free(scratch->offsets);
    free(scratch->scales);
    free(scratch->thresholds);
    free(scratch->queries);
    free(scratch->lists);
    free(scratch->again);
}

/* Distributes tiles over tasks: few per task, so that its lists stay in the cache, and equally many tasks per thread. */
static void plan_tasks(job_t *job, int32_t n_threads)
{
    const int64_t tile = job->kernel.tile;
    const int64_t tile_bytes = tile * (row_words(job) * (int64_t)sizeof(float) + job->room * (int64_t)sizeof(entry_t));
    int64_t most = TASK_BYTES / tile_bytes;
    most = most < 1 ? 1 : most > MAX_TASK_TILES ? MAX_TASK_TILES : most;
    job->n_tiles = (job->n_queries + tile - 1) / tile;
    job->n_tasks = (job->n_tiles + most - 1) / most;
    job->n_tasks = (job->n_tasks + n_threads - 1) / n_threads * n_threads;
    if (job->n_tasks > job->n_tiles) job->n_tasks = job->n_tiles;
    job->task_tiles = job->n_tasks ? (job->n_tiles + job->n_tasks - 1) / job->n_tasks : 0;
}

int32_t reclm_topk(int64_t n_queries, int64_t n_candidates, int64_t dim, int64_t relu_dim, int64_t k, int64_t n_kept,
                   int32_t prune, const float *queries, const float *items, const float *bias,
                   const int32_t *candidates, const int64_t *seen_indptr, const int32_t *seen_indices, int32_t *out_ids,
                   float *out_scores, uint8_t *out_unsure, int32_t n_threads)
{
    if (n_queries < 0 || n_candidates < 0 || dim < 0 || relu_dim < 0 || k < 1 || n_threads < 1) return RECLM_ERR_SIZE;
    if (n_kept && (n_kept < k || relu_dim || dim > RECLM_TOPK_INT8_MAX_DIM)) return RECLM_ERR_SIZE;
    job_t job = {
        .kernel = ISA_DISPATCH(kernel),
        .n_queries = n_queries, .n_candidates = n_candidates, .dim = dim, .relu_dim = relu_dim, .k = k,
        .n_kept = k, .ascending = !prune, .prune = prune, .queries = queries, .items = items,
        .bias = bias, .candidates = candidates, .seen_indptr = seen_indptr, .seen_indices = seen_indices,
        .out_ids = out_ids, .out_scores = out_scores, .out_unsure = out_unsure,
    };
    const int panel = job.kernel.panel;
    /* With dim 0 there is nothing to round. */
    if (n_kept && dim) {
        job.n_kept = n_kept;
        job.n_groups = (dim + job.kernel.group - 1) / job.kernel.group;
    }
    job.room = 2 * job.n_kept + 48;
    job.n_panels = (n_candidates + panel - 1) / panel;
    plan_tasks(&job, n_threads);
    job.panels = lines(job.n_panels * panel * row_words(&job) * (int64_t)sizeof(float));
    job.biases = lines(job.n_panels * panel * (int64_t)sizeof(float));
    job.item_scales = lines(job.n_groups ? job.n_panels * panel * (int64_t)sizeof(float) : 0);
    job.sizes = lines(job.n_groups ? job.n_panels * (int64_t)sizeof(sizes_t) : 0);
    job.reach = lines(prune ? job.n_panels * (int64_t)sizeof(double) : 0);
    job.rest = lines(prune ? job.n_panels * (int64_t)sizeof(double) : 0);
    int failed = !job.panels || !job.biases || !job.item_scales || !job.sizes || !job.reach || !job.rest;
    const int worth_it = (double)n_queries * (double)n_candidates * (double)(dim + relu_dim + 1) > SMALL_WORK;
#pragma omp parallel num_threads(n_threads) if (worth_it && !failed)
    {
        scratch_t scratch;
        if (!take_scratch(&job, &scratch)) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
#pragma omp for schedule(static)
            for (int64_t p = 0; p < job.n_panels; p++) pack_panel(&job, scratch.small, p);
            if (job.n_groups) {
#pragma omp single
                for (int64_t p = 0; p < job.n_panels; p++) {
                    job.largest.norm = fmax(job.largest.norm, job.sizes[p].norm);
                    job.largest.scale = fmax(job.largest.scale, job.sizes[p].scale);
                    job.largest.bias = fmax(job.largest.bias, job.sizes[p].bias);
                }
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < job.n_tasks; task++) run_task(&job, &scratch, task);
        }
        give_scratch(&scratch);
    }
    free(job.panels);
    free(job.biases);
    free(job.item_scales);
    free(job.sizes);
    free(job.reach);
    free(job.rest);
    return failed ? RECLM_ERR_MEMORY : RECLM_OK;
}
