"""The text encoder gives the original model's vectors, one text at a time, whatever the company."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from reclm_lite.assets import encoder_path, profile_model_path
from reclm_lite.errors import ModelError
from reclm_lite.files import file_sha256
from reclm_lite.text import expand
from reclm_lite.text.encoder import TextEncoder

DATA = Path(__file__).parents[1] / "data"
TEXTS = json.loads((DATA / "encoder_texts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def encoder():
    with TextEncoder(n_threads=2) as encoder:
        yield encoder


def test_vectors_are_those_of_sentence_transformers(encoder: TextEncoder) -> None:
    expected = load_file(DATA / "encoder_reference.safetensors")["vectors"]
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.dim) == expected.shape
    assert vectors.dtype == np.float32
    assert (vectors * expected).sum(axis=1).min() >= 0.999
    assert encoder.last_counts.n_truncated == 2  # the two long ones, cut at 256 word pieces as the original does


def test_vectors_are_those_of_the_original_weights(encoder: TextEncoder) -> None:
    checkpoint = os.environ.get("RECLM_MINILM_DIR")
    if not checkpoint:
        pytest.skip("no original weights: set RECLM_MINILM_DIR to the checkpoint of all-MiniLM-L6-v2")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
            inputs = tokenizer(text, truncation=True, max_length=256, padding=False, return_tensors="pt")
            expected = model(**inputs).last_hidden_state[0].mean(0).numpy()
            assert float(vector @ expected / np.linalg.norm(expected)) >= 0.999, text


def test_bundled_model_is_the_one_its_provenance_names() -> None:
    provenance = json.loads(encoder_path().with_suffix(".json").read_text())
    assert provenance["sha256"] == file_sha256(encoder_path())
    assert provenance["size_bytes"] == encoder_path().stat().st_size < 30_000_000
    assert provenance["licence"] == "Apache-2.0"
    assert provenance["parity"]["min_cosine"] >= 0.999


def test_tiny_bert_agrees_with_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from checkpoints import CORPUS, save_bert

    from reclm_lite.convert.export_checkpoint import export_checkpoint

    checkpoint = save_bert(tmp_path / "checkpoint")
    export_checkpoint(checkpoint, tmp_path / "model.gguf", "f32")
    texts = [text.encode("ascii", "ignore").decode() for text in CORPUS[:6]] + ["word " * 100]
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.BertModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with TextEncoder(tmp_path / "model.gguf", n_threads=1) as encoder, torch.no_grad():
        assert encoder.max_tokens == 64
        for text, vector in zip(texts, encoder.encode(texts), strict=True):
            inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            assert inputs["input_ids"][0].tolist() == encoder.tokenize(text)[0]
            expected = model(**inputs).last_hidden_state[0].mean(0).numpy()
            # llama.cpp's GELU is the tanh approximation, read from a float16 table.
            assert float(vector @ expected / np.linalg.norm(expected)) > 0.9999


def test_vectors_do_not_depend_on_order_or_threads(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)
    np.testing.assert_array_equal(together, encoder.encode(TEXTS[::-1])[::-1])
    with TextEncoder(n_threads=1) as alone:
        np.testing.assert_array_equal(together, alone.encode(TEXTS))


def test_company_in_a_batch_changes_less_than_quantization_does(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)
    apart = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert (together * apart).sum(axis=1).min() > 0.9998


def test_many_short_texts_share_batches(encoder: TextEncoder) -> None:
    """More texts than a batch has sequences, and a rest that does not fill a tile."""
    texts = [f"short title {i}" for i in range(40)]
    vectors = encoder.encode(texts)
    assert float(vectors[17] @ encoder.encode([texts[17]])[0]) > 0.9998
    assert (vectors @ vectors.T)[np.triu_indices(40, 1)].max() < 0.9999


def test_text_without_content_gets_the_zero_vector_and_is_counted(encoder: TextEncoder) -> None:
    vectors = encoder.encode(["", "  \n\t ", "\u0007", "film"])
    np.testing.assert_array_equal(vectors[:3], 0)
    assert np.linalg.norm(vectors[3]) == pytest.approx(1, abs=1e-6)
    assert encoder.last_counts.n_empty == 3


def test_equal_texts_are_encoded_once(encoder: TextEncoder) -> None:
    vectors = encoder.encode(["jazz", "film", "jazz", "jazz"])
    assert (encoder.last_counts.n_texts, encoder.last_counts.n_encoded) == (4, 2)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(vectors[0], vectors[3])


def test_no_texts_give_no_rows(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_one_str_is_not_a_sequence_of_texts(encoder: TextEncoder) -> None:
    with pytest.raises(TypeError, match="found one str"):
        encoder.encode("film")


def test_long_text_is_cut_and_keeps_its_closing_token(encoder: TextEncoder) -> None:
    tokens, truncated = encoder.tokenize("word " * 1000)
    assert truncated
    assert len(tokens) == 256
    assert (tokens[0], tokens[-1]) == (101, 102)
    whole, truncated = encoder.tokenize("word " * 254)
    assert (len(whole), truncated) == (256, False)
    assert encoder.tokenize("word " * 1_000_000)[0] == tokens


def test_special_tokens_and_lone_surrogates_in_a_text_are_harmless(encoder: TextEncoder) -> None:
    vectors = encoder.encode(["a [SEP] b [CLS]", "half a \ud83d pair", "nul \x00 byte"])
    assert np.isfinite(vectors).all()
    assert encoder.tokenize("a [SEP] b")[0].count(102) == 1


def test_progress_counts_up_to_all_texts_in_the_calling_thread(encoder: TextEncoder) -> None:
    seen: list[int] = []
    callers: set[int] = set()

    def progress(n_done: int) -> None:
        seen.append(n_done)
        callers.add(threading.get_ident())

    encoder.encode([*TEXTS[:10], TEXTS[0], ""], progress=progress)
    assert seen == sorted(seen)
    assert seen[-1] == 12
    assert callers == {threading.get_ident()}


def test_interrupt_in_progress_stops_and_leaves_the_encoder_usable(encoder: TextEncoder) -> None:
    def interrupt(n_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode(TEXTS, progress=interrupt)
    assert encoder.encode(["film"]).shape == (1, 384)


def test_identity_names_what_vectors_must_agree_on(encoder: TextEncoder) -> None:
    identity = encoder.identity
    assert identity["name"] == "all-MiniLM-L6-v2"
    assert identity["sha256"] == file_sha256(encoder_path())
    assert (identity["pooling"], identity["dim"], identity["max_tokens"]) == ("mean", 384, 256)


def test_model_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    from tiny_llama import write_tiny_llama

    with pytest.raises(ModelError, match="expected an embedding model"):
        TextEncoder(write_tiny_llama(tmp_path / "llama.gguf"))


def test_closed_encoder_refuses() -> None:
    encoder = TextEncoder(n_threads=1, max_tokens=32)
    encoder.close()
    encoder.close()
    with pytest.raises(ModelError, match="has been closed"):
        encoder.encode(["film"])


def test_missing_asset_names_its_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("reclm_lite.assets._HERE", tmp_path)
    with pytest.raises(ModelError, match="recipes/encoder.py"):
        encoder_path()
    with pytest.raises(ModelError, match="recipes/export_profile_model.py"):
        profile_model_path()


@pytest.mark.parametrize("to", ["bf16", "f16"])
def test_expanded_weights_give_the_same_vectors_and_identity(to, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = ["Patriots rally past Jets", "A soup of roasted squash and sage", "Comet seen from the southern sky"]
    with TextEncoder(expand="") as stored, TextEncoder(expand=to) as copy:
        assert stored.identity == copy.identity
        agreement = (stored.encode(texts) * copy.encode(texts)).sum(axis=1)
    assert agreement.min() > 0.998
    (file,) = (tmp_path / "reclm-lite").iterdir()
    assert file.name.endswith(f"-{to}.gguf")


def test_encoder_works_where_no_copy_can_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with TextEncoder(expand="f16") as encoder:
        assert encoder.encode(["a soup"]).shape == (1, encoder.dim)


@pytest.mark.parametrize(
    ("flags", "to"),
    [
        ("avx2 fma f16c", "f16"),
        ("avx2 fma f16c avx_vnni", None),
        ("avx2 fma f16c avx512f avx512_vnni", None),
        ("avx2 fma f16c avx512f avx512_vnni avx512_bf16", "bf16"),
        ("sse4_2", None),
        ("asimd", None),
    ],
)
def test_weights_are_expanded_to_what_the_processor_is_fastest_on(flags, to, monkeypatch):
    monkeypatch.setattr(expand.Path, "read_text", lambda self, **_: f"flags : {flags}\n")
    assert expand.faster_type() == to
