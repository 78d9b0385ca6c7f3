/* The k best of a stream: in a heap whose root is the worst kept, or in a list that is cut from time to time.
 *
 * An entry is a 64-bit key whose order is the ranking: the score's bits, made monotonic, above the complement of the
 * id, so that ties go to the lower id. A single branchless comparison selects a child; comparing scores and ids
 * would be mispredicted at every level. */
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

/* Sifts `moved` down from position `at` of a heap. */
static inline void sift_down(entry_t *heap, int64_t size, int64_t at, entry_t moved)
{
    int64_t child = 2 * at + 1;
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
        if (entry > heap[0]) sift_down(heap, k, 0, entry);
        return;
    }
    int64_t at = (*size)++;
    while (at > 0 && entry < heap[(at - 1) / 2]) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = entry;
}

/* Moves the k greatest of n > k distinct entries to the front, unordered; returns the smallest of them.
 * Quickselect with branchless swaps, since the side of an element is unpredictable. */
static inline entry_t keep_best(entry_t *entries, int64_t n, int64_t k)
{
    for (int64_t low = 0, high = n; high - low > 1;) {
        const int64_t middle = low + (high - low) / 2;
        const entry_t first = entries[low], last = entries[high - 1], inner = entries[middle];
        const int64_t median = (first < inner) == (inner < last) ? middle : (first < inner) == (last < first) ? low : high - 1;
        const entry_t pivot = entries[median];
        entries[median] = last;
        int64_t greater = low;
        for (int64_t at = low; at < high - 1; at++) {
            const entry_t entry = entries[at];
            entries[at] = entries[greater];
            entries[greater] = entry;
            greater += entry > pivot;
        }
        entries[high - 1] = entries[greater];
        entries[greater] = pivot;
        if (greater == k - 1 || greater == k) break;
        if (greater > k) high = greater;
        else low = greater + 1;
    }
    entry_t least = entries[0];
    for (int64_t at = 1; at < k; at++) least = entries[at] < least ? entries[at] : least;
    return least;
}

/* Empties a heap into a row of k, best first; unused positions get id -1, score -inf. */
static inline void drain(entry_t *heap, int64_t size, int64_t k, int32_t *ids, float *scores)
{
    for (int64_t at = size; at < k; at++) {
        ids[at] = -1;
        scores[at] = -INFINITY;
    }
    for (int64_t left = size; left > 0; left--) {
        ids[left - 1] = entry_id(heap[0]);
        scores[left - 1] = entry_score(heap[0]);
        if (left > 1) sift_down(heap, left - 1, 0, heap[left - 1]);
    }
}

/* Writes the k best of n unordered entries to a row as above. */
static inline void rank(entry_t *entries, int64_t n, int64_t k, int32_t *ids, float *scores)
{
    if (n > k) keep_best(entries, n, k);
    const int64_t left = n < k ? n : k;
    for (int64_t at = left / 2; at-- > 0;) sift_down(entries, left, at, entries[at]);
    drain(entries, left, k, ids, scores);
}

#endif
