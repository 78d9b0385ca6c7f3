"""The base that the bundled profile model begins as: `python recipes/profile_model/start.py OUT --wordnet FOLDER`.

A byte-level BPE trained on made-up prompts and WordNet's sentences, and a Llama of random weights in which copying
heads are written (copying.py), trained for a few steps on copying alone: random tokens, twice in a row. What follows is
`reclm tune`.
"""

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from copying import write_copying
from synthetic import Histories
from transformers import AutoTokenizer, LlamaForCausalLM
from wordnet_text import WORDNET, WordNetText, read_wordnet

from reclm_lite.tune.base import choose_device
from reclm_lite.tune.optim import Optimizer, OptimizerSettings
from reclm_lite.tune.scratch import ScratchSettings, make_base

N_TEXTS = 12_000  # of each of three sources for the tokenizer
SIZES = ScratchSettings(vocab=4096, layers=4, width=256, ffn=768, heads=4, n_ctx=1024)
RATES = OptimizerSettings(lr=1.5e-3, optimizer="muon", lr_muon=0.02, warmup=0.3, schedule="constant")


def tokenizer_texts(pools: WordNetText, seed: int, n_texts: int = N_TEXTS) -> list[str]:
    """Prompts with their answers, glosses and sentences."""
    histories, rng = Histories(pools), random.Random(seed)
    texts = [e.prompt + e.answer for e in (histories.example(seed + 1, i) for i in range(n_texts))]
    texts += ["Candidate:\nTakes:\nYes", "Person:\nTakes:\nNo"] * (n_texts // 50)
    texts += rng.sample(pools.glosses, min(n_texts, len(pools.glosses)))
    return texts + rng.sample(pools.sentences, min(n_texts, len(pools.sentences)))


def copy_batch(step: int, seed: int, vocab: int, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids int64 (rows, 2 half + 1): BOS and random tokens twice; weights float32, 1 where the next token is known."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    half = int(torch.randint(6, 40, (1,), generator=generator))
    once = torch.randint(3, vocab, (max(1, n_tokens // (2 * half)), half), generator=generator)
    ids = torch.cat([torch.zeros((len(once), 1), dtype=torch.int64), once, once], dim=1)
    weights = torch.zeros(ids.shape)
    weights[:, half + 1 : -1] = 1.0  # a place's weight is that of the token after it
    return ids, weights


def make_start(
    out: Path,
    pools: WordNetText,
    *,
    sizes: ScratchSettings = SIZES,
    seed: int = 1,
    copy_steps: int = 100,
    n_texts: int = N_TEXTS,
    device: str = "cpu",
) -> float:
    """Write the base to `out`; returns the last loss of copying."""
    make_base(out, tokenizer_texts(pools, seed, n_texts), sizes)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    write_copying(model, seed)
    model.to(device)
    optimizer = Optimizer(dict(model.named_parameters()), RATES, copy_steps)
    loss, began = torch.tensor(0.0), time.monotonic()
    for step in range(copy_steps):
        ids, weights = (t.to(device) for t in copy_batch(step, seed, sizes.vocab, 2560))
        hidden = model.model(ids, use_cache=False).last_hidden_state[weights > 0]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), ids.roll(-1, 1)[weights > 0])
        loss.backward()
        optimizer.step(step)
        if (step + 1) % 20 == 0:
            print(
                f"copying {step + 1}/{copy_steps}: loss {float(loss.detach()):.3f}, {time.monotonic() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(out).save_pretrained(out)
    return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--wordnet", type=Path, default=WORDNET, help="folder with data.noun, data.verb, data.adj, data.adv"
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    choose_device(args.device)  # one that is not there is told before the work
    torch.set_num_threads(args.threads)
    make_start(args.out, read_wordnet(args.wordnet), device=args.device)


if __name__ == "__main__":
    main()
