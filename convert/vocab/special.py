"""Special tokens, what is added around a text, and chat templates.

Which token is BOS comes from tokenizer_config.json, else from config.json. Whether it is added to a text: the
post_processor of tokenizer.json says so, as in transformers 5, which passes over `add_bos_token` and
`add_eos_token` of tokenizer_config.json there; they rule only beside a lone tokenizer.model.

llama.cpp adds at most one token before a text (BOS) and one after it (EOS); other templates are refused. It has
defaults for what a file does not say, such as token 11 for the EOS of a byte-level BPE; so an EOS is demanded.
Left out: tokens for filling in the middle, which llama.cpp finds by their text.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reclm_lite.convert.bounded_files import MAX_CONFIG_BYTES, read_bounded
from reclm_lite.convert.checkpoint import optional_json
from reclm_lite.convert.vocab.table import NAMED, content, refuse, tokenizer_settings
from reclm_lite.errors import ModelError

# Where llama.cpp adds BOS unless told otherwise: (tokenizer.ggml.model, tokenizer.ggml.pre).
_BOS_BY_DEFAULT = {("llama", "default"), ("bert", "default"), ("gpt2", "llama-bpe"), ("gpt2", "tekken")}
# What llama.cpp takes for an end of generation by its text, whatever the file says,
KNOWN_ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<\uff5cend\u2581of\u2581sentence\uff5c> [e~[".split()
)
# and for a mark of what is filled in.
KNOWN_MARKS = frozenset(
    "<PRE> <SUF> <MID> <PAD> [PAD] <REPO> <reponame> <|repo_name|> <|file_sep|> <|prefix|> <|suffix|> <|middle|> "
    "<|code_prefix|> <|code_suffix|> <|code_middle|> \u2581<PRE> \u2581<SUF> \u2581<MID> "
    "<\uff5cfim\u2581begin\uff5c> <\uff5cfim\u2581hole\uff5c> <\uff5cfim\u2581end\uff5c>".split()
) | {
    f"{head}{part}{tail}"
    for part in ("prefix", "suffix", "middle", "pad", "repo")
    for head, tail in (("<|fim_", "|>"), ("<fim-", ">"), ("<fim_", ">"))
}


@dataclass(frozen=True)
class Special:
    """`ids` by kind (bos, eos, eot, eom, unk, sep, pad, mask); `add` holds the flags to write (bos, eos, sep)."""

    ids: dict[str, int]
    add: dict[str, bool]
    chat_template: str | list[dict[str, str]] | None


@dataclass
class _Around:
    """What a post_processor puts around a text: token ids, or None; `stated` are the flags it speaks of."""

    first: int | None = None
    last: int | None = None
    stated: dict[str, bool] = field(default_factory=dict)
    separator: bool | None = None


def _template_tokens(path: Path, template: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The special tokens before and after the text in a TemplateProcessing for one text."""
    at = [i for i, part in enumerate(template) if "Sequence" in part]
    if len(at) != 1 or at[0] > 1 or len(template) - at[0] > 2:
        raise refuse(path, "a post_processor with at most one token before a text and one after it", template)
    names = [(part.get("SpecialToken") or {}).get("id", "") for part in template]
    return names[: at[0]], names[at[0] + 1 :]


def _separates(template: list[dict[str, Any]], n_before: int, n_after: int, ends: set[str]) -> bool | None:
    """Whether a template for two texts puts a separator besides EOS between them; None if nothing stands there."""
    inner = template[n_before : len(template) - n_after]
    if len(inner) < 3 or "Sequence" not in inner[0] or "Sequence" not in inner[-1]:
        return None
    names = [(part.get("SpecialToken") or {}).get("id") for part in inner[1:-1]]
    return (names[0] in ends and not n_after) or (len(names) == 2 and names[1] in ends)


