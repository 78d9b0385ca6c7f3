"""Recommending: masking, ties, bases, and the errors for missing users, words and models."""

import json

import numpy as np
import pytest

from reclm_lite.cf.fitted import FittedModel
from reclm_lite.cf.store import save
from reclm_lite.data.dataset import Imported, Split, load_split, save_imported, save_split
from reclm_lite.errors import InputError, MissingArtefactError, ModelError, WorkspaceError
from reclm_lite.profiles.profile_vectors import profile_words
from reclm_lite.profiles.store import edit_profile
from reclm_lite.serve import recommend as recommend_module
from reclm_lite.serve.recommend import Recommender, recommend
from reclm_lite.text.item_vectors import text_hash
from reclm_lite.types import ItemText
from reclm_lite.workspace import Workspace

N_USERS, N_ITEMS = 8, 12
# user -> items in training; users 6 and 7 have no history; item 11 was taken by nobody; user 0 took item 3 at test
# only.
TRAIN = {0: [0, 1, 2], 1: [0, 1, 4], 2: [0, 5], 3: [0, 6, 7], 4: [1, 8, 9, 10], 5: [2]}
TEST = {0: [3], 1: [3]}
ENCODER = {"name": "test"}
PROFILE = "User identity: reader, fan, cook; User interests: opera, space telescopes, soup"


def imported() -> Imported:
    pairs = [(u, i) for part in (TRAIN, TEST) for u, items in part.items() for i in items]
    return Imported(
        name="small",
        user_ids=[f"u{user}" for user in range(N_USERS)],
        item_ids=[f"i{item}" for item in range(N_ITEMS)],
        item_texts=[
            ItemText(f"Title {item} on {'space telescopes' if item % 2 else 'opera'}") for item in range(N_ITEMS)
        ],
        users=np.array([u for u, _ in pairs], np.int32),
        items=np.array([i for _, i in pairs], np.int32),
    )


def add_split(ws: Workspace) -> None:
    import scipy.sparse as sp

    def matrix(part: dict[int, list[int]]) -> sp.csr_matrix:
        users = [u for u, items in part.items() for _ in items]
        items = [i for items in part.values() for i in items]
        return sp.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=(N_USERS, N_ITEMS))

    split = Split(
        matrix(TRAIN), matrix({}), matrix(TEST), matrix({}), np.arange(11), np.array([11]), params={"method": "given"}
    )
    save_split(ws, split, inputs={"matrices/interactions": ws.fingerprint("matrices/interactions")})


