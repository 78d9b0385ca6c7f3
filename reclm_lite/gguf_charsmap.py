"""The character map of a Unigram ("t5") vocabulary in a GGUF file: every way through it must stay within it.

llama.cpp walks the map for every text and ends the process where an index lies outside, which may happen for one letter
only; so a trial with a few texts proves little. Here all states that any text can reach are visited, each once.

Format (SentencePiece's precompiled_charsmap, as llama.cpp's llama-vocab.cpp reads it): 4 bytes with the size of the
array that follows, an array of 32-bit units (a double array whose edges are XORs of bytes), then the replacement texts,
each ended by NUL. A unit has its byte in bits 0 to 7, whether a text may end here in bit 8, and its base in bits 9 to
30; after an end the unit at the base has, with bit 31, where the replacement begins.
"""

import struct

MAX_BYTES = 4 << 20  # that of T5 and XLM-RoBERTa has 240 KB
MAX_REPLACEMENT_BYTES = 1024  # of one text; Unicode's longest compatibility form has 33. A short text must stay short.
_STATES_AT_ONCE = 4096


def charsmap_problem(blob: bytes) -> str | None:
    """What is wrong with a character map, in a few words; None for a sound one and an empty one."""
    import numpy as np

    if not blob:
        return None
    if len(blob) > MAX_BYTES:
        return f"{len(blob):,} bytes, more than {MAX_BYTES:,}"
    if len(blob) < 4:
        return f"{len(blob)} bytes"
    (n_bytes,) = struct.unpack_from("<I", blob)
    if n_bytes % 4 or not n_bytes or n_bytes + 4 >= len(blob):
        return f"an array of {n_bytes:,} of {len(blob):,} bytes"
    units = np.frombuffer(blob, "<u4", n_bytes // 4, 4).astype(np.int64)
    texts = np.frombuffer(blob, np.uint8, offset=4 + n_bytes)
    if texts[-1]:
        return "a last replacement without end"
    bases = (units >> 10) << ((units & (1 << 9)) >> 6)
    labels = units & (1 << 31 | 0xFF)
    letters = np.arange(1, 256)
    seen = np.zeros(len(units), bool)
    begins: list[np.ndarray] = []
    todo = bases[:1]
    while len(todo):
        states, todo = todo[:_STATES_AT_ONCE], todo[_STATES_AT_ONCE:]
        places = states[:, None] ^ letters
        if places.max() >= len(units):
            return f"a way to unit {places.max():,} of {len(units):,}"
        found = np.unique(places[labels[places] == letters])
        found = found[~seen[found]]
        seen[found] = True
        following = found ^ bases[found]
        ends = following[(units[found] >> 8 & 1).astype(bool)]
        if len(ends) and ends.max() >= len(units):
            return f"a way to unit {ends.max():,} of {len(units):,}"
        begins.append(units[ends] & 0x7FFFFFFF)
        todo = np.concatenate([todo, following])
    begin = np.unique(np.concatenate(begins))
    if not len(begin):
        return None
    if begin[-1] >= len(texts):
        return f"a replacement from byte {begin[-1]:,} of {len(texts):,} on"
    nuls = np.flatnonzero(texts == 0)
    longest = int((nuls[np.searchsorted(nuls, begin)] - begin).max())
    return f"a replacement of {longest:,} bytes" if longest > MAX_REPLACEMENT_BYTES else None
