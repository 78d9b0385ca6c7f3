"""A forgotten person is in no byte of the workspace, everybody else is as before, and a kill leaves one or the
other."""

import json
import shutil

import numpy as np
import pytest
from forget_workspace import (  # noqa: F401  (fixtures)
    ID,
    IDS,
    N_USERS,
    PERSON,
    SHARED,
    arrays_of,
    built,
    found_in,
    freshness,
    needles_of,
    profile_of,
    root,
)
from profile_workspace import HashEncoder, make_workspace, text_of

from reclm_lite.cf.fit import fit
from reclm_lite.cf.models import MODELS
from reclm_lite.cf.names import artefact_name, fitted_models
from reclm_lite.cf.neighbors import neighbors
from reclm_lite.data.dataset import Imported, load_interactions, load_split, save_imported, user_ids
from reclm_lite.data.split import run_split
from reclm_lite.errors import InputError
from reclm_lite.evaluate.protocol import evaluate_workspace
from reclm_lite.forget import forget_user, forget_users
from reclm_lite.profiles.profile_vectors import embed_profiles, profile_vectors_stale
from reclm_lite.serve.recommend import recommend
from reclm_lite.user_rows import ARTEFACTS
from reclm_lite.workspace import Workspace

# -- nothing is left of the person ---------------------------------------------------


def test_no_byte_of_the_person_is_left_in_any_file(root):
    with Workspace.open(root) as ws:
        needles = needles_of(ws)
        before = found_in(root, needles)
        assert set(before) == set(needles), "the search must be able to find each of these"
        assert len([what for what in needles if what.startswith("models/")]) > 8
        for place in (
            "workspace.toml",
            f"reports/{ID}.html",
            "models/.ncf.checkpoint/select.safetensors",
            "matrices/.split.safetensors.99.tmp",
        ):
            assert place in before["id"]
        assert "matrices/interactions.safetensors" in before["id"]  # the manifest's users to show
        summary = forget_user(ws, ID)
        assert found_in(root, needles) == {}
    assert found_in(root, needles) == {}
    assert (
        summary.n_interactions == 8
        and summary.n_profiles == 1
        and summary.n_generations == 2
        and summary.n_unknown_generations == 1
    )


def test_text_that_was_deleted_before_is_wiped_from_free_pages_too(root):
    old = "zq7 replaced long ago " * 400
    with Workspace.open(root) as ws:
        ws.db.execute("PRAGMA secure_delete=OFF")
        with ws.db:
            ws.db.execute("INSERT INTO generations VALUES ('gone', ?, 'ok', '', 1, 1, '', 0, NULL)", (old,))
        with ws.db:
            ws.db.execute("DELETE FROM generations WHERE prompt_key='gone'")
        assert found_in(root, {"old": old[:200].encode()})
        forget_user(ws, ID)
        assert not found_in(root, {"old": b"zq7 replaced"})
        assert (root / "workspace.db-wal").stat().st_size == 0


def test_the_plan_that_a_kill_would_leave_does_not_name_the_person(root, monkeypatch):
    seen = []
    finish = Workspace.finish_forgetting

    def look(ws):
        seen.append(ws.get_meta("forget"))
        return finish(ws)

    monkeypatch.setattr(Workspace, "finish_forgetting", look)
    with Workspace.open(root) as ws:
        forget_user(ws, ID)
        assert ws.get_meta("forget") is None
    assert "models/lightgcn.safetensors" in seen[-1] and ID not in seen[-1] and "zq7" not in seen[-1]


def test_only_generations_for_the_person_alone_or_for_nobody_go(root):
    with Workspace.open(root) as ws:
        forget_user(ws, ID)
        left = {raw for (raw,) in ws.db.execute("SELECT raw FROM generations")}
        assert left == {f"raw {user}" for user in range(N_USERS) if user != PERSON} | {SHARED, "of an item"}
        uses = set(ws.db.execute("SELECT prompt_key, side, idx FROM uses"))
    expected = {(f"key{user}", "user", user - (user > PERSON)) for user in range(N_USERS) if user != PERSON}
    assert uses == expected | {("two", "user", PERSON), ("item", "item", PERSON)}


# -- everybody else is as before ------------------------------------------------------


