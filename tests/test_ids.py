"""Nobody gets the rows of somebody else: an artefact is opened beside the lists of ids that number it, and beside no
others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from profile_workspace import HashEncoder

from reclm_lite.artefacts import read_arrays, write_arrays
from reclm_lite.cf import neighbors, store
from reclm_lite.cf.fitted import FittedModel
from reclm_lite.cli import main
from reclm_lite.data.dataset import Imported, item_ids, load_interactions, load_split, save_imported, user_ids
from reclm_lite.data.split import run_split
from reclm_lite.errors import MissingArtefactError, ReclmError, WorkspaceError
from reclm_lite.forget import forget_users
from reclm_lite.serve import sources
from reclm_lite.serve.recommend import Recommender, recommend
from reclm_lite.status import workspace_status
from reclm_lite.text.item_vectors import embed_items, text_hash
from reclm_lite.types import ItemText
from reclm_lite.workspace import Workspace

# -- a workspace in which every row identifies its user ----------------------------------

DIM = 6


def vector_of(ident: str) -> np.ndarray:
    """float32 (DIM,), between 0 and 1: of the id alone."""
    return np.random.default_rng(text_hash(ident) % 2**32).random(DIM).astype(np.float32)


def data_of(users: list[str], items: list[str], seed: int) -> Imported:
    """Users by name, each with a few random items; the manifest does not contain the ids."""
    rng = np.random.default_rng(seed)
    pairs = [(user, int(item)) for user in range(len(users)) for item in rng.choice(len(items), 4, replace=False)]
    columns = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    return Imported("people", users, items, [ItemText(f"Title of {item}", "", "", "") for item in items], *columns)


def plant(ws: Workspace, name: str) -> None:
    """A model whose score of a user and an item is the dot product of `vector_of` their ids."""
    vectors = [np.stack([vector_of(one) for one in ids]) for ids in (user_ids(ws), item_ids(ws))]
    fitted = FittedModel.of_vectors(name, *vectors, None, np.ones(len(vectors[0]), bool), metrics={"ndcg@20": 0.5})
    with ws.writing():
        store.save(fitted, ws, inputs={"matrices/split": load_split(ws).fingerprint})


def plant_neighbors(ws: Workspace) -> None:
    """The neighbor of everybody is the user whose id comes next in the alphabet, the last one's is the first."""
    ids = user_ids(ws)
    after = dict(zip(sorted(ids), sorted(ids)[1:] + sorted(ids)[:1], strict=True))
    indices = np.array([[ids.index(after[one])] for one in ids], np.int32)
    with ws.writing():
        ws.save(neighbors.NAME, {"indices": indices}, inputs={"matrices/split": load_split(ws).fingerprint}, params={})


def check_answer(ws: Workspace, user: str, model: str | None, *, allow_stale: bool) -> str:
    """Ask for a list and compare it with what the ids say; returns the basis."""
    answer = recommend(ws, user, k=5, model=model, allow_stale=allow_stale)
    for item in answer.items:
        assert item.title == f"Title of {item.item}", "a title of another item"
        if answer.basis == "model":
            expected = float(vector_of(user) @ vector_of(item.item))
            assert item.score == pytest.approx(expected, abs=1e-5), (
                f"{user} got the score of somebody else for {item.item}"
            )
    if answer.basis == "model" and not allow_stale:
        assert "It is stale" not in answer.note
    return answer.basis


# -- cases -----------------------------------------------------------------------------

USERS, ITEMS = [f"u{n:03d}" for n in range(12)], [f"i{n:02d}" for n in range(15)]


@pytest.fixture
def ws(tmp_path):
    with Workspace.create(tmp_path / "ws") as ws:
        save_imported(ws, data_of(USERS, ITEMS, 0))
        run_split(ws, "ratio", seed=0)
        embed_items(ws, HashEncoder())
        plant(ws, "lightgcn")
        plant_neighbors(ws)
        yield ws


def test_a_planted_model_gives_the_scores_that_the_ids_say(ws):
    assert {check_answer(ws, user, "lightgcn", allow_stale=False) for user in USERS} == {"model"}


