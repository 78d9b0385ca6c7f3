"""Evaluates a profile model on real catalogues it never saw: `python recipes/profile_model/evaluate.py CHECKPOINT --data DIR --encoder DIR`.

For a sample of users of ml-latest-small and of the published MIND split:
- parsed: the share of greedy answers in the published form;
- own_above_other: how often a profile's text vector is nearer (cosine) to the mean item vector of its user's history
  than to that of another random user with another history; ties count half. `centred` subtracts the catalogue's mean
  item vector from the item vectors and the mean profile vector from the profiles'; `plain` does not;
- the same for the rule-based teacher.

The data are used for nothing else: neither model nor tokenizer has seen them.
"""

import argparse
import csv
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[2]))

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from reclm_lite.dialogue.templates import format_profile, parse_profile, user_prompt
from reclm_lite.errors import ProfileFormatError
from reclm_lite.profiles.teachers import RuleTeacher
from reclm_lite.text.keyphrases import PhraseStats
from reclm_lite.types import ItemText
from train import complete

Catalogue = tuple[dict[str, ItemText], dict[str, list[str]]]


def movielens(folder: Path) -> Catalogue:
    """All films and each user's rated films."""
    with (folder / "movies.csv").open(newline="", encoding="utf-8") as file:
        films = {row["movieId"]: ItemText(row["title"], row["genres"]) for row in csv.DictReader(file)}
    users: dict[str, list[str]] = defaultdict(list)
    with (folder / "ratings.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            users[row["userId"]].append(row["movieId"])
    return films, dict(users)


def mind(folder: Path) -> Catalogue:
    """All news and each user's training items, through the package's own importer of the published files."""
    from reclm_lite.data.importers.pickles import load_pickle

    texts = load_pickle(folder / "item_info_dict.pkl")
    users = load_pickle(folder / "user_item_dict_train.pkl")
    items = {str(i): ItemText(t["title"], t["cate"], t["sub_cate"], str(t.get("abstract") or "")) for i, t in texts.items()}
    return items, {str(u): [str(i) for i in own] for u, own in users.items() if len(own)}


def neighbors_by_overlap(users: dict[str, list[str]], chosen: list[str], n: int = 5) -> dict[str, list[str]]:
    """The `n` users with the largest Jaccard overlap (ties: the first in order), a stand-in for model neighbours."""
    holders: dict[str, list[str]] = defaultdict(list)
    for user, items in users.items():
        for item in items:
            holders[item].append(user)
    found = {}
    for user in chosen:
        shared: dict[str, int] = defaultdict(int)
        for item in users[user]:
            for other in holders[item][:2000]:
                shared[other] += 1
        shared.pop(user, None)
        score = {o: c / (len(users[user]) + len(users[o]) - c) for o, c in shared.items()}
        found[user] = sorted(score, key=lambda o: (-score[o], o))[:n]
    return found


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 (n, dim), rows of length one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def own_above_other(profiles: np.ndarray, history_means: np.ndarray, n_others: int = 200, seed: int = 0) -> float:
    """profiles, history_means: float32 (n, dim), row i of both belonging to user i; the share of pairs ranked right."""
    scores = unit(profiles) @ unit(history_means).T
    own = np.diag(scores)[:, None]
    others = np.random.default_rng(seed).integers(0, len(scores) - 1, (len(scores), n_others))
    others += others >= np.arange(len(scores))[:, None]
    drawn = np.take_along_axis(scores, others, axis=1)
    return float(((own > drawn) + 0.5 * (own == drawn)).mean())


def evaluate(name: str, catalogue: Catalogue, checkpoint: Path | None, encode, n_users: int, seed: int = 0) -> dict:
    items, users = catalogue
    distinct = {frozenset(own): user for user, own in sorted(users.items(), reverse=True)}
    chosen = random.Random(seed).sample(sorted(distinct.values()), min(n_users, len(distinct)))
    near = neighbors_by_overlap(users, chosen)
    stats = PhraseStats.from_items(items.values())
    teacher = RuleTeacher(stats)
    histories = [[items[i] for i in users[u]] for u in chosen]
    neighbors = [[[items[i] for i in users[o]] for o in near[u]] for u in chosen]
    taught = [format_profile(teacher.profile(h, n)) for h, n in zip(histories, neighbors)]

    ids = sorted({i for u in chosen for i in users[u]} | set(random.Random(seed).sample(sorted(items), min(1500, len(items)))))
    item_vectors = encode([items[i].joined() for i in ids])
    centre = item_vectors.mean(axis=0)
    row = {item: n for n, item in enumerate(ids)}
    means = np.stack([item_vectors[[row[i] for i in users[u]]].mean(axis=0) for u in chosen])

    def measure(texts: list[str], rows: list[int]) -> dict[str, float]:
        vectors = encode(texts)
        return {
            "own_above_other_plain": round(own_above_other(vectors, means[rows]), 4),
            "own_above_other_centred": round(own_above_other(vectors - vectors.mean(axis=0), means[rows] - centre), 4),
        }

    result = {"data": name, "n_users": len(chosen), "teacher": measure(taught, list(range(len(chosen))))}
    if checkpoint:
        model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
        prompts = [user_prompt(h, n, stats=stats) for h, n in zip(histories, neighbors)]
        answers = complete(model, tokenizer, prompts)
        parsed, same, copied = [], 0, 0
        for n, answer in enumerate(answers):
            try:
                profile = parse_profile(answer)
            except ProfileFormatError:
                continue
            parsed.append(n)
            same += len(set(profile.interests) & set(parse_profile(taught[n]).interests))
            copied += sum(phrase in prompts[n] for phrase in profile.interests)
        lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        result["model"] = {
            "parsed": round(len(parsed) / len(chosen), 4),
            "interests_as_teacher": round(same / max(1, 3 * len(parsed)), 4),
            "interests_in_prompt": round(copied / max(1, 3 * len(parsed)), 4),
            "prompt_tokens_mean": round(sum(lengths) / len(lengths), 1),
            "prompt_tokens_max": max(lengths),
            **measure([answers[n] for n in parsed], parsed),
        }
        result["examples"] = [{"prompt": prompts[n], "answer": answers[n], "teacher": taught[n]} for n in range(min(8, len(chosen)))]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", help="Hugging Face folder; without it the teacher alone")
    parser.add_argument("--data", type=Path, required=True, help="folder with ml-latest-small and reclm-mind")
    parser.add_argument("--encoder", type=Path, required=True, help="sentence-transformers folder of all-MiniLM-L6-v2")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(args.encoder), device="cpu")

    def encode(texts: list[str]) -> np.ndarray:
        return encoder.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False).astype(np.float32)

    found = []
    for name, read in (("ml-latest-small", movielens), ("reclm-mind", mind)):
        found.append(evaluate(name, read(args.data / name), args.checkpoint, encode, args.users))
        print(json.dumps({k: v for k, v in found[-1].items() if k != "examples"}), file=sys.stderr, flush=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
