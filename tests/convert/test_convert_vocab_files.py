"""Tokenizer files as checkpoints of every age have them; damaged ones are refused in a sentence, never with a crash."""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers_made as made

from reclm_lite.convert.parity.strings import texts
from reclm_lite.convert.parity.tokens import compare_token_ids, reference_tokenizer
from reclm_lite.convert.vocab import Vocabulary, bpe, read_vocabulary
from reclm_lite.errors import ModelError
from reclm_lite.runtime import load_model

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

ANY = ("bpe", "sentencepiece", "wordpiece")
KINDS = ("bpe", "sentencepiece", "lone model", "wordpiece")
FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "config.json")
STRINGS = texts()[::8]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("trained")
    qwen2 = [made.split(bpe.QWEN2), made.byte_level(False)]
    return {
        "bpe": made.save_bpe(root / "bpe", qwen2, n_vocab=400),
        "sentencepiece": made.save_sentencepiece(root / "spm", made.LEGACY),
        "gemma": made.save_sentencepiece(root / "gemma", made.GEMMA),
        "lone model": made.save_sentencepiece(root / "lone", made.LEGACY, files=("tokenizer.model",)),
        "wordpiece": made.save_wordpiece(root / "wordpiece", n_vocab=400),
    }


@pytest.fixture
def copied(trained: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(trained[kind], tmp_path / "copy", dirs_exist_ok=True))


def edit(directory: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads((directory / name).read_text())
    change(content)
    (directory / name).write_text(json.dumps(content))
    return directory


def read(directory: Path) -> Vocabulary:
    return read_vocabulary(directory, ANY, json.loads((directory / "config.json").read_text()))


def proved(directory: Path) -> Vocabulary:
    """The vocabulary, its token ids and special ids compared with transformers'."""
    vocabulary = made.vocabulary_gguf(directory, directory / "vocab.gguf")
    reference = reference_tokenizer(directory)
    with load_model(directory / "vocab.gguf", vocab_only=True) as model:
        report = compare_token_ids(model, reference, STRINGS)
    assert report.mismatches == [] and report.n_texts > 0.75 * len(STRINGS)
    for kind in ("bos", "eos", "unk", "sep", "pad", "mask"):
        theirs = getattr(reference.backend, f"{kind}_token_id")
        assert theirs is None or vocabulary.special.ids.get(kind) == theirs, kind
    return vocabulary


# Layouts


def as_objects(settings: dict[str, Any]) -> None:
    for key in [key for key in settings if key.endswith("_token") and isinstance(settings[key], str)]:
        settings[key] = {"__type": "AddedToken", "content": settings[key], "lstrip": False, "rstrip": False}


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "wordpiece"])
@pytest.mark.parametrize(
    "change",
    [
        as_objects,
        lambda settings: settings.update(extra_special_tokens=[], additional_special_tokens=[]),
        lambda settings: settings.update(extra_special_tokens={}, legacy=False, clean_up_tokenization_spaces=True),
        lambda settings: settings.update(chat_template=[{"name": "default", "template": "a"}]),
        lambda settings: settings.update(tokenizer_class="TokenizersBackend", add_prefix_space=False),
        lambda settings: settings.update(add_prefix_space=True),
    ],
)
def test_settings_of_every_age_give_the_ids_of_transformers(copied, kind: str, change) -> None:
    proved(edit(copied(kind), "tokenizer_config.json", change))


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "wordpiece"])
@pytest.mark.parametrize("objects", [False, True])
def test_special_tokens_map_json_names_what_tokenizer_config_json_does_not(
    trained: dict[str, Path], copied, kind: str, objects: bool
) -> None:
    directory, named = copied(kind), {}

    def move(settings: dict[str, Any]) -> None:
        keys = [key for key in settings if key.endswith("_token") and isinstance(settings[key], str)]
        named.update({key: settings.pop(key) for key in keys})

    edit(directory, "tokenizer_config.json", move)
    (directory / "special_tokens_map.json").write_text(
        json.dumps({key: {"content": text, "lstrip": False} if objects else text for key, text in named.items()})
    )
    assert proved(directory).special.ids == read(trained[kind]).special.ids


