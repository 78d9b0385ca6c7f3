"""Makes the bundled profile model from a trained checkpoint.

    python recipes/export_profile_model.py CHECKPOINT_DIR --adapter ADAPTER_DIR

The checkpoint and the adapter are what `recipes/profile_model/make.sh` makes by `reclm tune`: a small Llama with a
GPT-2-style byte-level BPE and tied embeddings, and the LoRA of PPO, which is merged into it. Writes
`reclm_lite/assets/reclm-profile-q8_0.gguf` with a provenance file beside it, after proving
that nothing was lost: token ids on adversarial texts and on the prompts, logits and greedy text of the float32
GGUF against transformers, and of the Q8_0 file against the float32 one. Needs the `dev` extra.
"""

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reclm_lite.convert import parity
from reclm_lite.convert.export_checkpoint import export_checkpoint
from reclm_lite.errors import ModelError, ProfileFormatError
from reclm_lite.files import file_sha256
from reclm_lite.prompts.answer import parse_profile
from reclm_lite.prompts.forms import user_prompt
from reclm_lite.runtime import load_model
from reclm_lite.types import ItemText

ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "reclm_lite" / "assets" / "reclm-profile-q8_0.gguf"
MAX_NEW_TOKENS = 96
MIN_F32_COSINE = 1 - 1e-6
# Most positions are those of the prompt, where the model was never asked to predict anything.
MIN_Q8_COSINE = 0.99
MIN_SHARE_PARSED = 0.8  # of answers written freely; the engine holds the form besides

SHELVES = {
    "film": ["The Lighthouse Keeper", "Night Train to Lisbon", "The Baker's Dozen (1987)", "Dust and Silver"],
    "comedy": ["My Neighbour the Duke", "Two Weddings and a Goat", "The Baker's Dozen (1987)"],
    "sports": [
        "Late goal sends the visitors top",
        "How to train for your first marathon",
        "Transfer window: who goes?",
    ],
    "food": ["Roast aubergine with tahini", "Ten soups for cold evenings", "Why your bread does not rise"],
    "science": ["A telescope the size of a valley", "How octopuses dream", "The maths of traffic jams"],
    "travel": ["Slow boats on the Danube", "Night trains are back", "Walking the old salt road"],
}


def sample_prompts() -> list[str]:
    """Prompts as the profiler writes them, over a small made-up catalogue."""
    shelves = {name: [ItemText(title, name) for title in titles] for name, titles in SHELVES.items()}
    names = list(shelves)
    prompts = []
    for i, name in enumerate(names):
        history = shelves[name] + shelves[names[(i + 1) % len(names)]][:1]
        prompts.append(user_prompt(history, [shelves[names[(i + 2) % len(names)]], shelves[name][:2]]))
    return prompts


