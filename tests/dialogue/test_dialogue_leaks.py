"""Whatever held-out interaction slips into an input of a dialogue, the build ends and names it; targets from elsewhere
are judged."""

import dataclasses
import json

import numpy as np
import pytest
from dialogue_workspace import TEST, TRAIN, VALID, dialogue_workspace, make
from profile_workspace import FakeEngine, matrix, text_of

from reclm_lite.cf.neighbors import Finder
from reclm_lite.data.dataset import Split
from reclm_lite.dialogue import leakguard
from reclm_lite.dialogue.build import BuildSettings, build, default_path
from reclm_lite.dialogue.leakguard import LeakGuard, Quotes
from reclm_lite.dialogue.records import KINDS, PREFERENCE, SFT, read_dialogues
from reclm_lite.dialogue.user_rounds import UserRounds
from reclm_lite.errors import InputError, LeakError, MissingArtefactError, ReclmError
from reclm_lite.forget import forget_user
from reclm_lite.profiles.dialogue_teachers import SourceTeacher, cut_to_three, file_teacher, stored_teacher
from reclm_lite.profiles.run_settings import RunSettings
from reclm_lite.profiles.sources import SourceSettings, open_source
from reclm_lite.profiles.sources.rules import RulesTeacher
from reclm_lite.profiles.store import set_profile
from reclm_lite.prompts.inputs import load_inputs
from reclm_lite.text.bounds import MAX_FIELD_CHARS

HELD = [("valid", 0, VALID[0][0], "validation"), ("test", 1, TEST[1][0], "test part")]
PROFILE = "User identity: a fan, b fan, c fan; User interests: x, y z, w"


@pytest.fixture
def ws(tmp_path):
    with dialogue_workspace(tmp_path / "ws") as ws:
        yield ws


def with_pair(inputs, user: int, item: int):
    rows = {u: list(inputs.items_of(u)) for u in range(inputs.train.shape[0])}
    rows[user] = sorted({*rows[user], item})
    return dataclasses.replace(inputs, train=matrix(*inputs.train.shape, rows))


def built(ws, inputs, kind: str) -> None:
    build(ws, inputs, RulesTeacher(inputs), BuildSettings(kind, variants=2))


# -- the guard -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("part", "user", "item", "word"), HELD)
def test_a_held_out_pair_among_the_histories_ends_the_build_and_is_named(ws, kind, part, user, item, word):
    inputs = with_pair(load_inputs(ws), user, item)
    with pytest.raises(
        LeakError, match=f"user 'u{user}' with item 'i{item}', which .*{word}.* holds out; .*reclm split"
    ):
        built(ws, inputs, kind)
    assert not default_path(ws, kind).exists() and not list(default_path(ws, kind).parent.glob("*"))


def test_a_pair_of_no_part_ends_it_too(ws):
    item = next(i for i in range(24) if i not in TRAIN[1] and i not in TEST[1])
    with pytest.raises(LeakError, match=f"'u1' with item 'i{item}', which is not in the training part"):
        built(ws, with_pair(load_inputs(ws), 1, item), SFT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["prompt", "neighbor", "hidden"])
def test_each_interaction_behind_a_dialogue_is_looked_up_by_itself(ws, monkeypatch, kind, where):
    """Even where the histories as a whole have passed: draws that put a validation pair into one place of one user."""
    user, item = 0, VALID[0][0]
    inputs, original = load_inputs(ws), UserRounds.draw

    def draw(self, who, variant, *, hide=True):
        found = original(self, who, variant, hide=hide)
        if where == "neighbor":
            if user in found.shown.near_users:
                at = found.shown.near_users.index(user)
                near = list(found.shown.near)
                near[at] = (*near[at], item)
                return dataclasses.replace(found, shown=dataclasses.replace(found.shown, near=tuple(near)))
        elif who == user and where == "prompt":
            return dataclasses.replace(found, shown=dataclasses.replace(found.shown, own=(*found.shown.own, item)))
        elif who == user and hide:
            return dataclasses.replace(found, hidden=(item, *found.hidden))
        return found

    monkeypatch.setattr(UserRounds, "draw", draw)
    if where == "hidden" and kind == PREFERENCE:
        built(ws, inputs, kind)  # asks about nothing that is hidden
        return
    with pytest.raises(LeakError, match=f"'u{user}' with item 'i{item}'"):
        built(ws, inputs, kind)