def test_special_tokens_map_json_is_passed_over_beside_an_added_tokens_decoder(copied) -> None:
    directory = copied("bpe")
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added}
    expected = read(directory).special.ids
    edit(directory, "tokenizer_config.json", lambda c: c.update(added_tokens_decoder=decoder))
    (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": made.END_OF_TURN}))
    assert proved(directory).special.ids == expected


def test_a_wordpiece_that_no_settings_come_with_has_berts_special_tokens(trained: dict[str, Path], copied) -> None:
    """As bert-base-uncased: tokenizer_config.json says no more than do_lower_case."""
    directory = copied("wordpiece")
    (directory / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert proved(directory).special.ids == read(trained["wordpiece"]).special.ids


def test_a_class_that_builds_its_own_steps_is_told_apart_from_one_that_runs_tokenizer_json(copied) -> None:
    """`add_prefix_space` counts for LlamaTokenizer only; for a class that runs tokenizer.json, that file rules."""
    directory = edit(copied("gemma"), "tokenizer_config.json", lambda c: c.update(add_prefix_space=True))
    assert proved(directory).flags == {"tokenizer.ggml.add_space_prefix": False}
    edit(directory, "tokenizer_config.json", lambda c: c.update(tokenizer_class="LlamaTokenizerFast"))
    assert proved(directory).flags == {"tokenizer.ggml.add_space_prefix": True}
    directory = edit(copied("wordpiece"), "tokenizer_config.json", lambda c: c.update(do_lower_case=False))
    proved(directory)
    edit(directory, "tokenizer_config.json", lambda c: c.update(tokenizer_class="BertTokenizer"))
    with pytest.raises(ModelError, match=r"do_lower_case of tokenizer_config.json to be True, .* found False"):
        read(directory)


# Damage


@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        ("bpe", "tokenizer.json", lambda t: t["model"].update(merges=[]), "merges, without which"),
        ("bpe", "tokenizer.json", lambda t: t["model"]["vocab"].update(a=-1), "a number from 0 as the id of 'a'"),
        ("bpe", "tokenizer.json", lambda t: t["model"]["vocab"].update(a=True), "a number from 0 as the id of 'a'"),
        ("bpe", "tokenizer.json", lambda t: t["model"]["vocab"].update(a=7), "every id once"),
        ("bpe", "tokenizer.json", lambda t: t["added_tokens"][0].update(special=None), "an id, a text and true or"),
        ("bpe", "config.json", lambda c: c.update(vocab_size=2**40), "vocab_size of 1 to 4194304 .* 1099511627776"),
        ("bpe", "config.json", lambda c: c.update(vocab_size=True), "vocab_size of 1 to 4194304 .* found True"),
        ("bpe", "tokenizer_config.json", lambda c: c.update(chat_template=7), "a list of named texts"),
        ("bpe", "tokenizer_config.json", lambda c: c.update(chat_template=["a"]), "a list of named texts"),
        ("bpe", "tokenizer_config.json", lambda c: c.update(chat_template={"a": 7}), "a list of named texts"),
        ("bpe", "tokenizer_config.json", lambda c: c.update(chat_template="\ud800"), "whole Unicode characters"),
        ("bpe", "tokenizer_config.json", lambda c: c.update(chat_template="a\0b"), "or NUL"),
        ("bpe", "tokenizer_config.json", lambda c: c.update(extra_special_tokens=["<new>"]), "found '<new>'"),
        ("bpe", "tokenizer_config.json", lambda c: c.update(extra_special_tokens=7), "extra_special_tokens as a list"),
        (
            "bpe",
            "tokenizer_config.json",
            lambda c: c.update(added_tokens_decoder={"x": {"content": "y"}}),
            "an id, a text",
        ),
        (
            "wordpiece",
            "tokenizer.json",
            lambda t: t["post_processor"]["special_tokens"]["[SEP]"].update(ids=[None]),
            "one id for",
        ),
        (
            "wordpiece",
            "tokenizer.json",
            lambda t: t["post_processor"]["special_tokens"]["[SEP]"].update(ids=[2**31]),
            "ids of",
        ),
    ],
)
def test_damage_is_refused_by_name(copied, kind: str, name: str, change, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(edit(copied(kind), name, change))


def test_a_chat_template_that_is_no_text_is_refused(copied) -> None:
    directory = copied("bpe")
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(ModelError, match="chat templates in UTF-8"):
        read(directory)


@pytest.mark.parametrize("piece", [("a", float("nan"), 1), ("a", float("inf"), 1), ("a", 0.0, 7), ("a", 0.0, 0)])
def test_a_piece_that_sentencepiece_does_not_have_is_refused(copied, piece: tuple[str, float, int]) -> None:
    path = copied("lone model") / "tokenizer.model"
    path.write_bytes(made.sentencepiece_file([*made.pieces_of_sentencepiece(), piece]))
    with pytest.raises(ModelError, match=r"is not a complete SentencePiece model \(piece 'a'"):
        read(path.parent)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where in a JSON value something stands; of long lists, the first few."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, deeper in list(inner)[:12]:
        yield from places(deeper, (*path, key))


OTHERS = (None, True, -1, 2**31, 1.5, "", "\0", "\ud800", "<s>", [], [7], ["a"], {}, {"content": "<s>"})


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_stands_in_the_files_it_is_refused_or_loads(copied, kind: str) -> None:
    """llama.cpp aborts on some bad vocabularies: that would end this process."""
    rng = random.Random(kind)
    directory = copied(kind)
    names = [name for name in FILES if (directory / name).is_file()]
    n_refused = 0
    for _ in range(60):
        name = rng.choice(names)
        whole = (directory / name).read_bytes()
        if name == "tokenizer.model":
            damaged = bytearray(whole)
            for _ in range(rng.choice((1, 8))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            (directory / name).write_bytes(damaged)
        else:
            content = json.loads(whole)
            *outer, last = rng.choice(list(places(content)))
            inner = content
            for key in outer:
                inner = inner[key]
            inner[last] = copy.deepcopy(rng.choice(OTHERS))
            (directory / name).write_text(json.dumps(content))
        try:
            made.vocabulary_gguf(directory, directory / "vocab.gguf")
            with load_model(directory / "vocab.gguf", vocab_only=True) as model:
                model.tokenize("some text 中 <s>", add_special=True, parse_special=True)
        except ModelError:
            n_refused += 1
        (directory / name).write_bytes(whole)
    assert 10 < n_refused < 60
