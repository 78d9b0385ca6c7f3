"""Trains the bundled profile model from scratch on a CPU: `python recipes/profile_model/train.py --out DIR`.

A Llama-architecture model and a byte-level BPE tokenizer, saved as an ordinary Hugging Face checkpoint folder that
`reclm_lite.convert` turns into GGUF. It starts with copying heads in
place (copying.py), trains on copying alone (random tokens, repeated), then on the task: prompt in, the rule-based
teacher's answer out, loss on the answer only.

Matrices are trained with Muon (orthogonalised momentum, https://kellerjordan.github.io/posts/muon/), embeddings and
norms with Adam. The learning rate warms up, stays, and falls over the last part of `--steps`; so a run can be
prolonged before that part begins. Batch i depends on the seed and i alone and every checkpoint holds the optimizer's
state, so an interrupted run continues as if it had not been interrupted.

Left out: dropout, gradient accumulation, distributed training; the run is an hour on two cores.
"""

import argparse
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[2]))

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reclm_lite.dialogue.templates import parse_profile
from reclm_lite.errors import ProfileFormatError
from copying import write_copying
from synthetic import Example, Histories
from wordnet_text import WORDNET, WordNetText, read_wordnet

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
N_GROUP = 8  # batches that are drawn together, so that examples of like length share one


@dataclass(frozen=True)
class Config:
    """One run. `steps` counts the copy steps too; a step is one batch of `batch` examples."""

    seed: int = 1
    vocab: int = 4096
    tokenizer_texts: int = 12_000
    layers: int = 4
    width: int = 256
    ffn: int = 768
    heads: int = 4
    steps: int = 2500
    copy_steps: int = 100
    batch: int = 32
    warmup: int = 60
    decay: float = 0.4
    lr_matrix: float = 0.02
    lr_other: float = 1.5e-3
    opening_weight: float = 6.0
    max_tokens: int = 448
    autocast: bool = True


def train_tokenizer(pools: WordNetText, config: Config) -> PreTrainedTokenizerFast:
    """A GPT-2 style byte-level BPE: BOS is added in front, EOS is not added."""
    histories = Histories(pools)
    rng = random.Random(config.seed)
    texts = [e.prompt + e.answer for e in (histories.example(config.seed + 1, i) for i in range(config.tokenizer_texts))]
    texts += rng.sample(pools.glosses, min(config.tokenizer_texts, len(pools.glosses)))
    texts += rng.sample(pools.sentences, min(config.tokenizer_texts, len(pools.sentences)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=config.vocab, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet, show_progress=False
        ),
    )
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos_id)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=PAD, padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=1024, add_bos_token=True, add_eos_token=False,
    )  # fmt: skip
    return fast


def new_model(config: Config) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab, hidden_size=config.width, intermediate_size=config.ffn,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
            max_position_embeddings=1024, rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}, rms_norm_eps=1e-5, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=1, pad_token_id=2, initializer_range=0.02,
        )
    )  # fmt: skip
    write_copying(model, config.seed)
    return model