def test_a_person_told_by_a_held_out_item_ends_the_build(ws, monkeypatch):
    from reclm_lite.dialogue.item_rounds import ItemRounds

    original = ItemRounds.person
    monkeypatch.setattr(ItemRounds, "person", lambda self, *args: [*original(self, *args), *VALID.get(args[0], [])])
    with pytest.raises(LeakError, match="validation holds out"):
        built(ws, load_inputs(ws), SFT)


def test_held_out_items_never_stand_in_a_users_own_lines(ws):
    make(ws, SFT, form="instruct", sides=("user",), rounds=1)
    for dialogue in read_dialogues(default_path(ws, SFT), SFT):
        user = int(dialogue.id.split(":")[1][1:])
        own = dialogue.messages[0].text.split("own items:")[1]
        assert not any(
            f'uniqueword{item}"' in own or f"uniqueword{item}." in own
            for item in VALID.get(user, []) + TEST.get(user, [])
        )


# -- neighbors -------------------------------------------------------------------------


def test_neighbors_of_vectors_that_saw_validation_are_refused(tmp_path):
    with (
        dialogue_workspace(tmp_path / "ws", refit_vectors=False) as ws,
        pytest.raises(
            LeakError, match="models/lightgcn to keep user vectors fitted on training alone.*reclm fit lightgcn"
        ),
    ):
        make(ws, SFT)
    with dialogue_workspace(tmp_path / "none", refit_vectors=False, valid={}) as ws:
        make(ws, SFT)  # nothing was held out for validation, so nothing was seen


def test_neighbors_of_which_nothing_tells_where_they_come_from_are_refused(ws):
    ws.save(
        "matrices/neighbors",
        {"indices": np.zeros((24, 2), np.int32)},
        inputs={"matrices/split": ws.fingerprint("matrices/split")},
        params={},
    )
    with pytest.raises(LeakError, match="nothing tells"):
        LeakGuard.of(ws)
    name = "models/lightgcn+users"
    model = ws.load("models/lightgcn", made_by="")
    ws.save(name, model.arrays, inputs=model.inputs, params=model.params)
    ws.save(
        "matrices/neighbors",
        {"indices": np.zeros((24, 2), np.int32)},
        inputs={"matrices/split": ws.fingerprint("matrices/split"), name: ws.fingerprint(name)},
        params={},
    )
    with pytest.raises(LeakError, match="without profiles"):
        LeakGuard.of(ws)


def test_stale_neighbors_are_refused_with_the_command(ws):
    with ws.writing():
        artefact = ws.load("matrices/split", made_by="")
        ws.save("matrices/split", artefact.arrays, inputs=artefact.inputs, params={"seed": 9})
    with pytest.raises(MissingArtefactError, match="matrices/neighbors is stale.*reclm neighbors"):
        make(ws, SFT)


def test_neighbors_by_a_part_of_a_history_do_not_know_the_rest():
    """Users 0 to 3 share item 0, users 4 to 7 item 1; user 8 has both. What is hidden of it decides whom it is like."""
    rows = {**{u: [0, 2 + u] for u in range(4)}, **{u: [1, 2 + u] for u in range(4, 8)}, 8: [0, 1]}
    train = matrix(9, 10, rows)
    vectors = np.array([[1, 0]] * 4 + [[0, 1]] * 4 + [[1, 1]], np.float32)
    empty = matrix(9, 10, {})
    finder = Finder(Split(train, empty, empty, empty, np.arange(10), np.arange(0)), vectors, None)
    for part, like in (([0], {0, 1, 2, 3}), ([1], {4, 5, 6, 7})):
        found = finder(np.array([8]), matrix(1, 10, {0: part}), 4)
        assert set(found[0].tolist()) == like
    assert finder(np.array([8]), matrix(1, 10, {}), 3).tolist() == [[-1, -1, -1]]


# -- teachers ----------------------------------------------------------------------------