@pytest.mark.parametrize("update", [True, False])
@pytest.mark.parametrize(
    ("users", "items"),
    [
        (USERS[:4] + USERS[5:], ITEMS),
        (USERS, ITEMS[1:]),
        ([*USERS, "v"], ITEMS),
        (USERS[::-1], ITEMS),
        (USERS, [*ITEMS, "j"]),
    ],
    ids=["user gone", "item gone", "user new", "users in another order", "item new"],
)
def test_after_an_import_with_other_ids_no_model_is_served_even_if_asked_for(ws, users, items, update):
    save_imported(ws, data_of(users, items, 0), update=update)
    for user in users:
        assert check_answer(ws, user, None, allow_stale=True) == "popularity"
    with pytest.raises(MissingArtefactError, match="lightgcn is stale.*reclm split.*then `reclm fit lightgcn"):
        recommend(ws, users[0], model="lightgcn")
    with pytest.raises(
        MissingArtefactError, match="the rows of models/lightgcn are not those of the present (users|items)"
    ):
        recommend(ws, users[0], model="lightgcn", allow_stale=True)
    assert Recommender(ws)._neighbors(0) == []


def test_after_a_replacement_the_same_ids_mean_others_also_to_a_stale_model(ws):
    save_imported(ws, data_of(USERS, ITEMS, 0))
    with pytest.raises(MissingArtefactError, match="the rows of models/lightgcn are not those"):
        recommend(ws, USERS[0], model="lightgcn", allow_stale=True)
    run_split(ws, "ratio", seed=0)
    plant(ws, "lightgcn")
    save_imported(ws, data_of(USERS, ITEMS, 1), update=True)
    assert check_answer(ws, USERS[0], "lightgcn", allow_stale=True) == "model"


def test_data_that_change_while_a_list_is_made_are_noticed(ws, monkeypatch):
    recommender = Recommender(ws)
    first = recommender.recommend(USERS[0], k=3)
    real = recommender.reasoner

    def another_process(*arguments, **options):
        save_imported(ws, data_of(USERS[::-1], ITEMS, 2), update=True)
        return real(*arguments, **options)

    monkeypatch.setattr(recommender, "reasoner", another_process)
    with pytest.raises(WorkspaceError, match="changed since it was read"):
        recommender.recommend(USERS[0], k=3)
    assert first.items


def test_the_same_interactions_of_people_with_other_names_are_other_data(ws):
    """Arrays and manifest are the same to the byte; before, the fingerprints were as well."""
    renamed = ["a" + user for user in USERS]
    before = load_interactions(ws).fingerprint
    save_imported(ws, data_of(renamed, ITEMS, 0))
    assert load_interactions(ws).fingerprint != before
    assert {stage.name: stage.state for stage in workspace_status(ws).stages}["model lightgcn"] == "stale"
    assert check_answer(ws, renamed[0], None, allow_stale=True) == "popularity"


def test_new_interactions_of_the_same_people_make_a_model_stale_which_is_served_only_if_asked_for_and_told(ws):
    save_imported(ws, data_of(USERS, ITEMS, 1), update=True)
    assert ws.stale_inputs("models/lightgcn") == ["matrices/interactions"]
    with pytest.raises(MissingArtefactError, match="models/lightgcn is stale: matrices/interactions changed"):
        recommend(ws, USERS[0], model="lightgcn")
    without = recommend(ws, USERS[0])
    assert without.basis == "popularity" and "Skipped as stale: lightgcn" in without.note
    for model in (None, "lightgcn"):
        answer = recommend(ws, USERS[0], model=model, allow_stale=True)
        assert (
            answer.basis == "model" and "It is stale (matrices/interactions changed since it was fitted)" in answer.note
        )
        check_answer(ws, USERS[0], model, allow_stale=True)