def test_every_other_users_rows_are_as_before_bit_for_bit(root):
    with Workspace.open(root) as ws:
        before, split, dense = arrays_of(ws), load_split(ws), load_interactions(ws).matrix().toarray()
        forget_user(ws, ID)
        after = arrays_of(ws)
        assert set(after) == set(before)
        assert user_ids(ws) == [ident for ident in IDS if ident != ID]
        for user in range(N_USERS):
            if user != PERSON:
                text = ws.db.execute(
                    "SELECT text FROM profiles WHERE side='user' AND idx=?", (user - (user > PERSON),)
                ).fetchone()
                assert text == (profile_of(user),)
        assert np.array_equal(load_interactions(ws).matrix().toarray(), np.delete(dense, PERSON, 0))
        for part in ("train", "valid", "test", "unseen"):
            assert np.array_equal(
                getattr(load_split(ws), part).toarray(), np.delete(getattr(split, part).toarray(), PERSON, 0)
            )
        assert load_split(ws).params["n_pairs"]["train"] == load_split(ws).train.nnz < split.train.nnz
    for name in ("timestamps", "ratings"):
        gone = before["matrices/interactions"]["users"] == PERSON
        assert np.array_equal(after["matrices/interactions"][name], before["matrices/interactions"][name][~gone])
    n_rows = 0
    for name in after:
        for key, array in before[name].items():
            if key in ("user_vectors", "train_user_vectors", "user_ready") or name == "vectors/user_profiles":
                assert after[name][key].tobytes() == np.delete(array, PERSON, 0).tobytes(), f"{name} {key}"
                n_rows += 1
            elif (
                name.startswith("models/") and "indptr" not in key and "indices" not in key and key != "scorer.data"
            ) or name == "vectors/items":
                assert after[name][key].tobytes() == array.tobytes(), f"{name} {key}"
    assert n_rows > 25


def test_histories_and_graphs_of_models_without_training_lose_the_persons_row_alone(root):
    from reclm_lite.cf.store import load

    with Workspace.open(root) as ws:
        models = ("ease", "itemknn", "gfcf")
        before = {model: load(ws, model) for model in models}
        forget_user(ws, ID)
        for model in models:
            after, histories = load(ws, model), before[model].scorer.histories
            assert np.array_equal(
                after.scorer.histories.toarray(), np.delete(before[model].scorer.histories.toarray(), PERSON, 0)
            )
            assert histories[PERSON].nnz
        graph = load(ws, "gfcf").scorer.weights.graph.toarray()
        assert np.array_equal(graph, np.delete(before["gfcf"].scorer.weights.graph.toarray(), PERSON, 0))


def test_neighbor_lists_close_up_where_the_person_stood_and_name_the_same_people(root):
    with Workspace.open(root) as ws:
        before = ws.load("matrices/neighbors", made_by="").arrays
        assert (before["indices"] == PERSON).any()
        summary = forget_user(ws, ID)
        after, left = ws.load("matrices/neighbors", made_by="").arrays, user_ids(ws)
    named = 0
    for user in range(N_USERS):
        if user == PERSON:
            continue
        old = [
            (IDS[i], s)
            for i, s in zip(before["indices"][user], before["similarity"][user], strict=True)
            if i >= 0 and i != PERSON
        ]
        row = user - (user > PERSON)
        n = len(old)
        assert [
            (left[i], s) for i, s in zip(after["indices"][row][:n], after["similarity"][row][:n], strict=True)
        ] == old
        assert (after["indices"][row][n:] == -1).all() and (after["similarity"][row][n:] == 0).all()
        named += PERSON in before["indices"][user]
    assert summary.n_neighbor_lists == named > 0


def test_a_list_of_the_person_alone_becomes_one_of_nobody(tmp_path):
    with make_workspace(tmp_path / "ws", {0: [1], 1: [1, 2], 2: [3]}, neighbors=[[1, -1], [0, 2], [1, 0]]) as ws:
        forget_user(ws, "u1")
        assert ws.load("matrices/neighbors", made_by="").arrays["indices"].tolist() == [[-1, -1], [0, -1]]


def test_what_was_fresh_is_fresh_and_everything_works_at_once(root):
    with Workspace.open(root) as ws:
        before = freshness(ws)
        assert dict(before)["model lightgcn+users"] == "ready" and "stale" not in dict(before).values()
        lists = {model: recommend(ws, "other-09", model=model).items for model in ("lightgcn", "biasmf+users", "ease")}
        n_rows = len(evaluate_workspace(ws)["rows"])
        forget_user(ws, ID)
        assert freshness(ws) == before
        assert not profile_vectors_stale(ws, "user")
        for model, items in lists.items():
            after = recommend(ws, "other-09", model=model).items
            assert [(i.item, i.score) for i in after] == [(i.item, i.score) for i in items]
        evaluation = evaluate_workspace(ws)
        assert len(evaluation["rows"]) == n_rows and not evaluation["stale"]
        with pytest.raises(InputError, match="no user"):
            recommend(ws, ID)
        keys = {row[0] for row in ws.db.execute("SELECT data_key FROM profiles")}
        assert keys == {ws.fingerprint("matrices/interactions")}
        assert embed_profiles(ws, HashEncoder()).n_texts_embedded == 0
        fit(ws, "biasmf", assignments=["epochs=1", "dim=8"])
        neighbors(ws, 3)


