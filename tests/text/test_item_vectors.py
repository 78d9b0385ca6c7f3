"""Texts become vectors once; only what changed is embedded again."""

import numpy as np
import pytest
from profile_workspace import HashEncoder, make_workspace, matrix, profile, store_split, text_of

from reclm_lite.errors import MissingArtefactError, ModelError
from reclm_lite.profiles import store
from reclm_lite.profiles.profile_vectors import embed_profiles, profile_vectors_stale, profile_words
from reclm_lite.text.item_vectors import embed_items, text_hash
from reclm_lite.types import ItemText
from reclm_lite.workspace import Workspace

TRAIN = {0: [0, 1], 1: [0, 1], 2: [2], 3: [3]}
TEXT = "User identity: cook, gardener, parent; User interests: herbs, soups, tools"


@pytest.fixture
def ws(tmp_path):
    texts = [ItemText(""), *[text_of(item) for item in range(1, 22)], text_of(1), text_of(1)]
    with make_workspace(tmp_path / "ws", TRAIN, n_users=5, texts=texts) as ws:
        yield ws


def vectors(ws: Workspace, name: str) -> np.ndarray:
    return ws.load(name, made_by="test").arrays["vectors"]


def test_item_vectors_are_normalized_and_items_without_text_are_zero(ws):
    encoder = HashEncoder()
    counts = embed_items(ws, encoder)
    made = vectors(ws, "vectors/items")
    assert made.shape == (24, 8) and made.dtype == np.float32
    assert not made[0].any()
    np.testing.assert_allclose(np.linalg.norm(made[1:], axis=1), 1, rtol=1e-6)
    assert (made[1] == made[22]).all() and (made[1] == made[23]).all()
    assert len(encoder.seen) == counts.n_texts_embedded == 21
    assert counts.n_empty == 1 and len(counts.changed["vectors/items"]) == 24
    assert ws.stale_inputs("vectors/items") == []
    # Each row belongs to its text, whatever order the texts were embedded in.
    expected = HashEncoder().encode([text_of(5).joined()])[0]
    np.testing.assert_allclose(made[5], expected / np.linalg.norm(expected), rtol=1e-5)


def test_second_run_embeds_nothing(ws):
    embed_items(ws, HashEncoder())
    before = ws.fingerprint("vectors/items")
    encoder = HashEncoder()
    counts = embed_items(ws, encoder)
    assert encoder.seen == [] and counts.n_reused == 23 and len(counts.changed["vectors/items"]) == 0
    assert ws.fingerprint("vectors/items") == before


def test_only_a_changed_text_is_embedded_again(ws):
    embed_items(ws, HashEncoder())
    before = vectors(ws, "vectors/items")
    with ws.db:
        ws.db.execute("UPDATE items SET title='A new title' WHERE item_idx=7")
    encoder = HashEncoder()
    counts = embed_items(ws, encoder)
    assert len(encoder.seen) == 1 and "A new title" in encoder.seen[0]
    assert counts.changed["vectors/items"].tolist() == [7]
    same = np.arange(24) != 7
    assert (vectors(ws, "vectors/items")[same] == before[same]).all()


def test_another_encoder_embeds_everything_again(ws):
    embed_items(ws, HashEncoder())
    other = HashEncoder()
    other.identity = {"name": "hash", "sha256": "1"}
    assert embed_items(ws, other).n_texts_embedded == 21


def test_encoder_that_returns_nonsense_is_refused(ws):
    class Broken(HashEncoder):
        def encode(self, texts):
            return np.full((len(texts), self.dim), np.nan)

    with pytest.raises(ModelError, match="finite"):
        embed_items(ws, Broken())
    assert not ws.has("vectors/items")


def test_profile_is_embedded_without_its_labels(ws):
    assert profile_words(TEXT) == "herbs, soups, tools; cook, gardener, parent"


def test_profile_vectors_cover_valid_and_edited_profiles_only(ws):
    profile(ws, "users", model="rules")
    store.set_profile(ws, "user", 4, TEXT)
    store.put_profiles(ws, "user", [3], store.Generation("k", "raw", "invalid", "why"), "", "some model")
    ws.db.commit()
    encoder = HashEncoder()
    counts = embed_profiles(ws, encoder)
    made = vectors(ws, "vectors/user_profiles")
    assert made.shape == (5, 8)
    assert [bool(row.any()) for row in made] == [True, True, True, False, True]
    assert (made[0] == made[1]).all() and len(encoder.seen) == counts.n_texts_embedded == 3
    assert not ws.has("vectors/item_profiles")


def test_item_profiles_get_vectors_too(ws):
    profile(ws, "items", model="rules")
    embed_profiles(ws, HashEncoder())
    assert vectors(ws, "vectors/item_profiles").shape == (24, 8)
    assert not profile_vectors_stale(ws, "items")


def test_vectors_are_stale_once_a_profile_changes_and_only_that_one_is_embedded(ws):
    profile(ws, "users", model="rules")
    assert profile_vectors_stale(ws, "user")
    embed_profiles(ws, HashEncoder())
    assert not profile_vectors_stale(ws, "user")
    store.set_profile(ws, "user", 2, TEXT)
    assert profile_vectors_stale(ws, "user")
    encoder = HashEncoder()
    counts = embed_profiles(ws, encoder)
    assert encoder.seen == [profile_words(TEXT)]
    assert counts.changed["vectors/user_profiles"].tolist() == [2]
    assert not profile_vectors_stale(ws, "user")


def test_profiles_of_another_split_are_not_embedded(ws):
    profile(ws, "users", model="rules")
    embed_profiles(ws, HashEncoder())
    store_split(ws, [matrix(5, 24, rows) for rows in ({0: [1]}, {}, {0: [0]}, {})])
    assert ws.stale_inputs("vectors/user_profiles") == ["matrices/split"]
    with pytest.raises(MissingArtefactError, match="another split"):
        embed_profiles(ws, HashEncoder())


def test_no_profiles_names_the_command(ws):
    with pytest.raises(MissingArtefactError, match="reclm profile users"):
        embed_profiles(ws, HashEncoder())


def test_hash_of_a_text_is_never_the_hash_of_no_text():
    assert text_hash("") == 0 and text_hash("a") != 0 and text_hash("a") != text_hash("b")