def test_a_model_that_is_up_to_date_goes_before_a_stale_one_of_better_figures(ws):
    save_imported(ws, data_of(USERS, ITEMS, 1), update=True)
    run_split(ws, "ratio", seed=0)
    plant(ws, "biasmf")
    path = ws.path("models/biasmf")
    provenance = ws.provenance("models/biasmf", made_by="")
    provenance["params"]["metrics"]["ndcg@20"] = 0.1
    write_arrays(path, read_arrays(path), {"reclm": json.dumps(provenance)})
    answer = recommend(ws, USERS[0], allow_stale=True)
    assert "Ranked by biasmf" in answer.note and "Skipped as stale: lightgcn" in answer.note


def test_stale_goes_from_interactions_through_the_split_to_what_was_made_of_it(ws):
    save_imported(ws, data_of(USERS, ITEMS, 1), update=True)
    stages = {stage.name: stage for stage in workspace_status(ws).stages}
    assert {
        name: stages[name].state for name in ("split", "item vectors", "model lightgcn", "neighbors")
    } == dict.fromkeys(("split", "item vectors", "model lightgcn", "neighbors"), "stale")
    assert workspace_status(ws).next_command == f"reclm split -w {ws.argument}"


def test_ids_that_come_back_make_an_artefact_current_again(ws):
    save_imported(ws, data_of(USERS[1:], ITEMS, 0), update=True)
    save_imported(ws, data_of(USERS, ITEMS, 0), update=True)
    assert ws.stale_inputs("models/lightgcn") == []
    assert check_answer(ws, USERS[0], "lightgcn", allow_stale=False) == "model"


def test_item_vectors_are_made_anew_for_items_in_another_order_and_texts_are_embedded_once(ws):
    other = ITEMS[::-1]
    save_imported(ws, data_of(USERS, other, 0), update=True)
    assert Recommender(ws).item_vectors is None
    counts = embed_items(ws, HashEncoder())
    assert counts.n_texts_embedded == 0 and counts.n_reused == len(ITEMS)
    found = Recommender(ws).item_vectors
    expected = HashEncoder().encode([f"Title of {item}" for item in other])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_an_artefact_of_an_older_version_counts_only_while_nothing_has_changed(ws):
    path = ws.path("models/lightgcn")
    provenance = ws.provenance("models/lightgcn", made_by="")
    del provenance["ids"]
    write_arrays(path, read_arrays(path), {"reclm": json.dumps(provenance)})
    assert check_answer(ws, USERS[3], "lightgcn", allow_stale=False) == "model"
    save_imported(ws, data_of(USERS[1:], ITEMS, 0), update=True)
    with pytest.raises(MissingArtefactError, match="does not tell which users and items its rows are"):
        recommend(ws, USERS[3], model="lightgcn", allow_stale=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays | {"user_vectors": arrays["user_vectors"][1:]},
        lambda arrays: arrays | {"item_vectors": arrays["item_vectors"][:, :2]},
        lambda arrays: arrays | {"user_ready": arrays["user_ready"][:3]},
        lambda arrays: arrays | {"item_bias": np.zeros(3, np.float32)},
        lambda arrays: {name: array for name, array in arrays.items() if name != "item_vectors"},
    ],
    ids=["a row less", "other columns", "flags", "bias", "none"],
)
def test_a_model_whose_arrays_do_not_fit_is_damaged_not_an_index_error(ws, change):
    path = ws.path("models/lightgcn")
    write_arrays(path, change(read_arrays(path)), {"reclm": json.dumps(ws.provenance("models/lightgcn", made_by=""))})
    with pytest.raises(WorkspaceError, match="models/lightgcn is damaged.*reclm fit lightgcn"):
        store.load(ws, "lightgcn")


