/* The k best of a stream: a heap whose root is the worst kept.
 *
 * An entry is one 64-bit key whose order is the ranking: the score's bits, made monotonic, above the complement
 * of the id, so that equal scores go to the lower id. One comparison without a branch then picks a child, where
 * comparing scores and ids would be mispredicted at every level. */
#ifndef RECLM_HEAP_H
#define RECLM_HEAP_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint64_t entry_t;

/* The greater, the better. -0 and 0 are equal; `score` is not NaN. */
static inline entry_t make_entry(float score, int32_t id)
{
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~id;
}

static inline int32_t entry_id(entry_t entry)
{
    return (int32_t)~(uint32_t)entry;
}

static inline float entry_score(entry_t entry)
{
    uint32_t bits = (uint32_t)(entry >> 32);
    float score;
    bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
    memcpy(&score, &bits, sizeof score);
    return score;
}

static inline void sift_down(entry_t *heap, int64_t size, entry_t moved)
{
    int64_t at = 0, child = 1;
    for (; child + 1 < size; child = 2 * at + 1) {
        child += heap[child + 1] < heap[child];
        if (heap[child] >= moved) break;
        heap[at] = heap[child];
        at = child;
    }
    if (child + 1 == size && heap[child] < moved) {
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

/* Keeps `entry` if it is among the k best so far. */
static inline void push(entry_t *heap, int64_t *size, int64_t k, entry_t entry)
{
    if (*size == k) {
        if (entry > heap[0]) sift_down(heap, k, entry);
        return;
    }
    int64_t at = (*size)++;
    while (at > 0 && entry < heap[(at - 1) / 2]) {
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
        ids[left - 1] = entry_id(heap[0]);
        scores[left - 1] = entry_score(heap[0]);
        if (left > 1) sift_down(heap, left - 1, heap[left - 1]);
    }
}

#endif
