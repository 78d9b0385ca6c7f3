"""Vocabularies: the same token ids in llama.cpp as in the checkpoint's tokenizer, or a refusal that names the step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers_made as made

from reclm_lite.convert.parity.strings import texts
from reclm_lite.convert.parity.tokens import TokenReport, compare_token_ids, reference_tokenizer
from reclm_lite.convert.vocab import Vocabulary, bpe, read_vocabulary
from reclm_lite.convert.vocab.differences import Differences
from reclm_lite.convert.vocab.spm_file import read_sentencepiece
from reclm_lite.errors import ModelError
from reclm_lite.runtime import load_model

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

ANY = ("bpe", "sentencepiece", "wordpiece")
STRINGS = texts()[::2]
NAMES = {name: (steps, whole) for steps, names in bpe.PRE_TOKENIZERS.items() for whole, name in names.items()}


def steps_of(patterns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The pre_tokenizer that checkpoints have for these splits."""
    digits = {"type": "Digits", "individual_digits": True}
    splits = [digits if p == r"\p{N}" else made.split(p) for p in patterns if p != bpe.GPT2]
    return [*splits, made.byte_level(bpe.GPT2 in patterns)]


def read(directory: Path) -> Vocabulary:
    return read_vocabulary(directory, ANY, json.loads((directory / "config.json").read_text()))


def ids_report(directory: Path) -> TokenReport:
    made.vocabulary_gguf(directory, directory / "vocab.gguf")
    reference = reference_tokenizer(directory)
    assert reference is not None
    with load_model(directory / "vocab.gguf", vocab_only=True) as model:
        return compare_token_ids(model, reference, STRINGS)


