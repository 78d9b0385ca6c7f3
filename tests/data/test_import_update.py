"""`reclm import --update`: a newer state of the same data; profiles stay with their people, and who left leaves
nothing."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from profile_workspace import matrix, save_neighbors, store_split, text_of

from reclm_lite.cli import main
from reclm_lite.data.dataset import Imported, load_interactions, save_imported, user_ids
from reclm_lite.errors import InputError
from reclm_lite.forget_plan import FORGETTING
from reclm_lite.profiles import generate, store
from reclm_lite.profiles.answers import Spent, judge
from reclm_lite.profiles.generate import run_profiles
from reclm_lite.workspace import Workspace

HAND = "User identity: cook, gardener, parent; User interests: herbs, soups, tools"
N_ITEMS = 12
BEFORE = {"b": [0, 1], "d": [2], "f": [3, 4], "h": [5], "k": [6], "m": [6]}
# Two come, all numbers shift, d's history grows, h leaves; the others are as they were.
AFTER = {"a": [7, 8], "b": [0, 1], "c": [1, 2], "d": [2, 9], "f": [3, 4], "k": [6], "m": [6]}


def load(ws: Workspace, histories: dict[str, list[int]], *, first_item: int = 0, update: bool = False, seed: int = 0):
    """Import histories (user id -> items, all in training), split and find neighbors. first_item: items before it are
    gone."""
    ids = [f"i{item:02d}" for item in range(first_item, N_ITEMS)]
    pairs = [(number, item) for number, items in enumerate(histories.values()) for item in items]
    users, items = (np.array(column, np.int32) for column in zip(*pairs))
    items -= first_item
    texts = [text_of(item) for item in range(first_item, N_ITEMS)]
    data = Imported(
        "people",
        list(histories),
        ids,
        texts,
        users,
        items,
        manifest={"of": sorted(histories.items()), "first": first_item},
    )
    carried = save_imported(ws, data, update=update)
    rows = {number: [item - first_item for item in own] for number, own in enumerate(histories.values())}
    n = len(histories)
    fingerprint = store_split(ws, [matrix(n, len(ids), rows), *(matrix(n, len(ids), {}) for _ in range(3))], seed)
    save_neighbors(ws, [[(user + 1 + seed) % n] for user in range(n)], fingerprint)
    return carried


class Fake:
    """A source whose answers tell their own number, so that a second answer is never like the first."""

    form, tries_again = "instruct", False
    asked: list[str] = []
    n_answers = 0

    def __init__(self):
        self.spent = Spent()

    def identity(self, sampling):
        return "fake, greedy"

    def label(self, sampling):
        return "fake, " + self.identity(sampling)

    def has_room(self, prompt):
        return True

    def answers(self, side, groups, sampling, stop_signal):
        for group in groups:
            self.asked.append(group.prompt)
            type(self).n_answers += 1
            text = f"User identity: reader, walker, answer{self.n_answers}x; User interests: rivers, comets, bread"
            yield (
                group,
                judge(
                    store.prompt_key(self.identity(sampling), group.prompt),
                    text,
                    "stop",
                    n_prompt_tokens=1,
                    n_new_tokens=1,
                ),
            )

    def close(self):
        pass


@pytest.fixture
def source(monkeypatch):
    class Source(Fake):
        asked = []

    @contextlib.contextmanager
    def opened(settings, inputs):
        yield Source()

    monkeypatch.setattr(generate, "open_source", opened)
    return Source


@pytest.fixture
def ws(tmp_path):
    with Workspace.create(tmp_path / "ws") as ws:
        load(ws, BEFORE)
        yield ws


def texts(ws: Workspace, side: str = "user") -> dict[str, str]:
    """id -> text of each usable profile"""
    return dict(
        ws.db.execute(
            f"SELECT {side}_id, text FROM profiles JOIN {side}s ON {side}_idx = idx WHERE side=? AND text != ''",
            (side,),
        )
    )


def everything(ws: Workspace) -> dict[str, list[tuple]]:
    return {
        table: ws.db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        for table in ("users", "items", "profiles", "uses", "generations")
    }


def bytes_of(ws: Workspace) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(ws.root.rglob("*")) if path.is_file())


def test_only_those_whose_own_history_changed_and_the_new_are_generated(ws, source):
    first = run_profiles(ws, "users")
    assert (first.n_ok, first.n_generated) == (6, 6)
    old = texts(ws)
    carried = load(ws, AFTER, update=True, seed=1)
    assert (carried.n_users_new, carried.n_users_gone, carried.n_profiles_kept, carried.n_profiles_gone) == (2, 1, 5, 1)
    assert texts(ws) == {user: text for user, text in old.items() if user != "h"}
    source.asked.clear()
    summary = run_profiles(ws, "users")
    assert (summary.n_kept, summary.n_generated, len(source.asked)) == (4, 3, 3)
    new = texts(ws)
    assert {user for user in AFTER if new[user] == old.get(user)} == {"b", "f", "k", "m"}
    assert run_profiles(ws, "users").n_generated == 0 and texts(ws) == new


def test_replace_removes_all_profiles_as_before(ws, source):
    run_profiles(ws, "users")
    assert load(ws, AFTER) is None
    assert texts(ws) == {} and ws.db.execute("SELECT COUNT(*) FROM uses").fetchone() == (0,)


def test_edited_and_imported_profiles_stay_with_their_person_though_numbers_shift(ws, source):
    for number, user in enumerate("bdfm"):
        store.edit_profile(ws, "user", user, HAND.replace("cook", f"cook {number}"))
    with ws.db:
        ws.db.execute("UPDATE profiles SET status='imported' WHERE idx=5")
    before = texts(ws)
    load(ws, AFTER, update=True)
    assert texts(ws) == before and store.find_profile(ws, "user", "m").status == "imported"
    assert [store.find_idx(ws, "user", user) for user in "bm"] == [1, 6]
    run_profiles(ws, "users")
    assert texts(ws).items() >= before.items()


def test_numbers_may_shift_in_any_direction(ws):
    for user in BEFORE:
        store.edit_profile(ws, "user", user, HAND.replace("cook", f"cook {user}"))
    before = texts(ws)
    for order in ("mkhfdb", "hbmdkf", "bdfhkm"):
        load(ws, {user: BEFORE[user] for user in order}, update=True)
        assert texts(ws) == before and user_ids(ws) == list(order)


def test_items_keep_theirs_and_lose_them_when_they_leave(ws, source):
    run_profiles(ws, "items")
    store.edit_profile(ws, "item", "i00", HAND)
    before, source.asked[:] = texts(ws, "item"), []
    later = {user: [item for item in items if item > 1] or [2] for user, items in BEFORE.items()}
    carried = load(ws, later, first_item=2, update=True)
    assert (carried.n_items_gone, carried.n_users_gone, carried.n_profiles_gone, carried.n_by_hand_gone) == (2, 0, 2, 1)
    assert texts(ws, "item") == {item: text for item, text in before.items() if item > "i01"}
    summary = run_profiles(ws, "items")
    assert (summary.n_kept, summary.n_generated) == (N_ITEMS - 2, 0)


def test_who_left_leaves_no_text_behind_and_what_others_share_stays(ws, source):
    run_profiles(ws, "users")
    text = texts(ws)["h"]
    word = text.split("; ")[0].split(", ")[2].encode()  # no other answer has it
    with ws.db:  # k's generation is made to have served h too, and f's to have been h's before
        for user in "kf":
            key = store.find_profile(ws, "user", user).prompt_key
            ws.db.execute("INSERT INTO uses VALUES (?, 'user', ?)", (key, store.find_idx(ws, "user", "h")))
    assert word in bytes_of(ws)
    with ws.db:
        ws.db.execute("INSERT INTO generations VALUES ('nobodys', 'a first try', 'invalid', '', 1, 1, '', 0, NULL)")
    n_before = ws.db.execute("SELECT COUNT(*) FROM generations").fetchone()[0]
    carried = load(ws, AFTER, update=True)
    assert carried.n_generations_gone == 2  # h's, and the one of which nothing tells whose it is
    assert ws.db.execute("SELECT COUNT(*) FROM generations").fetchone()[0] == n_before - 2
    assert word not in bytes_of(ws) and b"a first try" not in bytes_of(ws)
    assert ws.get_meta(FORGETTING) is None
    idxs = {idx for _, _, idx in ws.db.execute("SELECT * FROM uses")}
    assert idxs == {store.find_idx(ws, "user", user) for user in "bdfkm"}


def test_an_update_of_nothing_and_by_nothing_new(tmp_path, source):
    with Workspace.create(tmp_path / "fresh") as ws:
        carried = load(ws, BEFORE, update=True)
        assert (carried.n_users_new, carried.n_users_gone, carried.n_profiles_kept) == (6, 0, 0)
        run_profiles(ws, "users")
        before, source.asked[:] = everything(ws), []
        load(ws, BEFORE, update=True)
        assert everything(ws) == before
        summary = run_profiles(ws, "users")
        assert summary.n_generated == 0 and not source.asked and everything(ws) == before


def test_data_in_which_nobody_is_still_there_are_refused_and_nothing_changes(ws, source):
    run_profiles(ws, "users")
    before, interactions = everything(ws), load_interactions(ws).fingerprint
    with pytest.raises(InputError, match="none of the earlier 6 users.*--replace"):
        load(ws, {f"other {user}": items for user, items in BEFORE.items()}, update=True)
    assert everything(ws) == before and load_interactions(ws).fingerprint == interactions
    load(ws, AFTER, update=True)


CHILD = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3].split(os.pathsep)
from reclm_lite.data import dataset
from reclm_lite.workspace import Workspace
import test_import_update as here

def die(*arguments, **options):
    os._exit(77)

point = sys.argv[2]
with Workspace.open(Path(sys.argv[1])) as ws:
    if point == "carry":
        kept = dataset.carry_over
        dataset.carry_over = lambda db, update: (kept(db, update=update), die())
    elif point == "arrays":
        ws.save = die
    elif point == "commit":
        dataset.os.replace = die
        import reclm_lite.files as module  # which writes the arrays' own file by os.replace as well
        module.os = type("Os", (), {**vars(os), "replace": staticmethod(os.rename)})
    elif point == "config":
        ws.set_config = die
    elif point == "wiping":
        Workspace._wipe_database = die
    here.load(ws, here.AFTER, update=True)
os._exit(0)
"""


