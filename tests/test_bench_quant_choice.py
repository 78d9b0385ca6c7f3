"""Intervals of `reclm bench quant`, and the file that is chosen by them."""

import numpy as np
import pytest

from reclm_lite.bench.quant_intervals import (
    MIN_UNITS,
    Z,
    paired,
    ratio,
    students_t,
    wilson,
)
from reclm_lite.bench.quant_results import (
    CHOSEN,
    LOSE_MORE,
    REFERENCE,
    TOO_SMALL,
    choose,
)


def test_wilsons_interval_is_that_of_the_textbook():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) is None


def test_a_ratio_over_prompts_weighs_positions_and_needs_enough_prompts():
    value, interval = ratio([1.0] * 20 + [6.0] * 20, [1] * 20 + [3] * 20)
    assert value == pytest.approx(140 / 80) and interval[0] < value < interval[1]
    assert ratio([2.0] * 40, [4] * 40) == (0.5, (0.5, 0.5))
    assert ratio([2.0] * (MIN_UNITS - 1), [4] * (MIN_UNITS - 1))[1] is None


def test_a_difference_between_seeds_alone_has_students_interval():
    reference = np.full((3, 50), 0.5)
    found = reference + np.array([[0.01], [0.02], [0.03]])
    result = paired(found, reference)
    half = students_t(3) * 0.01 / np.sqrt(3)
    assert result.difference == pytest.approx(0.02) and result.loss == pytest.approx(-0.04)
    assert result.interval == pytest.approx((0.02 - half, 0.02 + half))
    assert result.users_half == pytest.approx(0, abs=1e-12) and result.seeds_half == pytest.approx(2 * half)


def test_a_difference_between_users_alone_has_the_normal_interval():
    reference = np.full((2, 100), 0.5)
    found = reference + np.tile(np.where(np.arange(100) % 2, 0.1, -0.1), (2, 1))
    result = paired(found, reference)
    assert result.difference == pytest.approx(0)
    assert result.interval[1] == pytest.approx(Z * 0.1 * np.sqrt(100 / 99) / 10)


def test_equal_figures_lose_nothing_for_certain():
    same = np.random.default_rng(0).random((3, 60))
    result = paired(same, same)
    assert result.interval == result.loss_interval == (0.0, 0.0)


@pytest.mark.parametrize("shape", [(1, 100), (3, MIN_UNITS - 1)])
def test_one_seed_or_few_users_give_no_interval(shape):
    values = np.random.default_rng(0).random(shape)
    result = paired(values, values[::-1])
    assert result.interval is None is result.loss_interval and result.loss is not None


def test_no_relative_loss_where_the_reference_has_none_of_it():
    assert paired(np.ones((2, 40)), np.zeros((2, 40))).loss is None
    with pytest.raises(ValueError, match="the same users"):
        paired(np.ones((2, 40)), np.ones((2, 41)))


def test_the_interval_of_the_loss_holds_the_truth_as_often_as_it_says():
    rng, n_held, n_trials = np.random.default_rng(0), 0, 400
    for _ in range(n_trials):
        base = 0.3 + 0.1 * rng.standard_normal((1, 80))
        effect = 0.02 + 0.05 * rng.standard_normal((1, 80)) + 0.01 * rng.standard_normal((4, 1)) + 0.05 * rng.standard_normal((4, 80))
        low, high = paired(base - effect + np.zeros((4, 80)), base + np.zeros((4, 80))).loss_interval
        n_held += low <= 0.02 / 0.3 <= high
    assert 0.93 <= n_held / n_trials <= 0.995


# -- the choice ---------------------------------------------------------------------------


def row(name, size, loss=None, half=0.001, **more):
    interval = None if loss is None or half is None else (loss - half, loss + half)
    pair = {"loss": loss, "loss_interval": interval, "users_half": half, "seeds_half": 0.0, "n_users": 400, "n_seeds": 5}
    return {"name": name, "size_bytes": size, "excluded": "", "downstream": {"full recall@20": pair}, **more}


BIG = row("f16", 100, 0.0, 0.0)


def test_the_smallest_file_with_its_upper_bound_below_is_chosen():
    rows = [BIG, row("q8", 50, 0.001), row("q4", 30, 0.005, 0.002), row("q3", 20, 0.008, 0.004), row("q2", 10, 0.2)]
    choice = choose(rows, None, 0.01)
    assert (choice["state"], choice["name"]) == (CHOSEN, "q4")
    assert "0.50 %, 95 % interval 0.30 to 0.70 %, 400 users, 5 seeds" in choice["sentence"]
    assert choose(rows, None, 0.02)["name"] == "q3"


def test_a_sample_too_small_is_said_with_the_users_that_it_would_take():
    choice = choose([BIG, row("q8", 50, 0.002, 0.016), row("q4", 30, 0.3, 0.02)], None, 0.01)
    assert (choice["state"], choice["name"]) == (TOO_SMALL, None)
    assert "too small to tell" in choice["sentence"] and "q8" in choice["sentence"] and "About 1,600 users" in choice["sentence"]


def test_where_seeds_differ_most_more_seeds_are_asked_for():
    one = row("q8", 50, 0.002, 0.02)
    one["downstream"]["full recall@20"] |= {"users_half": 0.001, "seeds_half": 0.02}
    assert "more than 5 seeds would help" in choose([BIG, one], None, 0.01)["sentence"]


def test_where_no_file_has_an_interval_the_sample_is_too_small():
    assert choose([BIG, row("q8", 50, 0.0, None)], None, 0.01)["state"] == TOO_SMALL
    assert "no recall to lose" in choose([BIG, row("q8", 50)], None, 0.01)["sentence"]


def test_where_all_lose_more_the_reference_is_kept():
    choice = choose([BIG, row("q4", 30, 0.05), row("q2", 10, 0.2)], None, 0.01)
    assert (choice["state"], choice["name"]) == (LOSE_MORE, "f16")


def test_an_excluded_or_larger_file_is_never_chosen():
    rows = [BIG, row("bad", 5, 0.0, excluded="it fails the parity gate"), row("f32", 200, 0.0)]
    assert (choose(rows, None, 0.01)["state"], choose(rows, None, 0.01)["name"]) == (REFERENCE, "f16")


def test_profiles_that_are_not_shown_to_matter_are_told_beside_the_choice():
    rows = [BIG, row("q4", 30, 0.0)]
    without = row("none", 0, 0.005, 0.02)["downstream"]
    assert "not shown to be worth more than the bound" in choose(rows, without, 0.01)["sentence"]
    assert "worth more" not in choose(rows, row("none", 0, 0.2, 0.02)["downstream"], 0.01)["sentence"]