def edit(directory: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads((directory / name).read_text())
    change(content)
    (directory / name).write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tokenizer of each kind; tests that change one copy it first."""
    root = tmp_path_factory.mktemp("trained")
    qwen2, llama3 = steps_of((bpe.QWEN2,)), steps_of((bpe.LLAMA3,))
    return {
        "bpe": made.save_bpe(root / "bpe", qwen2, normalizer={"type": "NFC"}, add_bos=False),
        "llama3": made.save_bpe(root / "llama3", llama3, ignore_merges=True),
        "sentencepiece": made.save_sentencepiece(root / "spm", made.LEGACY),
        "lone model": made.save_sentencepiece(
            root / "lone", made.LEGACY, files=("tokenizer.model",), tokenizer_class="LlamaTokenizer"
        ),
        "lone json": made.save_sentencepiece(root / "json", made.GEMMA, files=("tokenizer.json",)),
        "wordpiece": made.save_wordpiece(root / "wordpiece"),
    }


@pytest.fixture
def copied(trained: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(trained[kind], tmp_path / "copy", dirs_exist_ok=True))


@pytest.mark.parametrize("name", NAMES)
def test_byte_level_ids_are_identical_for_every_pre_tokenizer(tmp_path: Path, name: str) -> None:
    patterns, refusal = NAMES[name]
    directory = made.save_bpe(tmp_path / "made", steps_of(patterns), ignore_merges=refusal, n_vocab=1000)
    assert read(directory).pre == name
    report = ids_report(directory)
    assert report.mismatches == []
    by_case = {"letters whose case or marks llama.cpp's pre-tokenizer does not know"}
    assert set(report.by_design) == (by_case if name in bpe.APPROXIMATED else set())
    assert report.n_texts > 1000


SPACE = "a space that Metaspace does not put before the text, and llama.cpp does"


@pytest.mark.parametrize(
    ("structure", "files", "tokenizer_class", "known"),
    [
        (made.LEGACY, "json model", "PreTrainedTokenizerFast", set()),
        (made.LEGACY, "json", "PreTrainedTokenizerFast", set()),
        (made.GEMMA, "json model", "PreTrainedTokenizerFast", set()),
        (made.GEMMA, "json", "PreTrainedTokenizerFast", set()),
        (made.metaspace("never"), "json", "PreTrainedTokenizerFast", set()),
        (made.metaspace("always"), "json", "PreTrainedTokenizerFast", {SPACE}),
        (made.metaspace("first"), "json model", "LlamaTokenizer", {SPACE}),
        (
            made.LEGACY,
            "model",
            "LlamaTokenizer",
            {SPACE, "pieces that transformers merges by id where the model has scores"},
        ),
    ],
)
def test_sentencepiece_ids_are_identical(
    tmp_path: Path, structure: dict[str, Any], files: str, tokenizer_class: str, known: set[str]
) -> None:
    names = tuple(f"tokenizer.{name}" for name in files.split())
    further = (("[INST]", 3),)
    directory = made.save_sentencepiece(
        tmp_path / "made", structure, files=names, tokenizer_class=tokenizer_class, further=further, padded_to=2000
    )
    report = ids_report(directory)
    assert report.mismatches == []
    assert set(report.by_design) <= known
    assert report.n_texts > 950


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_ids_are_identical(tmp_path: Path, lowercase: bool) -> None:
    report = ids_report(made.save_wordpiece(tmp_path / "made", lowercase=lowercase))
    assert report.mismatches == []
    assert report.n_texts > 1000


def test_llama_cpp_merges_as_sentencepiece_itself(trained: dict[str, Path], tmp_path: Path) -> None:
    package = pytest.importorskip("sentencepiece")
    made.vocabulary_gguf(trained["lone model"], tmp_path / "vocab.gguf")
    own = package.SentencePieceProcessor(model_file=str(trained["lone model"] / "tokenizer.model"))
    with load_model(tmp_path / "vocab.gguf", vocab_only=True) as model:
        # Without "</s>" and the like: llama.cpp merges pieces of plain text even into a control token.
        plain = [text for text in STRINGS if not any(odd in text for odd in ("\0", "<tool>", "s>"))]
        found = [model.tokenize(text, add_special=False, parse_special=False) for text in plain]
    assert found == [own.encode(text) for text in plain]


def test_nfc_is_the_only_difference_of_a_tokenizer_with_nfc(trained: dict[str, Path]) -> None:
    report = ids_report(trained["bpe"])
    assert report.mismatches == []
    assert set(report.by_design) == {"text not in NFC: llama.cpp does not normalize"}


def test_a_wrong_name_of_the_pre_tokenizer_excuses_no_text(trained: dict[str, Path]) -> None:
    tokenizer = json.loads((trained["bpe"] / "tokenizer.json").read_text())
    wrong = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken"}
    assert Differences(trained["bpe"], tokenizer, wrong).reason("écoleÉcole") is None
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = bpe.TEKKEN
    assert "case or marks" in Differences(trained["bpe"], tokenizer, wrong).reason("écoleÉcole")


def test_merges_as_strings_and_as_pairs_are_the_same(trained: dict[str, Path], copied) -> None:
    def as_strings(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]

    assert read(edit(copied("bpe"), "tokenizer.json", as_strings)).merges == read(trained["bpe"]).merges


def test_a_merge_of_raw_spaces_never_happens_and_is_left_out(copied, trained: dict[str, Path]) -> None:
    def add(tokenizer: dict[str, Any]) -> None:
        vocab = tokenizer["model"]["vocab"]
        vocab |= {" ": len(vocab) + 10, "a ": len(vocab) + 11}
        tokenizer["model"]["merges"].insert(0, ["a", " "])

    directory = edit(copied("bpe"), "tokenizer.json", add)
    edit(directory, "tokenizer.json", lambda t: t.update(added_tokens=[]))
    edit(directory, "tokenizer_config.json", lambda c: [c.pop(key) for key in ("bos_token", "eos_token", "pad_token")])
    edit(directory, "config.json", lambda c: c.update(eos_token_id=0, vocab_size=4000))
    assert read(directory).merges == read(trained["bpe"]).merges


def test_ignore_merges_matters_only_where_merges_do_not_give_a_token(copied) -> None:
    directory = edit(copied("bpe"), "tokenizer.json", lambda t: t["model"].update(ignore_merges=True))
    assert read(directory).pre == "qwen2"  # every token is what merging its characters gives

    def add_unreached(tokenizer: dict[str, Any]) -> None:
        vocab = tokenizer["model"]["vocab"]
        vocab["zq\u0120zq"] = len(vocab)
        tokenizer["added_tokens"] = []

    with pytest.raises(ModelError, match=r"tokens that merges give in .* found 'zq\u0120zq'"):
        read(edit(directory, "tokenizer.json", add_unreached))


def test_a_small_vocabulary_is_filled_up_and_a_large_one_refused(copied) -> None:
    directory = copied("bpe")
    n_vocab = json.loads((directory / "config.json").read_text())["vocab_size"]
    edit(directory, "config.json", lambda c: c.update(vocab_size=n_vocab + 2))
    assert read(directory).tokens[-2:] == [f"[PAD{n_vocab}]", f"[PAD{n_vocab + 1}]"]
    edit(directory, "config.json", lambda c: c.update(vocab_size=n_vocab - 1))
    with pytest.raises(ModelError, match=rf"below vocab_size {n_vocab - 1} .* found {n_vocab - 1}: .* larger"):
        read(directory)


def normalizer(step: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda tokenizer: tokenizer.update(normalizer=step)


def pre_tokenizer(*steps: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda tokenizer: tokenizer.update(pre_tokenizer={"type": "Sequence", "pretokenizers": list(steps)})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("bpe", pre_tokenizer(made.split(r"\w+"), made.byte_level(False)), "calls one of dbrx, .*tekken in .*w"),
        ("bpe", pre_tokenizer({"type": "Whitespace"}), r"ends in ByteLevel .*\(step 1 is another\).*Whitespace"),
        ("bpe", pre_tokenizer(made.split(bpe.QWEN2)), "ends in ByteLevel"),
        ("bpe", pre_tokenizer(made.split(bpe.QWEN2, "Removed"), made.byte_level(False)), "step 1 is another"),
        ("bpe", pre_tokenizer(made.byte_level(True, add_prefix_space=True)), "without prefix space"),
        ("bpe", normalizer({"type": "Lowercase"}), "no normalizer but NFC .*Lowercase"),
        ("bpe", lambda t: t["model"].update(dropout=0.1), "without dropout"),
        ("bpe", lambda t: t["model"]["vocab"].pop("a"), "tokens for all bytes"),
        ("bpe", lambda t: t["model"]["merges"].append(["zz", "qq"]), "merges of tokens into a token"),
        ("bpe", lambda t: t["model"]["merges"].append("a b c"), "merges of two parts"),
        ("bpe", lambda t: t["added_tokens"][0].update(id=5000), "which tokenizers reads as"),
        ("bpe", lambda t: t["model"].update(type="Unigram", vocab=[["a", 0.0]]), "found 'Unigram'"),
        ("bpe", lambda t: t["model"].update(merges=[7]), "layout that transformers writes"),
        ("bpe", lambda t: t.update(post_processor={"type": "Odd"}), "a post_processor of TemplateProcessing"),
        ("lone json", normalizer({"type": "NFKC"}), "the normalizer Prepend and Replace"),
        ("lone json", lambda t: t["model"].update(merges=t["model"]["merges"][:-1]), "a merge for every pair"),
        ("lone json", lambda t: t["model"]["merges"].sort(), "at one place of the list"),
        ("sentencepiece", lambda t: t["model"]["merges"].reverse(), "order of tokenizer.model's scores|at one place"),
        ("wordpiece", lambda t: t["normalizer"].update(clean_text=False), "clean_text"),
        ("wordpiece", lambda t: t["model"].update(continuing_subword_prefix="@@"), "prefix ##"),
        ("wordpiece", lambda t: t["post_processor"]["single"].pop(), r"\[CLS\] before and \[SEP\] after"),
    ],
)
def test_what_llama_cpp_would_run_otherwise_is_refused(copied, kind: str, change, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(edit(copied(kind), "tokenizer.json", change))


def test_another_kind_than_the_family_has_is_refused(trained: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="kind bpe, as this model family has"):
        read_vocabulary(trained["wordpiece"], ("bpe",), {"vocab_size": 900})


def test_a_missing_tokenizer_says_which_files_would_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json, or tokenizer\.model .* found no tokenizer"):
        read_vocabulary(tmp_path, ANY, {"vocab_size": 10})
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(ModelError, match=r"found vocab\.txt; .*save_pretrained"):
        read_vocabulary(tmp_path, ANY, {"vocab_size": 10})


def test_tokens_that_would_abort_llama_cpp_are_refused(copied) -> None:
    directory = copied("bpe")
    edit(directory, "config.json", lambda c: c.update(vocab_size=4000))
    n_vocab = len(json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"])

    def same_text(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["vocab"]["[PAD3000]"] = 2000

    with pytest.raises(ModelError, match=r"every token once .*'\[PAD3000\]' as 2000 and 3000"):
        read(_without_added(edit(directory, "tokenizer.json", same_text)))

    def nul(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["vocab"] = {**tokenizer["model"]["vocab"], "x\0": n_vocab}
        tokenizer["model"]["vocab"].pop("[PAD3000]")

    with pytest.raises(ModelError, match="tokens without NUL"):
        read(_without_added(edit(directory, "tokenizer.json", nul)))


def _without_added(directory: Path) -> Path:
    edit(directory, "tokenizer.json", lambda t: t.update(added_tokens=[]))
    edit(
        directory, "tokenizer_config.json", lambda c: [c.pop(k, None) for k in ("bos_token", "eos_token", "pad_token")]
    )
    return edit(directory, "config.json", lambda c: c.update(eos_token_id=0))


# tokenizer.model


def test_tokenizer_model_is_read_as_the_sentencepiece_package_reads_it(tmp_path: Path) -> None:
    package = pytest.importorskip("sentencepiece")
    lines = [text for text in made.corpus() if "\n" not in text and text.strip()]
    prefix = str(tmp_path / "tokenizer")
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2}
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=prefix,
        model_type="bpe",
        vocab_size=1500,
        byte_fallback=True,
        character_coverage=0.98,
        user_defined_symbols=["<tool>"],
        num_threads=1,
        **options,
    )
    read_here = read_sentencepiece(tmp_path / "tokenizer.model")
    theirs = package.SentencePieceProcessor(model_file=prefix + ".model")
    assert [piece[:2] for piece in read_here.pieces] == [
        (theirs.id_to_piece(i), theirs.get_score(i)) for i in range(theirs.vocab_size())
    ]
    assert [piece[2] == 6 for piece in read_here.pieces] == [theirs.is_byte(i) for i in range(theirs.vocab_size())]
    assert (read_here.model_type, read_here.normalizer, read_here.has_charsmap) == ("BPE", "identity", False)
    assert read_here.special_ids == {"unk": 0, "bos": 1, "eos": 2}


def test_what_is_no_whole_sentencepiece_model_is_refused(copied) -> None:
    path = copied("lone model") / "tokenizer.model"
    whole = path.read_bytes()
    for content in (b"IQ== 0\nIg== 1\n", whole[: len(whole) // 2], b"", b"\xff" * 40):
        path.write_bytes(content)
        refusal = r"tokenizer\.model is not a complete SentencePiece model|found no pieces in it"
        with pytest.raises(ModelError, match=refusal):
            read(path.parent)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": 1}, "of type BPE .* found 'Unigram'"),
        ({"charsmap": b"abc", "name": b"nmt_nfkc"}, "does not normalize .* found 'nmt_nfkc'"),
        ({"extra_spaces": True}, "keeps all spaces"),
    ],
)
def test_sentencepiece_settings_that_llama_cpp_ignores_are_refused(copied, settings: dict, message: str) -> None:
    path = copied("lone model") / "tokenizer.model"
    path.write_bytes(made.sentencepiece_file(made.pieces_of_sentencepiece(), **settings))
    with pytest.raises(ModelError, match=message):
        read(path.parent)


def test_tokenizer_files_that_disagree_are_refused(copied) -> None:
    path = copied("sentencepiece") / "tokenizer.model"
    pieces = made.pieces_of_sentencepiece()
    pieces[300] = ("other", *pieces[300][1:])
    path.write_bytes(made.sentencepiece_file(pieces))
    with pytest.raises(ModelError, match=r"token 300 to be 'other' as in tokenizer\.model"):
        read(path.parent)


def test_a_lone_tokenizer_model_must_say_whether_bos_is_added(copied) -> None:
    directory = copied("lone model")
    edit(directory, "tokenizer_config.json", lambda c: [c.pop(key) for key in ("add_bos_token", "add_eos_token")])
    with pytest.raises(ModelError, match="add_bos_token and add_eos_token as true or false"):
        read(directory)


# Special tokens


@pytest.mark.parametrize("processor", ["bos", "bos eos", "none", "byte level"])
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False}, {"add_bos_token": True}, {"add_eos_token": True}])
def test_bos_and_eos_are_added_as_in_transformers(copied, processor: str, flags: dict[str, bool]) -> None:
    directory = copied("llama3")
    ids = {t["content"]: t["id"] for t in json.loads((directory / "tokenizer.json").read_text())["added_tokens"]}
    bos, eos = (made.BOS, ids[made.BOS]), (made.EOS, ids[made.EOS])
    step = {"bos": made.template(bos), "bos eos": made.template(bos, eos), "byte level": made.byte_level(False)}
    edit(directory, "tokenizer.json", lambda t: t.update(post_processor=step.get(processor)))
    edit(directory, "tokenizer_config.json", lambda c: c.update(flags))
    made.vocabulary_gguf(directory, directory / "vocab.gguf")
    reference = reference_tokenizer(directory)
    with load_model(directory / "vocab.gguf", vocab_only=True) as model:
        expected = reference.encode("a text", add_special=True)
        assert model.tokenize("a text", add_special=True) == expected


def test_another_token_after_a_text_than_eos_becomes_eos(copied) -> None:
    directory = copied("bpe")
    ids = {t["content"]: t["id"] for t in json.loads((directory / "tokenizer.json").read_text())["added_tokens"]}
    last = made.template(None, (made.END_OF_TURN, ids[made.END_OF_TURN]))
    special = read(edit(directory, "tokenizer.json", lambda t: t.update(post_processor=last))).special
    assert (special.ids["eos"], special.ids["eot"]) == (ids[made.END_OF_TURN], ids[made.EOS])
    assert special.add["eos"] is True


def test_ends_of_generation_that_llama_cpp_does_not_know_are_written(copied) -> None:
    directory = copied("bpe")
    known = read(directory)
    ids = {token: i for i, token in enumerate(known.tokens)}
    ends = [ids[made.EOS], ids[made.END_OF_TURN], ids["<tool>"]]  # <|im_end|> llama.cpp knows by its text
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert read(directory).special.ids == known.special.ids | {"eot": ids["<tool>"]}
    made.vocabulary_gguf(directory, directory / "vocab.gguf")
    with load_model(directory / "vocab.gguf", vocab_only=True) as model:
        assert all(model.lib.llama_vocab_is_eog(model.vocab, end) for end in ends)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6, 7]}))
    with pytest.raises(ModelError, match="at most two ends of generation"):
        read(directory)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"bos_token_id": 99999}, "bos_token_id of .* found 99999"),
        ("config.json", {"mask_token_id": -3}, "mask_token_id of .* found -3"),
        ("config.json", {"eos_token_id": [1, 99999]}, "every eos_token_id in .* found 99999"),
        ("tokenizer_config.json", {"eos_token": "<none such>"}, "eos_token to be in the vocabulary"),
        ("tokenizer_config.json", {"eos_token": None}, "eos_token, the token that ends a text"),
    ],
)
def test_special_ids_that_are_none_are_refused(copied, name: str, change: dict[str, Any], message: str) -> None:
    directory = edit(copied("bpe"), "tokenizer_config.json", lambda c: c.update(bos_token=None))
    with pytest.raises(ModelError, match=message):
        read(edit(directory, name, lambda c: c.update(change)))


def test_chat_templates_are_those_that_transformers_takes(copied) -> None:
    directory = copied("bpe")
    assert read(directory).special.chat_template == made.TEMPLATE
    (directory / "chat_template.jinja").write_text("from the file")
    assert read(directory).special.chat_template == "from the file"
    assert reference_tokenizer(directory).backend.chat_template == "from the file"
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    named = read(directory).special.chat_template
    assert {entry["name"]: entry["template"] for entry in named} == {
        "default": "from the file",
        "tool_use": "with tools",
    }
    assert reference_tokenizer(directory).backend.chat_template == {
        "default": "from the file",
        "tool_use": "with tools",
    }
    made.vocabulary_gguf(directory, directory / "vocab.gguf")
    with load_model(directory / "vocab.gguf", vocab_only=True) as model:
        assert model.gguf.metadata["tokenizer.chat_template"] == "from the file"
        assert model.gguf.metadata["tokenizer.chat_template.tool_use"] == "with tools"


def test_a_template_in_chat_template_json_is_taken_where_there_is_no_other(copied) -> None:
    directory = copied("bpe")
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert read(directory).special.chat_template == made.TEMPLATE
    edit(directory, "tokenizer_config.json", lambda c: c.pop("chat_template"))
    assert read(directory).special.chat_template == "from json"