def transformers_greedy(checkpoint: Path, prompts: list[list[int]]) -> list[str]:
    """Greedy continuations by transformers in float32, one prompt (token ids) at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    answers = []
    for ids in prompts:
        with torch.no_grad():
            made = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=MAX_NEW_TOKENS,
            )
        answers.append(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))
    return answers


def _parses(text: str) -> bool:
    try:
        parse_profile(text)
    except ProfileFormatError:
        return False
    return True


def check_parity(checkpoint: Path, f32: Path, q8: Path, prompts: list[str]) -> dict[str, Any]:
    """Measures what conversion and quantization changed; raises ModelError where that is more than rounding."""
    mismatches = parity.token_id_mismatches(q8, checkpoint, [*parity.PROBE_TEXTS, *prompts])
    if mismatches is None or mismatches:
        raise ModelError(f"expected identical token ids, found {mismatches or 'no package tokenizers to prove it'}")
    with load_model(f32) as model:
        ids = [model.tokenize(prompt, add_special=True) for prompt in prompts]
        greedy_f32 = [parity.greedy_text(model, prompt, MAX_NEW_TOKENS, n_threads=1) for prompt in prompts]
    with load_model(q8) as model:
        greedy_q8 = [parity.greedy_text(model, prompt, MAX_NEW_TOKENS, n_threads=1) for prompt in prompts]
    original = transformers_greedy(checkpoint, ids)
    dialogues = [prompt + answer for prompt, answer in zip(prompts, original, strict=True)]
    logits_f32 = parity.logit_parity(f32, checkpoint, dialogues, n_threads=1)
    logits_q8 = parity.logit_parity(q8, checkpoint, dialogues, n_threads=1)
    for prompt, answer in zip(prompts, greedy_q8, strict=True):
        print(f"{prompt}\n  -> {answer}", file=sys.stderr)
    report = {
        "n_prompts": len(prompts),
        "token_ids_identical": True,
        "f32_min_logit_cosine": logits_f32["min_cosine"],
        "f32_max_logit_difference": logits_f32["max_abs_difference"],
        "f32_greedy_texts_equal": sum(a == b for a, b in zip(original, greedy_f32, strict=True)),
        "q8_0_min_logit_cosine": round(logits_q8["min_cosine"], 6),
        "q8_0_top1_agreement": round(logits_q8["top1_agreement"], 4),
        "q8_0_greedy_texts_equal": sum(a == b for a, b in zip(original, greedy_q8, strict=True)),
        "profiles_that_parse": sum(map(_parses, greedy_q8)),
        "example": {"prompt": prompts[0], "profile": greedy_q8[0]},
    }
    if logits_f32["min_cosine"] < MIN_F32_COSINE or logits_q8["min_cosine"] < MIN_Q8_COSINE:
        raise ModelError(f"expected logits within {MIN_F32_COSINE} (F32) and {MIN_Q8_COSINE} (Q8_0), found {report}")
    return report


def merged(checkpoint: Path, adapter: Path, out: Path) -> Path:
    """The checkpoint with the adapter in its weights, float32, as transformers saves it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(out)
    return out


def make(checkpoint: Path, out: Path, *, allow_untrained: bool) -> dict[str, Any]:
    prompts = sample_prompts()
    metadata = {"general.license": "apache-2.0"}
    with tempfile.TemporaryDirectory() as scratch:
        f32, q8 = Path(scratch) / "f32.gguf", Path(scratch) / out.name
        export_checkpoint(checkpoint, f32, "f32", metadata=metadata, name="reclm-profile")
        export_checkpoint(checkpoint, q8, "q8_0", metadata=metadata, name="reclm-profile")
        measured = check_parity(checkpoint, f32, q8, prompts)
    if measured["profiles_that_parse"] < MIN_SHARE_PARSED * len(prompts) and not allow_untrained:
        raise ModelError(
            f"expected {MIN_SHARE_PARSED:.0%} of {len(prompts)} profiles in the published form, found "
            f"{measured['profiles_that_parse']}; "
            "train longer, or give --allow-untrained to write the file all the same"
        )
    # The same bytes again, now in place: nothing is put among the assets before it is proved.
    report = export_checkpoint(checkpoint, out, "q8_0", metadata=metadata, name="reclm-profile")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return {
        "file": out.name,
        "sha256": file_sha256(out),
        "size_bytes": report["size_bytes"],
        "model": "reclm-profile",
        "what": "Llama architecture, {num_hidden_layers} layers, {hidden_size} wide, {vocab_size} tokens, "
        "context {max_position_embeddings}, Q8_0".format(**config),
        "source": "trained from scratch by recipes/profile_model",
        "source_sha256": file_sha256(checkpoint / "model.safetensors"),
        "licence": "Apache-2.0",
        "recipe": "recipes/profile_model/make.sh OUT",
        "fallback_tensors": report["fallback_tensors"],
        "parity": measured,
        "made_with": {name: version(name) for name in ("llama-cpp-python", "gguf", "torch", "transformers")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="directory with config.json, model.safetensors, tokenizer.json")
    parser.add_argument("--adapter", type=Path, help="a LoRA adapter's folder, merged into the checkpoint")
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument(
        "--allow-untrained", action="store_true", help="write the file even if its profiles do not parse"
    )
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = arguments.checkpoint
            if arguments.adapter:
                checkpoint = merged(checkpoint, arguments.adapter, Path(scratch))
            provenance = make(checkpoint, arguments.out, allow_untrained=arguments.allow_untrained)
    except ModelError as error:
        sys.exit(f"error: {error}")
    text = json.dumps(provenance, indent=2, ensure_ascii=False) + "\n"
    arguments.out.with_suffix(".json").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