def _around(path: Path, processor: dict[str, Any] | None, ends: set[str], n_vocab: int) -> _Around:
    around = _Around()
    if not processor:
        return around
    parts = processor.get("processors", []) if processor.get("type") == "Sequence" else [processor]
    for part in parts:
        kind = part.get("type")
        if kind == "ByteLevel":
            around.stated = {"bos": False, "eos": False} | around.stated
        elif kind in ("RobertaProcessing", "BertProcessing"):
            around.first, around.last = part["cls"][1], part["sep"][1]
            around.stated |= {"bos": True, "eos": True}
            around.separator = True if kind == "RobertaProcessing" else around.separator
        elif kind == "TemplateProcessing":
            before, after = _template_tokens(path, part["single"])
            for side, names in (("first", before), ("last", after)):
                for name in names:
                    ids = part["special_tokens"][name]["ids"]
                    if len(ids) != 1 or type(ids[0]) is not int:
                        raise refuse(path, f"one id for {name!r} in the post_processor", ids)
                    setattr(around, side, ids[0])
                    around.stated["bos" if side == "first" else "eos"] = True
            around.separator = _separates(part.get("pair") or [], len(before), len(after), ends)
        else:
            raise refuse(path, "a post_processor of TemplateProcessing, BertProcessing or ByteLevel", kind)
    for token_id in (around.first, around.last):
        if token_id is not None and (type(token_id) is not int or not 0 <= token_id < n_vocab):
            raise refuse(path, f"ids of 0 to {n_vocab - 1} in the post_processor", token_id)
    return around


def _ids(
    directory: Path,
    settings: dict[str, Any],
    config: dict[str, Any],
    id_of: dict[str, int],
    known_ids: dict[str, int],
    n_vocab: int,
) -> dict[str, int]:
    """Ids by kind: by the token's text, else by config.json, else by tokenizer.model; checked to be in range."""
    text_config = config.get("text_config") or {}
    ids: dict[str, int] = {}
    for kind in NAMED:
        token = content(settings.get(f"{kind}_token"))
        if token is not None and token in id_of:
            ids[kind] = id_of[token]
            continue
        if token:
            raise refuse(directory / "tokenizer_config.json", f"{kind}_token to be in the vocabulary", token)
        found = config.get(f"{kind}_token_id", text_config.get(f"{kind}_token_id", known_ids.get(kind)))
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, bool) or not isinstance(found, int) or (kind == "pad" and found == -1):
            continue
        if not 0 <= found < n_vocab:
            raise ModelError(
                f"expected {kind}_token_id of {directory / 'config.json'} in 0 to {n_vocab - 1}, found {found}; "
                "correct it, or take the tokenizer of this checkpoint"
            )
        ids[kind] = found
    return ids


def _further_ends(directory: Path, config: dict[str, Any], tokens: list[str], ids: dict[str, int]) -> None:
    """Gives the ends of generation that llama.cpp would not know a place in `ids`, as eot and eom."""
    ends: list[int] = []
    for source in (optional_json(directory / "generation_config.json"), config):
        value = source.get("eos_token_id")
        ends += value if isinstance(value, list) else [value] if isinstance(value, int) else []
    for end in dict.fromkeys(ends):
        if not 0 <= end < len(tokens):
            raise ModelError(
                f"expected every eos_token_id in 0 to {len(tokens) - 1}, found {end}; correct it in {directory}"
            )
        if "eos" not in ids:
            ids["eos"] = end
        if end in (ids["eos"], ids.get("eot"), ids.get("eom")) or tokens[end] in KNOWN_ENDS:
            continue
        place = next((kind for kind in ("eot", "eom") if kind not in ids), None)
        if place is None:
            raise ModelError(
                "expected at most two ends of generation beyond EOS that llama.cpp does not know by name, "
                f"found {tokens[end]!r} besides; remove it from eos_token_id in {directory / 'generation_config.json'}"
            )
        ids[place] = end


