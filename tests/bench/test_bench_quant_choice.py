"""Intervals of `reclm bench quant`, and the file that is chosen by them."""

import numpy as np
import pytest

from reclm_lite.bench.quant.paired_intervals import (
    MIN_UNITS,
    Errors,
    chance_beyond,
    holm,
    paired,
    pooled,
    ratio,
    students_t,
    wilson,
)
from reclm_lite.bench.quant.quant_summary import CHOSEN, LOSE_MORE, REFERENCE, TOO_SMALL, choose


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
    assert result.as_dict()["interval"] == pytest.approx([0.02 - half, 0.02 + half])
    assert result.of_loss.users == pytest.approx(0, abs=1e-12) and result.of_loss.seeds * students_t(
        3
    ) == pytest.approx(2 * half)


def test_a_difference_between_users_alone_has_the_normal_interval():
    reference = np.full((2, 100), 0.5)
    found = reference + np.tile(np.where(np.arange(100) % 2, 0.1, -0.1), (2, 1))
    result = paired(found, reference)
    assert result.difference == pytest.approx(0)
    assert result.as_dict()["interval"][1] == pytest.approx(1.959964 * 0.1 * np.sqrt(100 / 99) / 10)


def test_equal_figures_lose_nothing_for_certain():
    same = np.random.default_rng(0).random((3, 60))
    result = paired(same, same)
    told = result.as_dict()
    assert told["interval"] == told["loss_interval"] == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(1, 100), (3, MIN_UNITS - 1)])
def test_one_seed_or_few_users_give_no_interval(shape):
    values = np.random.default_rng(0).random(shape)
    result = paired(values, values[::-1])
    told = result.as_dict()
    assert told["interval"] is None is told["loss_interval"] and told["loss"] is not None


def test_no_relative_loss_where_the_reference_has_none_of_it():
    assert paired(np.ones((2, 40)), np.zeros((2, 40))).loss is None
    with pytest.raises(ValueError, match="the same users"):
        paired(np.ones((2, 40)), np.ones((2, 41)))


def test_the_interval_of_the_loss_holds_the_truth_as_often_as_it_says():
    rng, n_held, n_trials = np.random.default_rng(0), 0, 400
    for _ in range(n_trials):
        base = 0.3 + 0.1 * rng.standard_normal((1, 80))
        effect = (
            0.02
            + 0.05 * rng.standard_normal((1, 80))
            + 0.01 * rng.standard_normal((4, 1))
            + 0.05 * rng.standard_normal((4, 80))
        )
        low, high = paired(base - effect + np.zeros((4, 80)), base + np.zeros((4, 80))).as_dict()["loss_interval"]
        n_held += low <= 0.02 / 0.3 <= high
    assert 0.93 <= n_held / n_trials <= 0.995


# -- the choice ---------------------------------------------------------------------------


def row(name, size, loss=None, half=0.001, **more):
    interval = None if loss is None or half is None else (loss - half, loss + half)
    errors = {"users": (half or 0.0) / 1.959964, "seeds": 0.0, "df": 4}
    pair = {"loss": loss, "loss_interval": interval, "of_loss": errors, "n_users": 400, "n_seeds": 5}
    return {
        "name": name,
        "size_bytes": size,
        "excluded": "",
        "imatrix": False,
        "downstream": {"full recall@20": pair},
        **more,
    }


BIG = row("f16", 100, 0.0, 0.0)


def test_the_smallest_file_with_its_upper_bound_below_is_chosen():
    rows = [BIG, row("q8", 50, 0.001), row("q4", 30, 0.005, 0.002), row("q3", 20, 0.008, 0.0018), row("q2", 10, 0.2)]
    choice = choose(rows, None, 0.01)
    assert (choice["state"], choice["name"]) == (CHOSEN, "q4")
    assert "0.50 %, 95 % interval 0.30 to 0.70 %, 400 users, 5 seeds" in choice["sentence"]
    assert choose(rows, None, 0.02)["name"] == "q3"


