"""Evaluates a profile model on real catalogues it never saw: `python recipes/profile_model/evaluate.py MODEL --data
DIR`.

For a sample of users of ml-latest-small and of the published MIND split:
- parsed: the share of greedy answers in the published form;
- own_above_other: how often a profile's text vector is nearer (cosine) to the mean item vector of its user's history
  than to that of another random user with another history; ties count half. `centered` subtracts the catalogue's mean
  item vector from the item vectors and the mean profile vector from the profiles'; `plain` does not;
- the same for the rule-based teacher.

Answers are written freely: greedy decoding, nothing constrained. Vectors are those of the bundled encoder.
The data are used for nothing else: neither model nor tokenizer has seen them.
"""

import argparse
import csv
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.errors import ProfileFormatError
from reclm_lite.profiles.sources.rules import RuleTeacher
from reclm_lite.prompts.answer import format_profile, parse_profile
from reclm_lite.prompts.forms import user_prompt
from reclm_lite.text.keyphrases import PhraseStats
from reclm_lite.types import ItemText

Encode = Callable[[Sequence[str]], np.ndarray]
MAX_NEW_TOKENS = 110
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
    fields = {str(i): one.fields() for i, one in texts.items()}
    items = {i: ItemText(t["title"], t["cate"], t["sub_cate"], str(t.get("abstract") or "")) for i, t in fields.items()}
    return items, {str(u): [str(i) for i in own] for u, own in users.items() if len(own)}


def neighbors_by_overlap(users: dict[str, list[str]], chosen: list[str], n: int = 5) -> dict[str, list[str]]:
    """The `n` users with the largest Jaccard overlap (ties: the first in order), a stand-in for model neighbors."""
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


@dataclass(frozen=True)
class Prepared:
    """What models are measured on: of each chosen user the prompt, the teacher's answer and the mean vector of the
    history.

    means: float32 (n_users, dim); centre: float32 (dim,), the mean of the catalogue's vectors (of a sample).
    """

    prompts: list[str]
    taught: list[str]
    means: np.ndarray
    centre: np.ndarray


def prepare(catalogue: Catalogue, encode: Encode, n_users: int, seed: int = 0) -> Prepared:
    """Draw users with distinct histories."""
    items, users = catalogue
    distinct = {frozenset(own): user for user, own in sorted(users.items(), reverse=True)}
    chosen = random.Random(seed).sample(sorted(distinct.values()), min(n_users, len(distinct)))
    near = neighbors_by_overlap(users, chosen)
    stats = PhraseStats.from_items(items.values())
    teacher = RuleTeacher(stats)
    histories = [[items[i] for i in users[u]] for u in chosen]
    neighbors = [[[items[i] for i in users[o]] for o in near[u]] for u in chosen]
    ids = sorted(
        {i for u in chosen for i in users[u]} | set(random.Random(seed).sample(sorted(items), min(1500, len(items))))
    )
    vectors = encode([items[i].joined() for i in ids])
    row = {item: n for n, item in enumerate(ids)}
    return Prepared(
        [user_prompt(h, n, stats=stats) for h, n in zip(histories, neighbors, strict=True)],
        [format_profile(teacher.profile(h, n)) for h, n in zip(histories, neighbors, strict=True)],
        np.stack([vectors[[row[i] for i in users[u]]].mean(axis=0) for u in chosen]),
        vectors.mean(axis=0),
    )


def kept(path: Path | None, make: Callable[[], Prepared]) -> Prepared:
    """What lies at `path`, or is made and put there."""
    if path is None:
        return make()
    if not path.is_file():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, prompts=found.prompts, taught=found.taught, means=found.means, centre=found.centre)
    with np.load(path, allow_pickle=False) as file:
        return Prepared(file["prompts"].tolist(), file["taught"].tolist(), file["means"], file["centre"])