def read_chat_template(directory: Path, settings: dict[str, Any]) -> str | list[dict[str, str]] | None:
    """The chat template, or a list of named ones. As in transformers, chat_template.jinja rules over
    tokenizer_config.json; chat_template.json is for checkpoints that have neither.
    """
    template = _stored_template(directory, settings)
    entries = [{"name": "default", "template": template}] if isinstance(template, str) else template
    for entry in entries or []:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "template")):
            raise refuse(directory, "chat_template as text or a list of named texts", entry)
        if "\0" in entry["template"] or not _is_unicode(entry["name"] + entry["template"]):
            raise refuse(directory, f"a chat template {entry['name']!r} of whole Unicode characters", "others, or NUL")
    return template


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _stored_template(directory: Path, settings: dict[str, Any]) -> Any:
    file = directory / "chat_template.jinja"
    named = sorted((directory / "additional_chat_templates").glob("*.jinja"))
    template = settings.get("chat_template")
    if file.is_file() or named:
        files = {"default": file} if file.is_file() else {}
        files |= {path.stem: path for path in named}
        try:
            texts = {name: read_bounded(path, MAX_CONFIG_BYTES).decode() for name, path in files.items()}
        except UnicodeDecodeError as error:
            raise refuse(directory, "chat templates in UTF-8", str(error)) from error
        if set(texts) == {"default"}:
            return texts["default"]
        return [{"name": name, "template": text} for name, text in texts.items()]
    if template is None and (directory / "chat_template.json").is_file():
        template = optional_json(directory / "chat_template.json").get("chat_template")
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    if template is not None and not isinstance(template, str | list):
        raise refuse(directory, "chat_template as text or a list of named texts", type(template).__name__)
    return template


def read_special(
    directory: Path,
    tokenizer: dict[str, Any],
    config: dict[str, Any],
    *,
    model: str,
    pre: str,
    tokens: list[str],
    id_of: dict[str, int],
    known_ids: dict[str, int],
) -> Special:
    """Special tokens of a checkpoint directory, for a vocabulary of llama.cpp's kind `model` and `pre`.

    `tokenizer` is the content of tokenizer.json, {} without one; `id_of` gives ids by a token's own text;
    `known_ids` are those that tokenizer.model names.
    """
    path = directory / "tokenizer.json"
    settings = tokenizer_settings(directory)
    ids = _ids(directory, settings, config, id_of, known_ids, len(tokens))
    ids.setdefault("bos", ids.get("cls", -1))
    ids.setdefault("eos", ids.get("sep", -1))
    ids = {kind: token_id for kind, token_id in ids.items() if token_id >= 0}
    cls = ids.pop("cls", None)
    texts = {content(settings.get(f"{kind}_token")) for kind in ("sep", "eos")}
    around = _around(path, tokenizer.get("post_processor"), {text for text in texts if text}, len(tokens))
    stated = {kind: settings[f"add_{kind}_token"] for kind in ("bos", "eos") if f"add_{kind}_token" in settings}
    if not tokenizer:
        if not stated:
            raise refuse(
                directory / "tokenizer_config.json",
                "add_bos_token and add_eos_token as true or false beside a lone tokenizer.model",
                "neither",
            )
        around.first = ids.get("bos") if stated.get("bos") else None
        around.last = ids.get("eos") if stated.get("eos") else None
    if around.last is not None and around.last != ids.get("eos"):  # llama.cpp adds EOS, so that it must be
        if "eos" in ids:
            ids["eot"] = ids["eos"]
        ids["eos"] = around.last
    _further_ends(directory, config, tokens, ids)
    if "eos" not in ids:
        raise refuse(directory / "tokenizer_config.json", "eos_token, the token that ends a text", "none")
    if around.first is not None and "bos" not in ids:
        ids["bos"] = around.first
    if around.first is not None and around.first not in (ids["bos"], cls):
        raise refuse(path, f"the post_processor to begin with BOS, {tokens[ids['bos']]!r}", tokens[around.first])
    if model == "bert" and around.last is not None:
        ids.setdefault("sep", around.last)  # which is what llama.cpp puts after a text
    if model == "bert" and (around.first, around.last, around.last) != (ids.get("bos"), ids["eos"], ids.get("sep")):
        raise refuse(
            path, "a post_processor that puts [CLS] before and [SEP] after a text", tokenizer.get("post_processor")
        )

    add = {"bos": around.first is not None, "eos": around.last is not None}
    defaults = {"bos": (model, pre) in _BOS_BY_DEFAULT, "eos": False}
    add = {
        kind: flag for kind, flag in add.items() if kind in around.stated or kind in stated or flag != defaults[kind]
    }
    if around.separator is not None:
        add["sep"] = around.separator
    return Special(ids, add, read_chat_template(directory, settings))