def test_a_profile_that_quotes_what_is_held_out_is_left_out_and_counted(ws):
    title = text_of(VALID[0][0]).title
    quoting = f"User identity: a fan, b fan, c fan; User interests: x, y, {title}"
    with ws.writing():
        set_profile(ws, "user", 0, quoting)
        set_profile(
            ws, "user", 2, f"User identity: a fan, b fan, c fan; User interests: x, y, {text_of(TRAIN[2][0]).title}"
        )
        set_profile(ws, "user", 4, PROFILE)
        set_profile(ws, "item", 3, PROFILE)
    inputs = load_inputs(ws)
    summary = build(ws, inputs, stored_teacher(ws), BuildSettings(SFT, rounds=1))
    found = {dialogue.id.split(":")[1] for dialogue in read_dialogues(default_path(ws, SFT), SFT)}
    assert found == {"u2", "u4", "i3"}
    assert summary.left_out["first-round answer quotes what is held out"] == 1
    quotes = Quotes(ws)
    assert (
        quotes.of_held_out("user", 0, [title])
        and not quotes.of_held_out("user", 4, [title])
        and not quotes.of_held_out("item", 0, [title])
    )


def test_texts_are_read_as_far_as_prompts_read_them_and_each_item_once(ws, monkeypatch):
    with ws.db:
        ws.db.execute("UPDATE items SET description=?", ("words of a long text " * 50_000,))
    quotes, title = Quotes(ws), text_of(VALID[0][0]).title
    read, plain = [], leakguard._plain
    monkeypatch.setattr(leakguard, "_plain", lambda text: read.append(len(text)) or plain(text))
    for _ in range(3):
        quotes.of_held_out("user", 0, [title])
    assert max(read) <= MAX_FIELD_CHARS
    assert sum(length > 1000 for length in read) <= len(TRAIN[0])


def test_targets_from_a_file_are_taken_for_those_it_names_and_longer_ones_cut(ws, tmp_path):
    long = "User identity: a, b, b, c, d, e; User interests: f, g, h, i, j."
    rows = [
        {"side": "user", "id": "u0", "profile": PROFILE},
        {"side": "user", "id": "u2", "profile": long},
        {"side": "user", "id": "nobody", "profile": PROFILE},
        {"side": "user", "id": "u4", "profile": "a lovely person"},
    ]
    path = tmp_path / "targets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = load_inputs(ws)
    summary = build(ws, inputs, file_teacher(ws, path, None, None), BuildSettings(SFT, sides=("user",), rounds=1))
    found = {d.id.split(":")[1]: d.messages[1].text for d in read_dialogues(default_path(ws, SFT), SFT)}
    assert found == {"u0": PROFILE, "u2": "User identity: a, b, c; User interests: f, g, h"}
    assert summary.left_out["first-round answer without the form"] == 1
    assert summary.left_out["rows that are of nobody here, or have no text"] == 1
    assert "targets.jsonl" in summary.manifest["teacher"] and str(tmp_path) not in json.dumps(summary.manifest)
    path.write_text('{"side": "user", "id": "nobody", "profile": "x"}\n')
    with pytest.raises(InputError, match="contains no profiles of this workspace"):
        file_teacher(ws, path, None, None)
    assert cut_to_three("something else") is None


def test_stored_profiles_need_profiles(ws):
    with pytest.raises(InputError, match="reclm profile users"):
        stored_teacher(ws)


def test_preferences_of_stored_profiles_show_whole_histories_and_ask_for_nothing_new(ws):
    with ws.writing():
        for user in range(24):
            set_profile(ws, "user", user, f"User identity: a{user} fan, b fan, c fan; User interests: x{user}, y, z")
    inputs = load_inputs(ws)
    summary = build(ws, inputs, stored_teacher(ws), BuildSettings(PREFERENCE, sides=("user",), form="instruct"))
    assert not {"smoothed", "stale"} & set(summary.counts)
    for dialogue in read_dialogues(default_path(ws, PREFERENCE), PREFERENCE):
        own = dialogue.messages[0].text.split("own items:")[1]
        assert own.count('- "') == len(TRAIN[int(dialogue.id.split(":")[1][1:])])