def evaluate(
    name: str, data: Prepared, complete: Callable[[list[str]], list[str]] | None, encode: Encode
) -> dict[str, Any]:
    """The figures of a model (or of the teacher alone) on one data set."""

    def measure(texts: list[str], rows: list[int]) -> dict[str, float]:
        vectors = encode(texts)
        return {
            "own_above_other_plain": round(own_above_other(vectors, data.means[rows]), 4),
            "own_above_other_centered": round(
                own_above_other(vectors - vectors.mean(axis=0), data.means[rows] - data.centre), 4
            ),
        }

    n = len(data.prompts)
    result: dict[str, Any] = {"data": name, "n_users": n, "teacher": measure(data.taught, list(range(n)))}
    if complete:
        answers = complete(data.prompts)
        parsed, same, copied, failed = [], 0, 0, []
        for row, answer in enumerate(answers):
            try:
                profile = parse_profile(answer)
            except ProfileFormatError as error:
                failed.append({"prompt": data.prompts[row], "answer": answer, "error": str(error)})
                continue
            parsed.append(row)
            same += len(set(profile.interests) & set(parse_profile(data.taught[row]).interests))
            copied += sum(phrase in data.prompts[row] for phrase in profile.interests)
        result["model"] = {
            "parsed": round(len(parsed) / n, 4),
            "interests_as_teacher": round(same / max(1, 3 * len(parsed)), 4),
            "interests_in_prompt": round(copied / max(1, 3 * len(parsed)), 4),
            **measure([answers[row] for row in parsed], parsed),
        }
        result["failed"] = failed
        result["examples"] = [
            {"prompt": data.prompts[i], "answer": answers[i], "teacher": data.taught[i]} for i in range(min(8, n))
        ]
    return result


def by_transformers(folder: Path, adapter: Path | None) -> Callable[[list[str]], list[str]]:
    """Greedy answers of a checkpoint in float32, written freely; prompts of like length are decoded together."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    @torch.no_grad()
    def complete(prompts: list[str]) -> list[str]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            inputs = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True)
            tokens = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=False,
                max_new_tokens=MAX_NEW_TOKENS,
            )
            texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text
        return answers

    return complete


def by_llama_cpp(path: Path, n_threads: int) -> Callable[[list[str]], list[str]]:
    """Greedy answers of a GGUF, written freely."""
    from reclm_lite.convert.parity import greedy_text
    from reclm_lite.runtime import load_model

    def complete(prompts: list[str]) -> list[str]:
        with load_model(path) as model:
            return [greedy_text(model, prompt, MAX_NEW_TOKENS, n_threads=n_threads) for prompt in prompts]

    return complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", type=Path, nargs="?", help="a checkpoint's folder, or a GGUF file; without it the teacher alone"
    )
    parser.add_argument("--adapter", type=Path, help="a LoRA adapter's folder, merged into the checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder with ml-latest-small and reclm-mind")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of users")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder for prompts and vectors of the data, so that the next model need not wait for them",
    )
    parser.add_argument("--out", type=Path, help="write the figures here as JSON too")
    args = parser.parse_args()
    from reclm_lite.text.encoder import TextEncoder

    encoder = TextEncoder(n_threads=args.threads)
    complete = None
    if args.model:
        complete = (
            by_llama_cpp(args.model, args.threads)
            if args.model.suffix == ".gguf"
            else by_transformers(args.model, args.adapter)
        )
        if args.model.suffix != ".gguf":
            import torch

            torch.set_num_threads(args.threads)
    found = []
    for name, read in (("ml-latest-small", movielens), ("reclm-mind", mind)):
        path = args.keep and args.keep / f"{name}-{args.users}-{args.seed}.npz"
        data = kept(
            path, lambda read=read, name=name: prepare(read(args.data / name), encoder.encode, args.users, args.seed)
        )
        found.append(evaluate(name, data, complete, encoder.encode))
        print(
            json.dumps({k: v for k, v in found[-1].items() if k not in ("examples", "failed")}),
            file=sys.stderr,
            flush=True,
        )
    text = json.dumps(found, indent=1, ensure_ascii=False)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