class Batches:
    """`batch(i)`: tokens int64 (batch, length), padded on the right, and their weights in the loss, float32, same shape.

    Tokens that open a phrase weigh `opening_weight` and those that close one half of it: where to copy from and when
    to stop are the decisions, the rest is copying.
    """

    def __init__(self, pools: WordNetText, tokenizer: PreTrainedTokenizerFast, config: Config):
        self.config = config
        self.tokenizer = tokenizer
        pieces = [tokenizer.decode([i]) for i in range(3, len(tokenizer))]
        self.histories = Histories(pools, [p for p in pieces if p.strip(" ").isalnum()])
        self.opening = set(tokenizer.convert_tokens_to_ids([",", ":"]))
        self.closing = set(tokenizer.convert_tokens_to_ids([",", ";", EOS]))
        self._group: tuple[int, list[list[tuple[list[int], int]]]] = (-1, [])

    def tokens(self, example: Example) -> tuple[list[int], int]:
        """BOS prompt answer EOS, and the number of tokens before the answer."""
        prompt = self.tokenizer(example.prompt)["input_ids"]
        answer = self.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        return [*prompt, *answer, self.tokenizer.eos_token_id], len(prompt)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step < self.config.copy_steps:
            return self._copy_batch(step)
        group, position = divmod(step - self.config.copy_steps, N_GROUP)
        if self._group[0] != group:
            self._group = (group, self._draw_group(group))
        rows = self._group[1][position]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        weights = torch.zeros((len(rows), length))
        for row, (tokens, n_prompt) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            for i in range(n_prompt, len(tokens)):
                opens, closes = i > n_prompt and tokens[i - 1] in self.opening, tokens[i] in self.closing
                weights[row, i] = self.config.opening_weight * (opens + 0.5 * closes) if opens or closes else 1.0
        return ids, weights

    def _draw_group(self, group: int) -> list[list[tuple[list[int], int]]]:
        rows, index, wanted = [], 0, N_GROUP * self.config.batch
        while len(rows) < wanted:
            example = self.histories.example(self.config.seed + 2, group * 4 * wanted + index)
            tokens, n_prompt = self.tokens(example)
            index += 1
            if len(tokens) <= self.config.max_tokens:
                rows.append((tokens, n_prompt))
        rows.sort(key=lambda row: len(row[0]))
        batches = [rows[i : i + self.config.batch] for i in range(0, wanted, self.config.batch)]
        random.Random(f"{self.config.seed}/{group}").shuffle(batches)
        return batches

    def _copy_batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        half = int(torch.randint(6, 40, (1,), generator=generator))
        n_rows = max(1, self.config.batch * 40 // half)
        once = torch.randint(3, self.config.vocab, (n_rows, half), generator=generator)
        bos = torch.full((n_rows, 1), self.tokenizer.bos_token_id)
        ids = torch.cat([bos, once, once], dim=1)
        weights = torch.zeros(ids.shape)
        weights[:, half + 2 :] = 1.0
        return ids, weights


def answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor, autocast: bool) -> torch.Tensor:
    """Weighted mean cross-entropy; logits are computed where the weight is not zero only."""
    weights = weights[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        hidden = model.model(ids[:, :-1]).last_hidden_state
        logits = model.lm_head(hidden[weights > 0])
    losses = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][weights > 0], reduction="none")
    return losses @ weights[weights > 0] / weights.sum()


def orthogonalised(update: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: five Newton-Schulz steps, as in Muon."""
    x = update / (update.norm() + 1e-7)
    flipped = x.shape[0] > x.shape[1]
    x = x.T if flipped else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if flipped else x


class Optimizer:
    """Muon for the layers' matrices, Adam for the rest; `state` is flat and holds tensors only."""

    def __init__(self, model: LlamaForCausalLM, config: Config):
        self.config = config
        self.parameters = dict(model.named_parameters())
        self.state: dict[str, torch.Tensor] = {}
        for name, p in self.parameters.items():
            self.state[f"{name}/m"] = torch.zeros_like(p)
            if not self._is_matrix(name, p):
                self.state[f"{name}/v"] = torch.zeros_like(p)

    @staticmethod
    def _is_matrix(name: str, p: torch.Tensor) -> bool:
        return p.ndim == 2 and "embed" not in name

    @torch.no_grad()
    def step(self, step: int, scale: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for name, p in self.parameters.items():
            momentum = self.state[f"{name}/m"]
            if self._is_matrix(name, p):
                momentum.lerp_(p.grad, 0.05)
                update = orthogonalised(p.grad.lerp(momentum, 0.95))
                p.mul_(1 - self.config.lr_matrix * scale * 0.01)
                p.add_(update, alpha=-self.config.lr_matrix * scale * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)
            else:
                momentum.lerp_(p.grad, 0.1)
                square = self.state[f"{name}/v"].lerp_(p.grad**2, 0.02)
                root = (square / (1 - 0.98 ** (step + 1))).sqrt_().add_(1e-10)
                p.addcdiv_(momentum / (1 - 0.9 ** (step + 1)), root, value=-self.config.lr_other * scale)
            p.grad = None


def learning_rate_scale(step: int, config: Config) -> float:
    """Up over `warmup` steps (again where the task begins), level, then half and linearly to zero over the last `decay` part."""
    since = step if step < config.copy_steps else step - config.copy_steps
    left = (config.steps - step) / max(1.0, config.decay * config.steps)
    return min((since + 1) / max(1, config.warmup), 1.0 if left > 1 else left / 2)


def save_checkpoint(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, optimizer: Optimizer, step: int) -> None:
    """`out/step-N` with the model, the tokenizer and the optimizer; complete when it has its name, the one before is removed."""
    partial, done = out / "partial", out / f"step-{step:06d}"
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    save_file(optimizer.state, partial / "optimizer.safetensors")
    (partial / "run.json").write_text(json.dumps({"step": step, "config": asdict(optimizer.config)}, indent=1) + "\n")
    os.replace(partial, done)
    for old in sorted(out.glob("step-*")):
        if old != done:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()


def latest_checkpoint(out: Path) -> Path | None:
    return max(out.glob("step-*"), default=None)


@torch.no_grad()
def complete(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_new: int = 110) -> list[str]:
    """Greedy completions; prompts of like length are decoded together."""
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        inputs = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True)
        tokens = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False, max_new_tokens=max_new
        )
        texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, texts):
            answers[i] = text
    model.train()
    return answers


