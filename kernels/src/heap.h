/* The k best of a stream: a heap whose root is the worst kept. */
#ifndef RECLM_HEAP_H
#define RECLM_HEAP_H

#include <math.h>
#include <stdint.h>

typedef struct {
    float score;
    int32_t id;
} entry_t;

/* Does `a` rank below `b`? Equal scores go to the lower id. */
static inline int worse(entry_t a, entry_t b)
{
    return a.score < b.score || (a.score == b.score && a.id > b.id);
}

static inline void sift_down(entry_t *heap, int64_t size, int64_t at)
{
    const entry_t moved = heap[at];
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && worse(heap[child + 1], heap[child])) child++;
        if (!worse(heap[child], moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/* Keeps `entry` if it is among the k best so far. */
static inline void push(entry_t *heap, int64_t *size, int64_t k, entry_t entry)
{
    if (*size == k) {
        if (!worse(heap[0], entry)) return;
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

/* Empties the heap into a row of k, best first; places left over get id -1, score -inf. */
static inline void drain(entry_t *heap, int64_t size, int64_t k, int32_t *ids, float *scores)
{
    for (int64_t at = size; at < k; at++) {
        ids[at] = -1;
        scores[at] = -INFINITY;
    }
    for (int64_t left = size; left > 0; left--) {
        ids[left - 1] = heap[0].id;
        scores[left - 1] = heap[0].score;
        heap[0] = heap[left - 1];
        if (left > 1) sift_down(heap, left - 1, 0);
    }
}

#endif
