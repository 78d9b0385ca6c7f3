"""The loops of decoding against NumPy, and by hand."""

import numpy as np
import pytest

from reclm_lite.kernels.decoding import best_two, pass_quickly


@pytest.mark.parametrize("n_columns", [2, 3, 17, 4096])
def test_best_two_are_those_of_a_sort(n_columns):
    rng = np.random.default_rng(n_columns)
    logits = rng.normal(size=(40, n_columns)).astype(np.float32)
    logits[::3] = np.round(logits[::3])  # ties
    best, gap = np.zeros(64, np.int64), np.zeros(64, np.float32)
    best_two(logits, best, gap)
    assert (best[:40] == logits.argmax(axis=1)).all()
    ordered = np.sort(logits, axis=1)
    assert (gap[:40] == ordered[:, -1] - ordered[:, -2]).all()
    assert not best[40:].any() and not gap[40:].any()


def test_best_two_of_the_largest_and_the_least_numbers():
    logits = np.array([[-np.inf, -1.0, -np.inf], [1e38, -1e38, 1e38], [0.0, -0.0, -5.0]], np.float32)
    best, gap = np.zeros(3, np.int64), np.zeros(3, np.float32)
    best_two(logits, best, gap)
    assert best.tolist() == [1, 0, 0] and gap.tolist() == [np.inf, 0.0, 0.0]


def test_tokens_pass_while_the_phrase_has_room_and_take_it():
    is_plain, n_chars, n_spaces = (
        np.array([1, 1, 0], np.int8),
        np.array([5, 6, 1], np.int32),
        np.array([1, 0, 0], np.int32),
    )
    chars_left, spaces_left = np.array([10, 11, 5, 5], np.int32), np.array([1, 2, 0, 2], np.int32)
    is_quick = np.full(4, 9, np.int8)
    tokens, slots = np.array([0, 1, 0, 2]), np.array([0, 1, 2, 3])
    assert pass_quickly(tokens, slots, is_plain, n_chars, n_spaces, chars_left, spaces_left, is_quick) == 2
    assert is_quick.tolist() == [1, 1, 0, 0]  # the third has no room for a space, the fourth is no plain token
    assert chars_left.tolist() == [5, 5, 5, 5] and spaces_left.tolist() == [0, 2, 0, 2]
    assert pass_quickly(tokens[:1], slots[:1], is_plain, n_chars, n_spaces, chars_left, spaces_left, is_quick) == 1