@pytest.mark.parametrize(
    ("name", "array", "value"),
    [
        ("matrices/interactions", "items", np.array([99, 0], np.int32)),
        ("matrices/interactions", "users", np.array([-1, 0], np.int32)),
        ("matrices/split", "train_indices", np.array([77], np.int32)),
        ("matrices/split", "train_indptr", np.zeros(3, np.int64)),
        ("matrices/split", "shape", np.array([3, 3])),
        ("matrices/split", "full_candidates", np.array([999], np.int32)),
        ("matrices/neighbors", "indices", np.full((12, 1), 12, np.int32)),
    ],
)
def test_numbers_outside_the_lists_are_damage_not_an_index_error(ws, name, array, value):
    path = ws.path(name)
    write_arrays(path, read_arrays(path) | {array: value}, {"reclm": json.dumps(ws.provenance(name, made_by=""))})
    loaders = {
        "matrices/interactions": load_interactions,
        "matrices/split": load_split,
        "matrices/neighbors": lambda ws: neighbors.load_indices(ws, len(USERS)),
    }
    with pytest.raises(WorkspaceError, match=f"{name} is damaged"):
        loaders[name](ws)


def test_inputs_that_name_each_other_or_a_file_elsewhere_are_stale(ws):
    for inputs in ({"matrices/split": "x"}, {"../../../etc/passwd": "x"}, {"matrices/neighbors": "y"}):
        with ws.writing():
            first = ws.save(neighbors.NAME, {"indices": np.zeros((12, 1), np.int32)}, inputs=inputs, params={})
        assert ws.stale_inputs(neighbors.NAME) == list(inputs), first


def test_command_line_serves_a_stale_model_with_stale_alone(ws, tmp_path):
    save_imported(ws, data_of(USERS, ITEMS, 1), update=True)
    ask = ["recommend", "-w", str(ws.root), "--user", USERS[2], "--model", "lightgcn", "--json"]
    refused = CliRunner().invoke(main, ask)
    assert refused.exit_code == 1 and "is stale" in refused.stderr
    served = CliRunner().invoke(main, [*ask, "--stale"])
    assert served.exit_code == 0 and "It is stale" in json.loads(served.stdout)["note"]


def test_a_table_with_one_customer_fewer_then_one_more(tmp_path):
    """The case of the command line: the next customer got the list of the one who had gone."""
    table, root = tmp_path / "orders.csv", tmp_path / "ws"
    rng = np.random.default_rng(0)
    rows = {f"u{n:03d}": [f"p{item:02d}" for item in rng.choice(30, 6, replace=False)] for n in range(40)}

    def run(*arguments, code: int = 0) -> str:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == code, f"{arguments}: {result.output} {result.stderr} {result.exception!r}"
        return result.stdout + result.stderr

    def load(people, *options) -> str:
        table.write_text(
            "user,item\n" + "".join(f"{one},{item}\n" for one in people for item in rows[one]), encoding="utf-8"
        )
        return run("import", "table", table, "-w", root, *options)

    run("init", root)
    load(rows)
    run("split", "-w", root, "--method", "ratio")
    run("fit", "lightgcn", "-w", root, "--set", "epochs=2", "--set", "dim=8")
    run("neighbors", "-w", root)
    run("report", "-w", root)
    told = load([one for one in rows if one != "u009"], "--update")
    assert (
        "may still contain people who are no longer in the data" in told
        and "reports" in told
        and "reclm forget --gone" in told
    )
    answer = json.loads(run("recommend", "-w", root, "--user", "u010", "--json").partition("\n}\n")[0] + "\n}")
    assert answer["basis"] == "popularity" and "stale" in answer["note"]
    assert "stale" in run("info", "-w", root)
    rows["u999"] = rows["u001"]
    load([one for one in rows if one != "u009"], "--update")
    run("recommend", "-w", root, "--user", "u999")
    run("report", "-w", root)
    assert "Removed" not in run("forget", "u009", "-w", root, "--yes") and not list((root / "reports").iterdir())
    assert not (root / "models" / "lightgcn.safetensors").exists()
    assert "expected the id of a user" in run("forget", "u009", "-w", root, "--yes", code=1)


# -- any order of commands ---------------------------------------------------------------