@pytest.fixture
def fake_engine(monkeypatch, tmp_path):
    from tiny_llama import write_tiny_llama

    from reclm_lite.profiles.sources import gguf

    monkeypatch.setattr(gguf, "Engine", FakeEngine)
    monkeypatch.setattr(FakeEngine, "asked", [])
    return write_tiny_llama(tmp_path / "tiny.gguf", n_ctx=2048)


@pytest.mark.parametrize("kind", [SFT, PREFERENCE])
def test_a_models_answers_are_asked_once_kept_and_served_from_the_store(ws, tmp_path, fake_engine, kind):
    inputs = load_inputs(ws)

    def run(path):
        with open_source(SourceSettings(str(fake_engine), n_threads=1), inputs) as source:
            return build(ws, inputs, SourceTeacher(ws, source, RunSettings()), BuildSettings(kind), path=path)

    summary = run(tmp_path / "a.jsonl")
    n_asked = len(FakeEngine.asked)
    assert n_asked == len(set(FakeEngine.asked)) > 20
    first = list(read_dialogues(tmp_path / "a.jsonl", kind))
    assert first and all(" ".join(d.messages[0].text.split()) for d in first)
    for dialogue in first if kind == SFT else []:
        assert dialogue.messages[1].text == FakeEngine.answer(FakeEngine(), dialogue.messages[0].text, None)
    again = run(tmp_path / "b.jsonl")
    assert len(FakeEngine.asked) == n_asked and again.sha256 == summary.sha256
    assert str(tmp_path) not in json.dumps(summary.manifest)


def test_answers_that_do_not_parse_are_left_out_and_counted(ws, tmp_path, fake_engine, monkeypatch):
    monkeypatch.setattr(FakeEngine, "bad_words", ("uniqueword1",))
    inputs = load_inputs(ws)
    with open_source(SourceSettings(str(fake_engine), n_threads=1), inputs) as source:
        summary = build(
            ws, inputs, SourceTeacher(ws, source, RunSettings()), BuildSettings(SFT), path=tmp_path / "a.jsonl"
        )
    assert summary.left_out["first-round answer without the form"] > 0 and summary.n_dialogues > 0
    assert "nonsense" not in (tmp_path / "a.jsonl").read_text()


def test_a_teacher_that_falls_silent_ends_the_build_and_what_it_said_is_kept(ws, tmp_path, fake_engine, monkeypatch):
    inputs, answer_all = load_inputs(ws), FakeEngine.generate

    def some(self, prompts, **options):
        yield from list(answer_all(self, prompts, **options))[:5]

    def run():
        with open_source(SourceSettings(str(fake_engine), n_threads=1), inputs) as source:
            return build(
                ws,
                inputs,
                SourceTeacher(ws, source, RunSettings()),
                BuildSettings(SFT, sides=("user",)),
                path=tmp_path / "a.jsonl",
            )

    monkeypatch.setattr(FakeEngine, "generate", some)
    with pytest.raises(ReclmError, match="answered 5 of .* run the same command again"):
        run()
    assert not (tmp_path / "a.jsonl").exists()
    monkeypatch.setattr(FakeEngine, "generate", answer_all)
    FakeEngine.asked.clear()
    n = run().n_dialogues
    assert n and len(FakeEngine.asked) < n  # five were not asked again


# -- forgetting ----------------------------------------------------------------------------


def test_a_forgotten_users_dialogues_leave_the_workspace_with_all_files_that_hold_histories(ws, tmp_path):
    for kind in KINDS:
        make(ws, kind)
    folder = default_path(ws, SFT).parent
    assert all(b"u5:" in (folder / f"{kind}.jsonl").read_bytes() for kind in KINDS)
    dry = forget_user(ws, "u5", dry_run=True)
    assert len(list(folder.iterdir())) == 6 and {f"llm/dialogues/{kind}.jsonl" for kind in KINDS} <= {
        one.path for one in dry.deleted
    }
    summary = forget_user(ws, "u5")
    assert not list(folder.iterdir())
    commands = {one.command for one in summary.deleted}
    assert f"reclm dialogue build sft -w {ws.argument}" in commands
    assert any("dialogues written elsewhere" in remains.text for remains in summary.remains)
    assert not any("llm/dialogues" in remains.text for remains in summary.remains)
    make(ws, SFT)
    assert b"u5:" not in default_path(ws, SFT).read_bytes()