def test_the_smallest_of_many_has_to_be_below_by_more_than_one_alone():
    """q3's own interval ends at 0.98 %, below the bound; among four files that is no proof."""
    rows = [BIG, row("q8", 50, 0.001), row("q4", 30, 0.005, 0.002), row("q3", 20, 0.008, 0.0018), row("q2", 10, 0.2)]
    choice = choose(rows, None, 0.01)
    assert choice["name"] == "q4" and "among 4 files (Holm)" in choice["sentence"]
    assert choose([BIG, row("q3", 20, 0.008, 0.0018)], None, 0.01)["name"] == "q3"


def test_holms_steps_are_those_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([], 0.05) == [] and holm([0.025]) == [True] and holm([0.0251]) == [False]


def test_the_chance_beyond_a_bound_is_that_of_the_normal_and_of_students_t():
    assert chance_beyond(0.0, Errors(0.01, 0.0, 4), 0.0196) == pytest.approx(0.025, rel=1e-3)
    assert chance_beyond(0.0, Errors(0.0, 0.01, 4), 0.027764) == pytest.approx(0.025, rel=1e-3)
    assert chance_beyond(0.02, Errors(0.01, 0.0, 4), 0.01) == 1 and chance_beyond(0.0, Errors(0.0, 0.0, 4), 0.01) == 0
    assert chance_beyond(0.0, Errors(1e-6, 0.0, 4), 0.01) == 0


def test_what_seeds_differ_by_is_taken_together_over_files():
    rng = np.random.default_rng(0)
    reference = rng.random((3, 50))
    pairs = [paired(reference + step * np.array([[-1.0], [0.0], [1.0]]), reference) for step in (0.01, 0.03)]
    same = paired(reference, reference)
    one, two, unchanged = pooled([*pairs, same])
    assert one.of_difference.seeds == two.of_difference.seeds == pytest.approx(np.sqrt((0.01**2 + 0.03**2) / 2 / 3))
    assert one.of_difference.df == 4 and one.of_loss.seeds == two.of_loss.seeds > 0 and unchanged == same
    assert (one.difference, one.of_difference.users) == (pairs[0].difference, pairs[0].of_difference.users)
    assert pooled([pairs[0], same]) == [pairs[0], same]


def test_a_choice_by_chance_is_as_rare_as_it_says():
    """Eight files that all lose exactly the bound: none is below it."""
    rng, n_wrong, n_trials = np.random.default_rng(0), 0, 120
    for _ in range(n_trials):
        pairs = []
        for _ in range(8):
            effect = 0.003 + 0.02 * rng.standard_normal((1, 80)) + 0.005 * rng.standard_normal((4, 1))
            pairs.append(paired(0.3 - effect + np.zeros((4, 80)), np.full((4, 80), 0.3)))
        told = [pair.as_dict() for pair in pooled(pairs)]
        n_wrong += any(holm([chance_beyond(each["loss"], Errors(**each["of_loss"]), 0.01) for each in told]))
    assert n_wrong / n_trials <= 0.05


def test_a_sample_too_small_is_said_with_the_users_that_it_would_take():
    choice = choose([BIG, row("q8", 50, 0.002, 0.016), row("q4", 30, 0.3, 0.02)], None, 0.01)
    assert (choice["state"], choice["name"]) == (TOO_SMALL, None)
    assert "too small to tell" in choice["sentence"] and "q8 comes nearest" in choice["sentence"]
    assert "About 2,093 users" in choice["sentence"]  # 400 (z of 0.9875 / 1.96 * 0.016 / 0.008)^2


def test_where_seeds_differ_most_more_seeds_are_asked_for():
    one = row("q8", 50, 0.002, 0.02)
    one["downstream"]["full recall@20"]["of_loss"] = {"users": 0.0005, "seeds": 0.01, "df": 4}
    assert "give more than 5 --seeds" in choose([BIG, one], None, 0.01)["sentence"]


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