def test_what_was_stale_stays_stale(root):
    with Workspace.open(root) as ws:
        with ws.db:
            ws.db.execute("UPDATE profiles SET text=? WHERE idx=1", (profile_of(99),))
        fit(ws, "lightgcn", assignments=["epochs=1", "dim=8"])  # neighbors are of the one before
        before = dict(freshness(ws))
        assert before["user profile vectors"] == before["neighbors"] == "stale"
        forget_user(ws, ID)
        assert dict(freshness(ws)) == before
        run_split(ws, "ratio", seed=1)
        before = dict(freshness(ws))
        assert list(before.values()).count("stale") > 10
        forget_user(ws, IDS[0])
        assert dict(freshness(ws)) == before
        assert len(ws.load("models/ease", made_by="").arrays["user_vectors"]) == N_USERS - 2


def test_several_go_in_one_pass_as_if_one_by_one(root, tmp_path):
    shutil.copytree(root, tmp_path / "one-by-one")
    people = [IDS[15], ID, IDS[0], IDS[6]]
    with Workspace.open(root) as ws, Workspace.open(tmp_path / "one-by-one") as other:
        summary = forget_users(ws, [*people, ID])
        for person in people:
            forget_user(other, person)
        assert summary.users == people and summary.n_users_left == N_USERS - 4
        for name, arrays in arrays_of(ws).items():
            for key, array in arrays.items():
                assert np.array_equal(array, arrays_of(other)[name][key]), f"{name} {key}"
            assert ws.fingerprint(name) == other.fingerprint(name)
        for table in ("users", "profiles", "uses", "generations", "meta"):
            assert set(ws.db.execute(f"SELECT * FROM {table}")) == set(other.db.execute(f"SELECT * FROM {table}")), (
                table
            )


def test_forgotten_users_can_come_back_by_an_import_and_old_uses_do_not_name_them(root):
    with Workspace.open(root) as ws:
        forget_user(ws, ID)
        data = Imported(
            "again", IDS, ["i0"], [text_of(0)], np.arange(N_USERS, dtype=np.int32), np.zeros(N_USERS, np.int32)
        )
        save_imported(ws, data)
        assert ws.db.execute("SELECT COUNT(*) FROM uses").fetchone() == (0,)
        forget_user(ws, ID)
        assert load_interactions(ws).n_users == N_USERS - 1


# -- what cannot be written again is deleted -------------------------------------------


def test_every_kind_of_artefact_is_known(built):
    """What this version makes is rewritten, never deleted; and nothing in the table is dead."""
    with Workspace.open(built) as ws:
        summary = forget_user(ws, ID, dry_run=True)
        made = {f"{path.parent.name}/{path.stem}" for path in built.glob("*/*.safetensors")}
        assert {artefact_name(*pair) for pair in fitted_models(ws)} >= {f"models/{model}" for model in MODELS}
    assert set(summary.rewritten) == made | {"workspace.toml"}
    assert {
        "matrices/interactions",
        "matrices/split",
        "matrices/neighbors",
        "vectors/items",
        "vectors/user_profiles",
    } < made
    assert set(ARTEFACTS) - made == {"models/*", "vectors/item_profiles"}