def add_vectors(ws: Workspace) -> np.ndarray:
    """Items alternate between two axes, each with a little of its own."""
    vectors = np.zeros((N_ITEMS, 4), np.float32)
    vectors[0::2, 0] = 1.0
    vectors[1::2, 1] = 1.0
    vectors[:, 2] = np.linspace(0.0, 0.3, N_ITEMS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ws.save("vectors/items", {"vectors": vectors}, inputs={}, params={"encoder": ENCODER})
    return vectors


def add_model(
    ws: Workspace, name: str = "lightgcn", *, ndcg: float | None = 0.2, bias=None, profiles="none", inputs=None
):
    """A model that ranks by `bias` alone (default: the higher item first) through one-dimensional vectors."""
    bias = np.arange(N_ITEMS, dtype=np.float32) if bias is None else np.asarray(bias, np.float32)
    user_ready = np.array([user in TRAIN for user in range(N_USERS)])
    model = FittedModel.of_vectors(
        name,
        np.ones((N_USERS, 1), np.float32),
        bias[:, None],
        None,
        user_ready,
        profiles=profiles,
        metrics={} if ndcg is None else {"ndcg@20": ndcg},
    )
    save(model, ws, inputs=inputs or {})


@pytest.fixture
def ws(tmp_path):
    with Workspace.create(tmp_path / "ws") as workspace:
        save_imported(workspace, imported())
        yield workspace


def ids(answer) -> list[str]:
    return [item.item for item in answer.items]


def test_all_known_interactions_are_masked_held_out_ones_too(ws):
    add_split(ws)
    add_model(ws)
    answer = recommend(ws, "u0", k=N_ITEMS)
    assert answer.basis == "model"
    assert ids(answer) == [
        "i10",
        "i9",
        "i8",
        "i7",
        "i6",
        "i5",
        "i4",
    ]  # 0 to 3 are known, 11 has neither text vector nor taker
    assert "4 known items are excluded" in answer.note


def test_no_split_is_needed(ws):
    add_model(ws)
    with pytest.raises(MissingArtefactError):
        load_split(ws)
    assert recommend(ws, "u5", k=2).basis == "model"


def test_an_unseen_item_is_a_candidate_once_it_has_a_text_vector(ws):
    add_model(ws)
    add_vectors(ws)
    assert ids(recommend(ws, "u0", k=1)) == ["i11"]


def test_ties_go_to_the_lower_id(ws):
    add_model(ws, bias=np.zeros(N_ITEMS))
    answer = recommend(ws, "u0", k=N_ITEMS)
    assert ids(answer) == ["i4", "i5", "i6", "i7", "i8", "i9", "i10"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_with_numbers_that_are_not_finite_is_left_out_as_damaged(ws, value):
    bias = np.zeros(N_ITEMS)
    bias[4] = value
    add_model(ws, bias=bias)
    answer = recommend(ws, "u0", k=N_ITEMS)
    assert "Skipped as damaged" in answer.note and all(np.isfinite(item.score) for item in answer.items)


def test_k_larger_than_the_catalogue_gives_what_there_is_and_says_so(ws):
    answer = recommend(ws, "u4", k=500)
    assert len(answer.items) == 7 and "Fewer than 500" in answer.note


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one_is_refused(ws, k):
    with pytest.raises(InputError, match="k of at least 1"):
        recommend(ws, "u0", k=k)


def test_unknown_user_is_told_the_closest_ids_and_text(ws):
    with pytest.raises(InputError, match="no user 'u00'.*'u0'.*--text"):
        recommend(ws, "u00")
    with pytest.raises(InputError, match="ids look like 'u0', 'u1', 'u2'"):
        recommend(ws, "nobody-of-the-sort")


def test_neither_user_nor_words_is_refused(ws):
    with pytest.raises(InputError, match="found none"):
        recommend(ws, None)
    with pytest.raises(InputError, match="words"):
        recommend(ws, None, text="  ")


def test_without_models_popularity_ranks_and_the_note_names_the_command(ws):
    answer = recommend(ws, "u5", k=3)
    assert answer.basis == "popularity" and "reclm fit lightgcn" in answer.note
    # counts: item 0: 4, items 1: 3, 2 and 3: 2; user 5 has 2.
    assert [(item.item, item.score) for item in answer.items] == [("i0", 4.0), ("i1", 3.0), ("i3", 2.0)]
    assert answer.items[0].reason == "popular: 4 of 8 users took it"


def test_best_model_by_validation_is_taken(ws):
    add_model(ws, "biasmf", ndcg=0.1, bias=-np.arange(N_ITEMS))
    add_model(ws, "lightgcn", ndcg=0.3)
    add_model(ws, "lightgcn", ndcg=0.2, profiles="users", bias=-np.arange(N_ITEMS))
    add_model(ws, "random", ndcg=0.9, bias=-np.arange(N_ITEMS))
    answer = recommend(ws, "u0", k=1)
    assert (
        ids(answer) == ["i10"] and "lightgcn, the best of 3 fitted models on validation (NDCG@20 0.3000)" in answer.note
    )


def test_a_model_asked_for_is_used_or_its_command_named(ws):
    add_model(ws, "lightgcn")
    add_model(ws, "lightgcn", profiles="users", bias=-np.arange(N_ITEMS))
    assert ids(recommend(ws, "u0", k=1, model="lightgcn+users")) == ["i4"]
    with pytest.raises(
        MissingArtefactError, match=r"fitted: lightgcn, lightgcn\+users.*reclm fit biasmf --profiles both"
    ):
        recommend(ws, "u0", model="biasmf+both")


def test_a_stale_model_is_left_out_and_named_and_refused_if_asked_for(ws):
    add_split(ws)
    add_model(ws, "biasmf", ndcg=0.1)
    add_model(ws, "lightgcn", ndcg=0.3, inputs={"matrices/split": "something older"})
    answer = recommend(ws, "u0", k=1)
    assert "biasmf" in answer.note and "Skipped as stale: lightgcn" in answer.note
    with pytest.raises(MissingArtefactError, match="stale"):
        recommend(ws, "u0", model="lightgcn")


def test_a_user_without_history_or_profile_gets_popularity_and_is_told(ws):
    add_model(ws)
    add_vectors(ws)
    answer = recommend(ws, "u6", k=2)
    assert answer.basis == "popularity" and ids(answer) == ["i0", "i1"]
    assert "no history yet, and no profile" in answer.note


def add_profile(ws: Workspace, user: int, vector: np.ndarray, *, encoder=ENCODER) -> None:
    edit_profile(ws, "user", f"u{user}", PROFILE)
    vectors = np.zeros((N_USERS, len(vector)), np.float32)
    hashes = np.zeros(N_USERS, np.uint64)
    vectors[user] = vector / np.linalg.norm(vector)
    hashes[user] = text_hash(profile_words(PROFILE))
    ws.save("vectors/user_profiles", {"vectors": vectors, "text_hash": hashes}, inputs={}, params={"encoder": encoder})


def test_a_profile_that_was_edited_since_it_was_embedded_is_not_taken_for_its_vector(ws):
    add_model(ws)
    add_profile(ws, 6, add_vectors(ws)[11])
    edit_profile(ws, "user", "u6", PROFILE.replace("opera", "chess"))
    answer = recommend(ws, "u6", k=2)
    assert answer.basis == "popularity" and "reclm embed profiles" in answer.note


def test_a_user_without_history_is_served_from_the_profile(ws):
    add_model(ws)
    vectors = add_vectors(ws)
    add_profile(ws, 6, vectors[11])
    answer = recommend(ws, "u6", k=N_ITEMS)
    assert answer.basis == "text" and "user's profile" in answer.note and len(answer.items) == N_ITEMS
    once = [int(item.item[1:]) for item in answer.items if 4 <= int(item.item[1:]) <= 10]  # each taken by one user
    assert [item % 2 for item in once] == [1, 1, 1, 0, 0, 0, 0], (
        "of equally popular items those of the profile come first"
    )
    reasons = {item.item: item.reason for item in answer.items}
    assert "space telescopes" in reasons["i9"] or "your profile" in reasons["i9"]


def test_profile_vectors_of_another_encoder_are_not_compared(ws):
    add_model(ws)
    add_profile(ws, 6, add_vectors(ws)[11], encoder={"name": "other"})
    assert recommend(ws, "u6", k=2).basis == "popularity"


def test_a_history_that_the_model_does_not_know_is_served_by_its_text(ws):
    vectors = add_vectors(ws)
    ones = np.ones((max(N_USERS, N_ITEMS), 1), np.float32)
    model = FittedModel.of_vectors("lightgcn", ones[:N_USERS], ones[:N_ITEMS], None, np.zeros(N_USERS, bool))
    save(model, ws, inputs={})
    answer = recommend(ws, "u5", k=3)
    assert answer.basis == "text" and "does not know this user's history" in answer.note
    similar = recommend(ws, "u5", k=N_ITEMS).items
    once = [int(item.item[1:]) for item in similar if 4 <= int(item.item[1:]) <= 10]
    assert vectors[2, 0] > 0.9 and [item % 2 for item in once] == [0, 0, 0, 0, 1, 1, 1]


def embed(text: str) -> np.ndarray:
    """Stands in for the encoder: one axis per subject."""
    return np.array([float("opera" in text), float("telescope" in text), 0.0, 0.0], np.float32)


def test_words_need_no_user(ws, monkeypatch):
    vectors = add_vectors(ws)
    monkeypatch.setattr(recommend_module.sources, "embed_words", lambda ws, text, encoder: embed(text))
    answer = recommend(ws, None, k=3, text="telescopes")
    assert answer.user is None and answer.basis == "text"
    assert all(int(item.item[1:]) % 2 for item in answer.items)
    best = answer.items[0]
    assert f"similarity {vectors[best.item_idx, 1]:.2f}" in best.reason or "telescopes" in best.reason


def test_words_for_a_user_leave_out_what_the_user_has(ws, monkeypatch):
    add_vectors(ws)
    monkeypatch.setattr(recommend_module.sources, "embed_words", lambda ws, text, encoder: embed(text))
    answer = recommend(ws, "u0", k=N_ITEMS, text="telescopes")
    assert answer.basis == "text" and not {"i0", "i1", "i2", "i3"} & set(ids(answer))


def test_words_without_item_vectors_name_the_command(ws):
    with pytest.raises(MissingArtefactError, match="reclm embed items"):
        recommend(ws, None, text="telescopes")


def test_the_document_is_json_with_the_promised_keys(ws):
    document = json.loads(json.dumps(recommend(ws, "u0", k=2).as_json(), allow_nan=False))
    assert set(document) >= {"user", "items", "basis"} and document["user"] == "u0"
    assert all(set(item) >= {"item", "title", "score"} for item in document["items"])


def test_many_users_are_ranked_as_each_one_is(ws):
    add_model(ws)
    add_vectors(ws)
    recommender = Recommender(ws)
    for user, row in enumerate(recommender.top_items(np.arange(N_USERS), 5)):
        assert [f"i{item}" for item in row] == ids(recommender.recommend(f"u{user}", k=5))


def test_neighbors_reasons_count_what_neighbors_took(ws):
    add_model(ws)
    neighbors = np.full((N_USERS, 3), -1, np.int32)
    neighbors[5, :2] = [4, 3]
    ws.save("matrices/neighbors", {"indices": neighbors}, inputs={}, params={})
    answer = recommend(ws, "u5", k=3)
    reasons = {item.item: item.reason for item in answer.items}
    assert reasons["i10"] in ("1 of 2 similar users took it", "1 of 8 users took it")


def test_words_are_embedded_by_the_encoder_that_made_the_item_vectors_or_refused(ws):
    from reclm_lite.assets import encoder_path
    from reclm_lite.text.item_vectors import embed_items

    try:
        encoder_path()
    except ModelError as error:
        pytest.skip(str(error))

    add_vectors(ws)  # by an encoder called "test"
    with pytest.raises(ModelError, match="made with the encoder test"):
        recommend(ws, None, text="astronomy")
    embed_items(ws)
    answer = recommend(ws, None, k=6, text="looking at the stars with large lenses")
    assert all("telescopes" in item.title for item in answer.items)


def add_history_model(ws: Workspace, model: str = "itemknn") -> None:
    from reclm_lite.cf.untrained import fit_untrained

    save(fit_untrained(load_split(ws), model), ws, inputs={})


@pytest.mark.parametrize("model", ["ease", "itemknn", "gfcf", "popularity", "lightgcn"])
def test_a_history_of_somebody_unknown_is_ranked_as_that_of_a_user_who_has_it(ws, model):
    add_split(ws)
    if model == "lightgcn":
        from reclm_lite.cf.fit import fit

        add_vectors(ws)
        # No user here has the five interactions that an ID vector takes, so the graph alone places them.
        fit(ws, model, epochs=1)
    else:
        add_history_model(ws, model)
    known, stranger = (
        recommend(ws, "u2", k=4, model=model),
        recommend(ws, None, k=4, model=model, history=["i5", "i0"]),
    )
    assert ids(stranger) == ids(known) and stranger.basis == known.basis and stranger.user is None
    np.testing.assert_allclose([item.score for item in stranger.items], [item.score for item in known.items], rtol=1e-4)
    assert "2 known items are excluded" in stranger.note


def test_a_stranger_is_counted_among_nobody(ws):
    """Users 4, 5 and 6 take items 8 and 9: to a stranger all three are others."""
    pairs = [(u, i) for u, items in TRAIN.items() for i in items] + [(5, 8), (5, 9), (6, 8), (6, 9)]
    data = imported()
    data.users, data.items = (np.array(side, np.int32) for side in zip(*pairs, strict=True))
    save_imported(ws, data)
    reasoner = Recommender(ws).reasoner(None, history=np.array([8], np.int32))
    assert reasoner.reason(9).text.startswith("3 of the 3 others who took")


@pytest.mark.parametrize("history", [["i0", "nope", "i99"], ["nope"]])
def test_unknown_items_of_a_history_are_named(ws, history):
    with pytest.raises(InputError, match="no item 'nope'.*among the 12 of.*ids look like 'i0', 'i1', 'i2'"):
        recommend(ws, None, history=history)


def test_an_empty_history_or_one_beside_a_user_is_refused(ws):
    with pytest.raises(InputError, match="at least one item id"):
        recommend(ws, None, history=[" ", ""])
    with pytest.raises(InputError, match="a history cannot be combined"):
        recommend(ws, "u0", history=["i0"])


def test_items_that_a_history_model_knows_nothing_of_fall_back_to_text_and_say_so(ws):
    add_split(ws)
    add_history_model(ws)
    assert recommend(ws, None, k=3, history=["i11"]).basis == "popularity"
    add_vectors(ws)
    answer = recommend(ws, None, k=N_ITEMS, history=["i11"])
    assert answer.basis == "text" and "The model knows none of these items" in answer.note and "i11" not in ids(answer)


def test_without_any_model_a_history_is_served_from_popularity_less_what_it_holds(ws):
    answer = recommend(ws, None, k=2, history=["i0"])
    assert answer.basis == "popularity" and ids(answer) == ["i1", "i2"]


def test_a_model_stored_before_folding_in_existed_says_what_to_do(ws):
    add_model(ws)
    with pytest.raises(ModelError, match="fit it again"):
        recommend(ws, None, history=["i0"])
    assert recommend(ws, "u0", k=1).basis == "model"


def damage(ws: Workspace, name: str, how: str) -> None:
    path = ws.path(f"models/{name}")
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-7], "empty": b"", "noise": b"\xff" * 64}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "noise"])
def test_a_damaged_model_is_named_and_left_out(ws, how):
    add_model(ws, "lightgcn", ndcg=0.3)
    add_model(ws, "biasmf", ndcg=0.2)
    damage(ws, "lightgcn", how)
    answer = recommend(ws, "u0", k=1)
    assert "Ranked by biasmf" in answer.note and "Skipped as damaged: lightgcn." in answer.note
    with pytest.raises(WorkspaceError, match="make it again with `reclm fit lightgcn"):
        recommend(ws, "u0", model="lightgcn")
    damage(ws, "biasmf", how)
    answer = recommend(ws, "u0", k=1)
    assert answer.basis == "popularity" and "damaged: biasmf, lightgcn" in answer.note


def test_a_model_that_lacks_a_part_is_named_and_left_out(ws):
    ws.save(
        "models/ease", {"user_vectors": np.zeros((1, 0), np.float32)}, inputs={}, params={"metrics": {"ndcg@20": 0.9}}
    )
    add_model(ws, "biasmf", ndcg=0.2)
    answer = recommend(ws, "u0", k=1)
    assert "Ranked by biasmf" in answer.note and "damaged: ease" in answer.note
