/* Rounding of rows to small integers, and the norms of rows. */
#ifndef RECLM_QUANTIZE_H
#define RECLM_QUANTIZE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Rows whose largest coordinate is at most half of this become zeros. */
#define QUANTIZE_TO_ZERO 1e-28f

/* Rounds a row to -127 .. 127, half away downwards; returns the scale: value = scale * integer. */
static inline float quantize(const float *restrict row, int64_t dim, int8_t *restrict out)
{
    uint32_t largest_bits = 0;
    for (int64_t d = 0; d < dim; d++) {
        uint32_t bits;
        memcpy(&bits, row + d, sizeof bits);
        bits &= 0x7fffffffu; /* of positive floats, the greater has the greater bits */
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    float largest;
    memcpy(&largest, &largest_bits, sizeof largest);
    const float scale = largest / 127.0f;
    /* The reciprocal could overflow. */
    if (scale <= QUANTIZE_TO_ZERO / 254) {
        memset(out, 0, (size_t)dim);
        return 0.0f;
    }
    const float inverse = 1.0f / scale;
    for (int64_t d = 0; d < dim; d++) out[d] = (int8_t)((int32_t)(row[d] * inverse + 128.5f) - 128);
    return scale;
}

/* Groups of `group` small integers into words `lanes` apart: four unsigned bytes, `shift` added, or two of 16 bits. */
static inline void interleave(const int8_t *row, int64_t n_groups, int group, int shift, int64_t lanes, uint32_t *out)
{
    for (int64_t g = 0; g < n_groups; g++) {
        if (group == 4) {
            uint32_t word;
            memcpy(&word, row + 4 * g, sizeof word);
            out[g * lanes] = shift ? word ^ 0x80808080u : word;
        } else {
            out[g * lanes] = (uint32_t)(uint16_t)row[2 * g] | (uint32_t)(uint16_t)row[2 * g + 1] << 16;
        }
    }
}

static inline double norm(const float *row, int64_t dim)
{
    double squares[8] = {0}, total = 0.0;
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8)
        for (int at = 0; at < 8; at++) squares[at] += (double)row[d + at] * row[d + at];
    for (; d < dim; d++) squares[0] += (double)row[d] * row[d];
    for (int at = 0; at < 8; at++) total += squares[at];
    return sqrt(total);
}

#endif
