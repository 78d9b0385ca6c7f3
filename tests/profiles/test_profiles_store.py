"""Stored answers and hand-written profiles stay, and every decision has a recorded reason."""

import pytest
from profile_workspace import make_workspace

from reclm_lite.errors import InputError, ProfileFormatError
from reclm_lite.profiles import store
from reclm_lite.profiles.store import Generation

TEXT = "User identity: cook, gardener, parent; User interests: herbs, soups, tools"


@pytest.fixture
def ws(tmp_path):
    with make_workspace(tmp_path / "ws", {0: [0], 1: [1], 2: [2]}) as ws:
        yield ws


def test_key_depends_on_source_and_prompt():
    assert len({store.prompt_key(a, b) for a in ("m1", "m2") for b in ("p1", "p2")}) == 4
    assert store.prompt_key("m", "p") == store.prompt_key("m", "p")


def test_a_generation_is_never_replaced(ws):
    store.put_generation(ws, Generation("k", "first", "invalid", "why", 3, 4))
    store.put_generation(ws, Generation("k", "second", "ok"))
    assert store.get_generation(ws, "k") == Generation("k", "first", "invalid", "why", 3, 4)
    assert store.get_generation(ws, "k") == Generation("k", "first", "invalid", "why", 3, 4)
    assert store.get_generation(ws, "absent") is None


def test_edit_by_id_is_checked_and_normalized(ws):
    with pytest.raises(ProfileFormatError):
        store.edit_profile(ws, "user", "u1", "a cook")
    store.edit_profile(ws, "user", "u1", "user identity: cook,  gardener , parent;User interests: herbs, soups, tools.")
    found = store.find_profile(ws, "user", "u1")
    assert (found.status, found.text, found.source) == ("edited", TEXT, "edited by hand")


def test_unknown_ids_and_missing_profiles_are_told_apart(ws):
    with pytest.raises(InputError, match="'nobody'"):
        store.find_profile(ws, "user", "nobody")
    with pytest.raises(InputError, match="reclm profile items"):
        store.find_profile(ws, "item", "i3")
    with pytest.raises(InputError, match="expected side"):
        store.get_profile(ws, "shelf", 0)
    assert store.get_profile(ws, "users", 0) is None


def test_profile_put_over_an_edited_one_changes_nothing(ws):
    store.set_profile(ws, "user", 0, TEXT)
    other = TEXT.replace("cook", "pilot")
    store.put_profiles(ws, "user", [0, 1], Generation("k", other, "ok"), other, "some model")
    assert store.get_profile(ws, "user", 0).text == TEXT
    assert store.get_profile(ws, "user", 1).text == other
    assert store.profile_counts(ws, "user") == {"edited": 1, "ok": 1}
    assert store.usable_profiles(ws, "user") == [(0, TEXT), (1, other)]


def test_invalid_profile_has_a_reason_and_no_text(ws):
    store.put_profiles(ws, "item", [2], Generation("k", "raw words", "invalid", "no form"), "", "some model")
    profile = store.get_profile(ws, "item", 2)
    assert (profile.status, profile.text, profile.reason) == ("invalid", "", "no form")
    assert store.usable_profiles(ws, "item") == []


def test_job_that_never_ended_is_marked_killed(ws):
    first = store.start_job(ws, "profile users", {})
    second = store.start_job(ws, "profile users", {})
    store.end_job(ws, second, "done", {"n_ok": 1})
    states = dict(ws.db.execute("SELECT job_id, state FROM jobs"))
    assert states == {first: "killed", second: "done"}