def test_every_table_of_the_database_is_known(built):
    """A new table or column may name users: teach forget.py about it, then this test."""
    with Workspace.open(built) as ws:
        tables = {name for (name,) in ws.db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        columns = {(table, row[1]) for table in tables for row in ws.db.execute(f"PRAGMA table_info({table})")}
    assert tables == {"meta", "users", "items", "profiles", "generations", "uses", "jobs", "runs"}
    by_user = {(table, name) for table, name in columns if name in ("idx", "side") or name.startswith("user")}
    assert by_user == {
        ("users", "user_idx"),
        ("users", "user_id"),
        *((t, c) for t in ("profiles", "uses") for c in ("side", "idx")),
    }


def test_an_unknown_artefact_array_or_scorer_and_a_damaged_file_are_deleted_and_their_command_is_named(root):
    with Workspace.open(root) as ws:
        ws.save("matrices/novelty", {"by_user": np.zeros((N_USERS, 2), np.float32)}, inputs={}, params={})
        for name, more, params in (
            ("models/sgl", {"user_mood": np.zeros(N_USERS)}, {}),
            ("models/ease", {}, {"scorer": "new"}),
        ):
            stored = ws.load(name, made_by="")
            ws.save(name, stored.arrays | more, inputs=stored.inputs, params=stored.params | params)
        path = ws.path("models/ncf")
        path.write_bytes(path.read_bytes()[:-5])
        summary = forget_user(ws, ID)
        told = {deleted.path.removesuffix(".safetensors"): deleted for deleted in summary.deleted}
        assert (
            "does not know this artefact" in told["matrices/novelty"].reason
            and "user_mood" in told["models/sgl"].reason
        )
        assert "scorer.weights" in told["models/ease"].reason and told["models/ncf"].reason == "damaged"
        assert told["models/sgl"].command == f"reclm fit sgl -w {ws.root}"
        for name in ("matrices/novelty", "models/sgl", "models/ease", "models/ncf"):
            assert not ws.has(name)
        assert ws.has("models/simgcl") and ws.stale_inputs("models/simgcl") == []


def test_artefacts_of_earlier_data_are_deleted_since_their_rows_may_be_other_peoples(root):
    with Workspace.open(root) as ws:
        stored = ws.load("models/itemknn", made_by="")
        ws.save(
            "models/itemknn",
            {**stored.arrays, "user_vectors": np.zeros((3, 0), np.float32)},
            inputs=stored.inputs,
            params=stored.params,
        )
        ws.save(
            "models/ease",
            ws.load("models/ease", made_by="").arrays,
            inputs={"matrices/split": "another"},
            params={"scorer": "dense"},
        )
        rewrite(
            ws, "models/ease", "2001-01-01T00:00:00+00:00", ids=None
        )  # of an older version, which kept no digests of ids
        rewrite(
            ws,
            "models/gfcf",
            ws.provenance("models/gfcf", made_by="")["created"],
            ids={"users": "others", "items": "others"},
        )
        summary = forget_user(ws, ID)
        told = {deleted.path: deleted.reason for deleted in summary.deleted}
        assert "earlier data" in told["models/gfcf.safetensors"] and not ws.has("models/gfcf")
        assert (
            "earlier data" in told["models/ease.safetensors"] and "shape (3, 0)" in told["models/itemknn.safetensors"]
        )
        assert not ws.has("models/ease") and not ws.has("models/itemknn")


def rewrite(ws: Workspace, name: str, created: str, *, ids: dict | None) -> None:
    from reclm_lite.artefacts import write_arrays

    provenance = ws.provenance(name, made_by="") | {"created": created, "ids": ids}
    if ids is None:
        del provenance["ids"]
    write_arrays(ws.path(name), ws.load(name, made_by="").arrays, {"reclm": json.dumps(provenance)})


def test_a_workspace_with_damaged_interactions_still_forgets(root):
    with Workspace.open(root) as ws:
        ws.path("matrices/interactions").write_bytes(b"torn")
        summary = forget_user(ws, ID)
        assert "matrices/interactions.safetensors" in {deleted.path for deleted in summary.deleted}
        assert user_ids(ws) == [ident for ident in IDS if ident != ID]
    assert found_in(root, {"id": ID.encode()}) == {}


def test_files_of_somebody_elses_are_named_and_left(root):
    (root / "orders.csv").write_text(ID)
    with Workspace.open(root) as ws:
        summary = forget_user(ws, ID)
    assert (root / "orders.csv").exists() and any("orders.csv" in remains.text for remains in summary.remains)


def test_runs_of_tuning_lose_their_samples_and_are_named_with_their_commands(root):
    runs = root / "llm"
    for stage in ("sft", "ppo"):
        (runs / stage / "checkpoints").mkdir(parents=True)
        (runs / stage / "run.json").write_text("{}")
        (runs / stage / "metrics.jsonl").write_text('{"step": 1}\n')
    (runs / "sft-base").mkdir()
    (runs / "sft-base" / "tokenizer.json").write_text("{}")
    (runs / "ppo" / "samples.jsonl").write_text(f'{{"id": "user:{ID}", "prompt": "zq7"}}\n')
    with Workspace.open(root) as ws:
        summary = forget_user(ws, ID)
    assert not (runs / "ppo" / "samples.jsonl").exists() and (runs / "ppo" / "metrics.jsonl").exists()
    told = next(r for r in summary.remains if "Language models that were tuned here" in r.text)
    assert [command.split(" -w")[0] for command in told.commands] == ["reclm tune ppo", "reclm tune sft"]
    assert not any("did not write" in r.text for r in summary.remains)
    assert not [path for path in root.rglob("*") if path.is_file() and b"zq7" in path.read_bytes()]


def test_the_summary_names_what_still_knows_the_person_and_the_commands(root):
    with Workspace.open(root) as ws:
        remains = forget_user(ws, ID).remains
    commands = [command for each in remains for command in each.commands]
    assert f"reclm fit lightgcn -w {root} --set epochs=2 --set dim=8" in commands
    assert f"reclm fit biasmf -w {root} --profiles users --preset paper --set epochs=2 --set dim=8" in commands
    assert f"reclm neighbors -w {root}" in commands and f"reclm profile users -w {root}" in commands
    assert not any("fit random" in command for command in commands)
    assert any("imported" in each.text for each in remains)