@pytest.mark.parametrize("point", ["carry", "arrays", "commit", "config", "wiping"])
def test_a_kill_leaves_the_old_state_or_the_new_one(ws, source, point):
    run_profiles(ws, "users")
    store.edit_profile(ws, "user", "h", HAND)
    store.edit_profile(ws, "user", "m", HAND.replace("cook", "baker"))
    before, old_interactions = everything(ws), load_interactions(ws).fingerprint
    old = texts(ws)
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
    arguments = [str(ws.root), point, os.pathsep.join(folders)]
    ws.close()
    child = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True)
    assert child.returncode == 77, child.stderr
    with Workspace.open(ws.root) as again:
        interactions = load_interactions(again)
        if point in ("carry", "arrays"):
            assert everything(again) == before and interactions.fingerprint == old_interactions
            load(again, AFTER, update=True)
        assert texts(again) == {user: text for user, text in old.items() if user != "h"}
        assert user_ids(again) == list(AFTER) and load_interactions(again).n_users == len(AFTER)
        assert HAND.encode() not in bytes_of(again) and again.get_meta(FORGETTING) is None
        assert again.config["data"]["interactions"] == load_interactions(again).fingerprint
        assert again.config["data"]["manifest"] == load_interactions(again).manifest


# -- the command line --------------------------------------------------------------


