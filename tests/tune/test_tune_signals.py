"""What an answer is worth: each part by hand, and their mixture."""

import numpy as np
import pytest
from tiny_dialogues import LOVE, WAR, profile, rl_dialogues

from reclm_lite.errors import InputError
from reclm_lite.tune.signals import Mixture, ModelScore, Rank, ask, parses

GOOD = profile(WAR[:3])


class Letters:
    """An encoder of hand-made vectors: how often a text says each of a few words."""

    def __init__(self):
        self.n_calls = 0

    def encode(self, texts):
        self.n_calls += 1
        vectors = np.array([[text.count(word) for word in (*WAR, *LOVE)] for text in texts], dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(norms > 0, norms, 1)


def dialogue(positives=("war",), negatives=("kiss",)):
    from dataclasses import replace

    return replace(rl_dialogues(1)[0], positives=tuple(positives), negatives=tuple(negatives))


def test_parses_tells_profiles_of_the_published_form():
    answers = [
        GOOD,
        "",
        GOOD.split(";")[0],
        GOOD + GOOD,
        "User identity: a, a, b; User interests: x, y, z",
        f" {GOOD}. ",
    ]
    assert parses([dialogue()] * 6, answers).tolist() == [1, 0, 0, 0, 0, 1]


def test_rank_is_the_share_of_pairs_in_order():
    rank = Rank(Letters())
    cases = [
        dialogue(),
        dialogue(["kiss"], ["war"]),
        dialogue(["war", "kiss"], ["rose", "love"]),
        dialogue(["cow"], ["hen"]),
    ]
    # ranked right; wrong; war before both, kiss level with both: (2 + 2 / 2) / 4; a tie, since neither is told of
    assert rank(cases, [GOOD] * 4).tolist() == [1.0, 0.0, 0.75, 0.5]


def test_rank_of_an_answer_that_is_no_profile_is_zero():
    assert Rank(Letters())([dialogue()] * 2, ["war war war", ""]).tolist() == [0.0, 0.0]


def test_rank_encodes_an_item_once():
    encoder = Letters()
    rank = Rank(encoder)
    for _ in range(3):
        rank([dialogue()] * 5, [GOOD] * 5)
    assert encoder.n_calls == 3 + 2


def test_rank_names_a_dialogue_without_items():
    with pytest.raises(InputError, match=r"user:0.*reclm dialogue build rl"):
        Rank(Letters())([dialogue(negatives=())], [GOOD])


def test_rank_with_the_bundled_encoder():
    from reclm_lite.text.encoder import TextEncoder

    items = ["A tank battle in the war", "An army at war"], ["A rose for my love", "The first kiss"]
    with TextEncoder(n_threads=1) as encoder:
        found = Rank(encoder)([dialogue(*items), dialogue(*items)], [GOOD, profile(LOVE[:3])])
    assert found.tolist() == [1.0, 0.0] and found.dtype == np.float32


def test_model_score_asks_the_reward_model_about_prompts_and_answers():
    class Reward:
        def scores(self, prompts, answers, *, pass_tokens):
            assert pass_tokens == 64
            return [len(prompt[0].text) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]

    one = dialogue()
    assert ModelScore(Reward(), pass_tokens=64)([one], ["ab"]).tolist() == [len(one.messages[0].text) + 2]


@pytest.mark.parametrize(
    "signal, says",
    [
        (lambda d, a: np.zeros(len(a) + 1), r"2 numbers.*'odd'.*\(3,\)"),
        (lambda d, a: [0.0, np.nan], r"'odd'.*nan.*'second'.*user:0"),
    ],
)
def test_a_signal_of_another_shape_or_not_finite_is_named(signal, says):
    with pytest.raises(InputError, match=says):
        ask({"odd": signal}, [dialogue()] * 2, ["first", "second"])


def test_the_mixture_is_in_units_of_the_sft_policy():
    scores = iter([[10.0, 14.0], [16.0, 12.0]])
    signals = {"model": lambda d, a: np.array(next(scores)), "parse": parses, "unused": None}
    mixture = Mixture(signals, {"model": 2.0, "parse": 1.0}, unfinished_penalty=3.0)
    dialogues, answers, ended = [dialogue()] * 2, [GOOD, ""], np.array([True, False])
    # model: mean 12, deviation 2 -> -1, 1.  totals: 2 * -1 + 1 = -1;  2 * 1 + 0 - 3 = -1.  No spread: the unit is 1.
    assert not mixture.fit(mixture.parts(dialogues, answers), ended)
    assert mixture.scales == {"model": (12.0, 2.0), "total": (-1.0, 1.0)}
    # 16 -> 2, 12 -> 0; totals 2 * 2 + 1 = 5 and 0 - 3
    parts = mixture.parts(dialogues, answers)
    assert parts["model"].tolist() == [2.0, 0.0]
    total = mixture.total(parts, ended)
    assert total.tolist() == [5.0, -3.0] and mixture.reward(total).tolist() == [6.0, -2.0]
    other = Mixture(signals, {"parse": 1.0})
    other.load(mixture.state())
    assert other.scales == mixture.scales


def test_a_mixture_of_nothing_or_of_unknown_parts_is_refused():
    with pytest.raises(InputError, match=r"\(parse\), found model"):
        Mixture({"parse": parses}, {"model": 1.0})
    with pytest.raises(InputError, match="no part at all"):
        Mixture({"parse": parses}, {})


@pytest.mark.parametrize("value, n", [(1.0, 8), (10.1, 100), (77.7, 100), (-3e4, 33)])
def test_rewards_that_are_all_the_same_have_no_spread_however_large(value, n):
    mixture = Mixture({"part": lambda dialogues, answers: np.full(len(answers), value)}, {"part": 1.0})
    parts = {"part": np.full(n, value, dtype=np.float32)}
    assert not mixture.fit(parts, np.ones(n, dtype=bool))
    assert mixture.fit(
        {"part": np.append(parts["part"], np.float32(value + 0.01 * abs(value)))}, np.ones(n + 1, dtype=bool)
    )