class Commands(RuleBasedStateMachine):
    """Imports, renames, removals, fits and files put back from a copy, in any order: a served row is always the user's
    own."""

    @initialize(tmp=st.integers(0, 2**31))
    def start(self, tmp):
        self.folder = Path(self.folders.mktemp("commands"))
        self.ws = Workspace.create(self.folder / "ws")
        self.users, self.items, self.n_names, self.kept = list(USERS[:8]), list(ITEMS[:10]), 0, []
        save_imported(self.ws, data_of(self.users, self.items, 0))

    def teardown(self):
        if hasattr(self, "ws"):
            self.ws.close()
            shutil.rmtree(self.folder)

    def new_name(self) -> str:
        self.n_names += 1
        return f"n{(self.n_names * 7) % 10}-{self.n_names}"

    @rule(data=st.data(), seed=st.integers(0, 3), update=st.booleans())
    def bring_another_state(self, data, seed, update):
        for ids in (self.users, self.items):
            for change in data.draw(st.lists(st.sampled_from(["remove", "add", "rename", "swap"]), max_size=2)):
                place = data.draw(st.integers(0, len(ids) - 1))
                if change == "remove" and len(ids) > 6:
                    del ids[place]
                elif change == "add":
                    ids.insert(place, self.new_name())
                elif change == "rename":
                    ids[place] = self.new_name()
                elif change == "swap":
                    ids[place], ids[0] = ids[0], ids[place]
        save_imported(
            self.ws,
            data_of(list(self.users), list(self.items), seed),
            update=update and set(self.users) & set(user_ids(self.ws)) != set(),
        )

    @precondition(lambda self: len(self.users) > 6)
    @rule(data=st.data())
    def forget(self, data):
        gone = data.draw(st.sampled_from(self.users))
        forget_users(self.ws, [gone])
        self.users.remove(gone)

    @rule()
    def forget_who_left(self):
        forget_users(self.ws, [], gone=True)

    @rule(seed=st.integers(0, 1))
    def split(self, seed):
        run_split(self.ws, "ratio", seed=seed)

    @rule(name=st.sampled_from(["lightgcn", "biasmf", "neighbors", "items"]))
    def make(self, name):
        try:
            if name == "items":
                embed_items(self.ws, HashEncoder())
            elif name == "neighbors":
                plant_neighbors(self.ws)
            else:
                plant(self.ws, name)
        except MissingArtefactError:
            pass  # no split, or a stale one

    @rule()
    def keep_a_copy(self):
        for path in self.ws.root.glob("*/*.safetensors"):
            copy = self.folder / f"copy-{len(self.kept)}"
            shutil.copy(path, copy)
            self.kept.append((copy, path))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def put_a_copy_back(self, data):
        copy, path = data.draw(st.sampled_from(self.kept))
        if path.name != "interactions.safetensors":  # that one is refused as a whole
            shutil.copy(copy, path)

    @rule()
    def open_it_again(self):
        self.ws.close()
        self.ws = Workspace.open(self.folder / "ws")

    @invariant()
    def everybody_gets_their_own(self):
        if not hasattr(self, "ws"):
            return
        ids = user_ids(self.ws)
        assert ids == self.users
        for user in (ids[0], ids[len(ids) // 2], ids[-1]):
            check_answer(self.ws, user, None, allow_stale=False)
            for model in ("lightgcn", "biasmf"):
                try:
                    check_answer(self.ws, user, model, allow_stale=True)
                except ReclmError:
                    pass  # not fitted, or fitted for others: refused is right
        table = sources.neighbor_indices(self.ws, len(ids))
        if table is not None:
            after = dict(zip(sorted(ids), sorted(ids)[1:] + sorted(ids)[:1], strict=True))
            # A forgotten neighbor leaves an empty place.
            assert all(row[0] < 0 or ids[row[0]] == after[ids[user]] for user, row in enumerate(table))
        vectors = sources.item_vectors(self.ws, len(item_ids(self.ws)))
        if vectors is not None:
            expected = HashEncoder().encode([f"Title of {item}" for item in item_ids(self.ws)])
            np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_in_any_order_of_commands_nobody_gets_the_rows_of_another(tmp_path_factory):
    Commands.folders = tmp_path_factory
    run = Commands.TestCase("runTest")
    Commands.TestCase.settings = settings(
        max_examples=20,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run.runTest()