def reclm(*arguments: object, expect: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == expect, f"{arguments}: {result.output}\n{result.exception!r}"
    return result.stderr


def test_command_tells_who_came_and_who_went(tmp_path):
    ws, table = tmp_path / "ws", tmp_path / "orders.csv"
    options = ("import", "table", table, "-w", ws, "--user", "user", "--item", "item")

    def write(users: str) -> None:
        table.write_text("user,item\n" + "".join(f"{user},x\n{user},y\n" for user in users), encoding="utf-8")

    reclm("init", ws)
    write("bdf")
    reclm(*options, "--update")
    reclm("profile", "edit", "-w", ws, "--user", "b", HAND)
    reclm("profile", "edit", "-w", ws, "--user", "f", HAND)
    write("abdz")
    assert "--update" in reclm(*options, expect=1)
    assert "either --replace" in reclm(*options, "--update", "--replace", expect=2)
    told = reclm(*options, "--update")
    assert "2 new users, 1 gone" in told and "1 profiles kept" in told
    assert "removed with users and items that are gone: 1 profiles, 1 of them edited by hand or imported" in told
    with Workspace.open(ws) as opened:
        assert texts(opened) == {"b": HAND}
    write("abdz")
    assert "removed" not in reclm(*options, "--update")
    write("q")
    assert "none of the earlier 4 users" in reclm(*options, "--update", expect=1)
    assert "profiles kept" not in reclm(*options, "--replace")
    with Workspace.open(ws) as opened:
        assert texts(opened) == {}
