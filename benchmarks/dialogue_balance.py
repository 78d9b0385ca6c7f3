"""Whether simple things tell the Yes of a second round from its No: they should not, or a model learns them in place of
taste.

    python benchmarks/dialogue_balance.py -w WS --users 4000 --items 1500

Draws second rounds as `reclm dialogue build sft` does and prints, for each feature of the item (or person) asked about,
the area under
the ROC curve: 0.5 tells nothing. Last, of users: whether a hidden item is nearer to the user's shown ones than a random
item that is as popular, which is what texts can tell at all; and, of the lists of `rl`, the share of pairs that the
rules' profiles rank right. Needs `reclm neighbors` and `reclm embed items`. Prints one JSON line last.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from reclm_lite.assets import encoder_path
from reclm_lite.cf.neighbors import Finder
from reclm_lite.data.dataset import item_ids, user_ids
from reclm_lite.dialogue.draws import Known
from reclm_lite.dialogue.first_round import Writer
from reclm_lite.dialogue.item_rounds import ItemRounds
from reclm_lite.dialogue.records import RL, Dialogue
from reclm_lite.dialogue.user_rounds import UserRounds
from reclm_lite.profiles.sources.rules import RulesTeacher
from reclm_lite.prompts.forms import COMPACT
from reclm_lite.prompts.inputs import load_inputs
from reclm_lite.text.encoder import TextEncoder
from reclm_lite.tune.signals import Rank
from reclm_lite.workspace import Workspace

N_NEGATIVES = 3  # in a list
Features = dict[str, tuple[list[float], list[float]]]


def auc(yes: list[float], no: list[float]) -> float:
    """The share of pairs in which a Yes has more than a No; ties count half."""
    ranks = rankdata([*yes, *no])
    return float((ranks[: len(yes)].sum() - len(yes) * (len(yes) + 1) / 2) / (len(yes) * len(no)))


def of_users(known: Known, vectors: np.ndarray, n: int, rng: np.random.Generator) -> Features:
    """Features of the items that users are asked about. vectors: float32 (n_items, dim), rows of length one."""
    found: Features = {}
    draws, writer, by_popularity = UserRounds(known), Writer(known.inputs), np.argsort(known.popularity, kind="stable")
    place = np.empty(len(by_popularity), np.int64)
    place[by_popularity] = np.arange(len(by_popularity))
    for user in rng.permutation(known.inputs.train.shape[0]).tolist():
        draw = draws.draw(user, 0)
        pair = None if draw is None or not draw.hidden else draws.pair(draw, writer.text(draw.shown, COMPACT), COMPACT)
        if pair is None or isinstance(pair, str):
            continue
        own, near = list(draw.shown.own), [item for items in draw.shown.near for item in items]
        held = draws._held(draw.shown.near)
        asked = [one.about for one in pair]
        # Within ten places in the order of popularity, and none of the user's.
        around = [
            i
            for i in by_popularity[max(0, place[asked[0]] - 10) : place[asked[0]] + 11].tolist()
            if i not in known.inputs.items_of(user)
        ]
        features = {
            "cosine to the shown items, mean": [vectors[own].mean(0) @ vectors[i] for i in asked],
            "neighbors that have it": [held[known.keys[i]] for i in asked],
            "cosine to what neighbors have": [vectors[near or own].mean(0) @ vectors[i] for i in asked],
            "popularity": [known.popularity[i] for i in asked],
        }
        if around:
            features["hidden item beside an equally popular one: cosine"] = [
                vectors[own].mean(0) @ vectors[i] for i in (asked[0], rng.choice(around))
            ]
        for name, (yes, no) in features.items():
            both = found.setdefault(name, ([], []))
            both[0].append(float(yes))
            both[1].append(float(no))
        if len(found["popularity"][0]) == n:
            break
    return found


def of_items(known: Known, vectors: np.ndarray, n: int, rng: np.random.Generator) -> Features:
    """Features of the persons that items are asked about."""
    found: Features = {}
    draws, writer = ItemRounds(known), Writer(known.inputs)
    for item in rng.permutation(len(known.inputs.texts)).tolist():
        draw = draws.draw(item, 0)
        pair = None if draw is None or not draw.hidden else draws.pair(draw, writer.text(draw.shown, COMPACT), COMPACT)
        if pair is None or isinstance(pair, str):
            continue
        persons = [draws.person(one.about, item) for one in pair]
        for name, values in (
            ("cosine to the person's items, mean", [vectors[list(p)].mean(0) @ vectors[item] for p in persons]),
            ("popularity of the person's items", [known.popularity[list(p)].mean() for p in persons]),
        ):
            both = found.setdefault(name, ([], []))
            both[0].append(float(values[0]))
            both[1].append(float(values[1]))
        if len(found["popularity of the person's items"][0]) == n:
            break
    return found


def of_lists(known: Known, n: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (n,) or fewer: of users of `reclm dialogue build rl`, the part `rank` of PPO's reward for the profile
    that the rules write."""
    draws, writer, teacher, texts = (
        UserRounds(known),
        Writer(known.inputs),
        RulesTeacher(known.inputs),
        known.inputs.texts,
    )
    dialogues, answers = [], []
    for user in rng.permutation(known.inputs.train.shape[0]).tolist():
        draw = draws.draw(user, 0)
        lists = draws.lists(draw, N_NEGATIVES) if draw is not None else ""
        if isinstance(lists, str):
            continue
        positives, negatives = (
            tuple(texts[item].joined() for item in items) for items in (lists.positives, lists.negatives)
        )
        dialogues.append(
            Dialogue(RL, f"user:{user}", "user", COMPACT, "train", (), positives=positives, negatives=negatives)
        )
        answers.append(teacher.answer(draw.shown, writer))
        if len(answers) == n:
            break
    with TextEncoder(encoder_path()) as encoder:
        return Rank(encoder)(dialogues, answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--workspace", type=Path, required=True)
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--items", type=int, default=1500)
    parser.add_argument("--lists", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with Workspace.open(options.workspace) as ws:
        known = Known(load_inputs(ws), user_ids(ws), item_ids(ws), finder=Finder.of(ws))
        vectors = ws.load("vectors/items", made_by="reclm embed items").arrays["vectors"].astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    rng, result = np.random.default_rng(options.seed), {}
    for side, features in (
        ("user", of_users(known, vectors, options.users, rng)),
        ("item", of_items(known, vectors, options.items, rng)),
    ):
        for name, (yes, no) in features.items():
            result[f"{side}: {name}"] = {"auc": round(auc(yes, no), 3), "n": len(yes)}
            print(f"{side}: {name:<52} {result[f'{side}: {name}']['auc']:.3f}  ({len(yes):,} pairs)")
    ranks = of_lists(known, options.lists, rng)
    result["user: rank of the rules' profiles"] = {"mean": round(float(ranks.mean()), 3), "n": len(ranks)}
    print(
        f"user: {'the rules profile, hidden items above negatives':<52} {ranks.mean():.3f}  ({len(ranks):,} users, "
        f"standard error {ranks.std() / len(ranks) ** 0.5:.3f})"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