def score_answers(examples: list[Example], answers: list[str]) -> dict[str, float]:
    """Shares: of answers that parse, that equal the teacher's, of their phrases that equal the teacher's or stand in the prompt."""
    n_parsed = n_exact = n_right = n_copied = 0
    for example, answer in zip(examples, answers):
        try:
            profile, truth = parse_profile(answer), parse_profile(example.answer)
        except ProfileFormatError:
            continue
        n_parsed += 1
        n_exact += profile == truth
        n_right += len(set(profile.interests) & set(truth.interests))
        n_copied += sum(phrase in example.prompt for phrase in profile.interests)
    n_phrases = 3 * max(1, n_parsed)
    return {
        "parsed": n_parsed / len(examples),
        "exact": n_exact / len(examples),
        "interests_as_teacher": n_right / n_phrases,
        "interests_copied": n_copied / n_phrases,
    }


def train(out: Path, config: Config, wordnet: Path = WORDNET, minutes_per_save: float = 5.0, stop_at: int | None = None,
          pools: WordNetText | None = None, n_eval: int = 96) -> list[float]:  # fmt: skip
    """Runs (or continues) training; returns this call's losses. `stop_at` ends early, as an interruption would."""
    out.mkdir(parents=True, exist_ok=True)
    pools = pools or read_wordnet(wordnet)
    resumed = latest_checkpoint(out)
    if resumed:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(resumed)
        model = LlamaForCausalLM.from_pretrained(resumed, dtype=torch.float32)
        optimizer = Optimizer(model, config)
        optimizer.state = load_file(resumed / "optimizer.safetensors")
        first = json.loads((resumed / "run.json").read_text())["step"]
    else:
        tokenizer, model, first = train_tokenizer(pools, config), new_model(config), 0
        optimizer = Optimizer(model, config)
        save_checkpoint(out, model, tokenizer, optimizer, 0)
    model.train()
    batches = Batches(pools, tokenizer, config)
    held_out = [batches.histories.example(config.seed + 3, i) for i in range(n_eval)]
    losses, n_tokens, saved_at = [], 0, time.monotonic()
    started = saved_at
    for step in range(first, min(config.steps, stop_at or config.steps)):
        ids, weights = batches.batch(step)
        loss = answer_loss(model, ids, weights, config.autocast)
        loss.backward()
        optimizer.step(step, learning_rate_scale(step, config))
        losses.append(loss.item())
        n_tokens += ids.numel()
        done = step + 1
        if done % 20 == 0:
            _log(out, {"step": done, "loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
                       "tokens_per_second": round(n_tokens / (time.monotonic() - started))})  # fmt: skip
        if time.monotonic() - saved_at > 60 * minutes_per_save or done == min(config.steps, stop_at or config.steps):
            save_checkpoint(out, model, tokenizer, optimizer, done)
            if n_eval and done > config.copy_steps:
                scores = score_answers(held_out, complete(model, tokenizer, [e.prompt for e in held_out]))
                _log(out, {"step": done, **{key: round(value, 4) for key, value in scores.items()}})
            saved_at = time.monotonic()
    return losses


def _log(out: Path, record: dict[str, float]) -> None:
    line = json.dumps(record)
    print(line, file=sys.stderr, flush=True)
    with (out / "log.jsonl").open("a") as file:
        file.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints; a run found there is continued")
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="folder with WordNet's data.noun and so on")
    parser.add_argument("--threads", type=int, default=1, help="more than one pays only on an idle machine")
    parser.add_argument("--minutes-per-save", type=float, default=5.0)
    parser.add_argument("--stop-at", type=int, help="stop after this step, as an interruption would")
    for name, value in asdict(Config()).items():
        kind = {"action": argparse.BooleanOptionalAction} if isinstance(value, bool) else {"type": type(value)}
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, **kind)
    args = vars(parser.parse_args())
    torch.set_num_threads(args.pop("threads"))
    out, wordnet, minutes, stop_at = (args.pop(key) for key in ("out", "wordnet", "minutes_per_save", "stop_at"))
    train(out, Config(**args), wordnet, minutes, stop_at)


if __name__ == "__main__":
    main()
