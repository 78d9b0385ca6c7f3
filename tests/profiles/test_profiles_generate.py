"""A run of `reclm profile`: each prompt once, nothing lost, nothing of a person's overwritten."""

import sqlite3

import pytest
from profile_workspace import FakeEngine, make_workspace, matrix, profile, store_split
from tiny_llama import write_tiny_llama

from reclm_lite.errors import InputError, ModelError, WorkspaceError
from reclm_lite.profiles import store
from reclm_lite.profiles.generate import Interrupted
from reclm_lite.profiles.run_progress import Observer
from reclm_lite.profiles.sources import gguf as gguf_source

TRAIN = {0: [0, 1], 1: [0, 1], 2: [2], 3: [3, 4, 5], 4: [6], 5: [6], 6: [6], 7: [8, 9, 10, 11]}
TEXT = "User identity: cook, gardener, parent; User interests: herbs, soups, tools"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=1024)


@pytest.fixture
def ws(tmp_path):
    with make_workspace(tmp_path / "ws", TRAIN, n_users=9) as ws:
        yield ws


@pytest.fixture
def engine(monkeypatch):
    """A stand-in for the model's answers; the GGUF file is still checked and hashed."""

    class Engine(FakeEngine):
        asked, bad_words, made = [], (), 0

    monkeypatch.setattr(gguf_source, "Engine", Engine)
    return Engine


def test_each_distinct_prompt_is_generated_once(ws, gguf, engine):
    summary = profile(ws, "users", model=gguf)
    assert (summary.n_requested, summary.n_ok, summary.n_invalid) == (8, 8, 0)
    assert summary.n_distinct_prompts == summary.n_generated == len(engine.asked) == len(set(engine.asked)) == 5
    assert (summary.n_skipped, summary.skipped) == (1, {"no history and no neighbors": 1})
    profiles = [store.get_profile(ws, "user", user) for user in range(8)]
    assert profiles[0].text == profiles[1].text != profiles[2].text
    assert profiles[4].prompt_key == profiles[6].prompt_key
    assert store.get_profile(ws, "user", 8) is None
    assert "8 ok" in summary.sentence() and summary.as_dict()["n_generated"] == 5


def test_rerun_generates_nothing_and_opens_no_model(ws, gguf, engine):
    profile(ws, "users", model=gguf)
    before = ws.db.execute("SELECT * FROM profiles ORDER BY side, idx").fetchall()
    again = profile(ws, "users", model=gguf)
    assert (again.n_generated, again.n_from_cache, again.n_ok) == (0, 5, 8)
    assert engine.made == 1
    assert ws.db.execute("SELECT * FROM profiles ORDER BY side, idx").fetchall() == before


def test_items_with_equal_texts_share_a_generation(tmp_path, gguf, engine):
    from profile_workspace import text_of

    texts = [text_of(item % 3) for item in range(24)]
    with make_workspace(tmp_path / "twins", {0: []}, n_users=1, texts=texts) as ws:
        summary = profile(ws, "items", model=gguf)
        assert (summary.n_ok, summary.n_distinct_prompts, summary.n_generated) == (24, 3, 3)


def test_limit_takes_the_most_shared_prompts_then_the_most_active_users(ws, gguf, engine):
    summary = profile(ws, "users", model=gguf, limit=4)
    assert summary.n_requested == summary.n_ok == 4
    assert [idx for idx, _ in store.usable_profiles(ws, "user")] == [0, 4, 5, 6]
    profile(ws, "users", model=gguf, limit=6)
    assert [idx for idx, _ in store.usable_profiles(ws, "user")] == [0, 1, 4, 5, 6, 7]
    assert profile(ws, "users", model=gguf, limit=6).n_generated == 0


def test_chosen_users_only(ws, gguf, engine):
    profile(ws, "users", model=gguf, users=["u7", "u2"])
    assert [idx for idx, _ in store.usable_profiles(ws, "user")] == [2, 7]
    with pytest.raises(InputError, match="'u99'"):
        profile(ws, "users", model=gguf, users=["u99"])


def test_edited_profile_is_not_overwritten(ws, gguf, engine):
    store.set_profile(ws, "user", 1, TEXT)
    summary = profile(ws, "users", model=gguf)
    assert summary.n_edited == 1 and summary.n_ok == 7
    assert store.get_profile(ws, "user", 1).text == TEXT
    assert store.get_profile(ws, "user", 1).status == "edited"


def test_invalid_answer_is_kept_tried_again_with_a_draw_and_then_left_invalid(ws, gguf, engine):
    engine.bad_words = ("uniqueword2",)
    summary = profile(ws, "users", model=gguf)
    assert (summary.n_ok, summary.n_invalid, summary.n_retried, summary.n_generated) == (7, 1, 1, 6)
    found = store.get_profile(ws, "user", 2)
    assert (found.status, found.text) == ("invalid", "") and "expected 'User identity" in found.reason
    raws = {row[0] for row in ws.db.execute("SELECT raw FROM generations WHERE status='invalid'")}
    assert raws == {"nonsense drawn with greedy, form 3", "nonsense drawn with t=0.7 k=40 seed=1, form 3"}
    assert profile(ws, "users", model=gguf).n_generated == 0


def test_second_try_that_succeeds_counts(ws, gguf, engine, monkeypatch):
    def answer(self, prompt, sampling):
        good = FakeEngine.answer(self, prompt, sampling)
        return "nonsense" if sampling.temperature == 0 and "uniqueword6" in prompt else good

    monkeypatch.setattr(engine, "answer", answer)
    summary = profile(ws, "users", model=gguf)
    assert (summary.n_ok, summary.n_invalid, summary.n_retried) == (8, 0, 1)
    assert "seed=1" in store.get_profile(ws, "user", 5).source


def test_without_retry_an_invalid_answer_stays_invalid(ws, gguf, engine):
    engine.bad_words = ("uniqueword2",)
    summary = profile(ws, "users", model=gguf, n_retries=0)
    assert (summary.n_invalid, summary.n_generated) == (1, 5)


def test_rules_replace_an_invalid_answer_only_on_request_and_say_so(ws, gguf, engine):
    engine.bad_words = ("uniqueword2",)
    summary = profile(ws, "users", model=gguf, fallback="rules")
    assert (summary.n_ok, summary.n_invalid, summary.n_fallback) == (8, 0, 1)
    found = store.get_profile(ws, "user", 2)
    assert found.status == "ok" and found.source.startswith("rules") and "in place of" in found.source
    profile(ws, "users", model=gguf)
    assert store.get_profile(ws, "user", 2) == found


def test_rules_profile_everyone_without_a_model(ws):
    summary = profile(ws, "users", model="rules")
    assert (summary.n_ok, summary.n_invalid) == (8, 0)
    assert store.get_profile(ws, "user", 3).source.startswith("rules")
    assert profile(ws, "items", model="rules").n_ok == 24
    assert profile(ws, "users", model="rules").n_from_cache == 5


def test_another_model_makes_its_own_profiles(ws, gguf, engine, tmp_path):
    profile(ws, "users", model=gguf)
    other = write_tiny_llama(tmp_path / "other.gguf", seed=1, n_ctx=1024)
    assert profile(ws, "users", model=other).n_generated == 5
    assert "other.gguf" in store.get_profile(ws, "user", 0).source
    assert profile(ws, "users", model=gguf).n_generated == 0
    assert "tiny.gguf" in store.get_profile(ws, "user", 0).source
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(gguf.read_bytes())
    assert profile(ws, "users", model=renamed).n_generated == 0


def test_profiles_of_another_split_are_dropped_but_their_generations_serve_again(ws, gguf, engine):
    profile(ws, "users", model=gguf)
    store.set_profile(ws, "user", 8, TEXT)
    changed = {**TRAIN, 7: [8]}
    store_split(ws, [matrix(9, 24, rows) for rows in (changed, {}, {7: [9, 10, 11]}, {})])
    summary = profile(ws, "users", model=gguf, limit=2)
    assert summary.n_generated == 0
    assert [idx for idx, _ in store.usable_profiles(ws, "user")] == [4, 5, 8]
    summary = profile(ws, "users", model=gguf)
    assert (summary.n_generated, summary.n_from_cache) == (1, 4)


def test_prompt_too_long_for_the_model_is_invalid_with_a_reason(ws, tmp_path):
    small = write_tiny_llama(tmp_path / "small.gguf", n_ctx=160)
    summary = profile(ws, "users", model=small, n_threads=1)
    assert summary.n_invalid == 8 and summary.n_retried < 5
    reasons = [store.get_profile(ws, "user", user).reason for user in range(8)]
    assert any("too many for a context of 160" in reason for reason in reasons)


def test_answers_of_a_real_model_are_all_stored_whatever_they_are(ws, gguf):
    summary = profile(ws, "users", model=gguf, n_threads=1)
    assert summary.n_ok + summary.n_invalid == 8
    assert ws.db.execute("SELECT COUNT(*) FROM generations").fetchone()[0] == summary.n_generated == 10
    assert summary.decode_tokens_per_s > 0


def test_chat_model_gets_the_instruct_prompt_in_its_template(ws, engine, tmp_path):
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    chat = write_tiny_llama(tmp_path / "chat.gguf", chat_template=template)
    summary = profile(ws, "users", model=chat)
    assert "chat:" in summary.source
    assert all("Answer with one line" in prompt for prompt in engine.asked)


def test_truncated_model_is_refused_and_nothing_changes(ws, gguf, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:5000])
    with pytest.raises(ModelError):
        profile(ws, "users", model=cut)
    with pytest.raises(ModelError):
        profile(ws, "users", model=tmp_path / "absent.gguf")
    assert store.profile_counts(ws, "user") == {}


def test_ctrl_c_keeps_what_was_made_and_says_how_to_go_on(ws, gguf, engine, monkeypatch):
    real = FakeEngine.answer

    def answer(self, prompt, sampling):
        if "uniqueword6" not in prompt and "uniqueword0" not in prompt:
            raise KeyboardInterrupt
        return real(self, prompt, sampling)

    monkeypatch.setattr(engine, "answer", answer)
    monkeypatch.setattr(engine, "generate", one_by_one)
    with pytest.raises(Interrupted, match="run `reclm profile users"):
        profile(ws, "users", model=gguf)
    assert ws.db.execute("SELECT state FROM jobs").fetchall() == [("interrupted",)]
    n = ws.db.execute("SELECT COUNT(*) FROM generations").fetchone()[0]
    assert 1 <= n < 5
    monkeypatch.setattr(engine, "answer", real)
    assert profile(ws, "users", model=gguf).n_generated == 5 - n


def one_by_one(self, prompts, *, max_new_tokens, sampling, stop_signal=None, window=None):
    from reclm_lite.profiles.scheduler import GenerationResult

    for index, prompt in enumerate(prompts):
        type(self).asked.append(prompt)
        yield GenerationResult(index, self.answer(prompt, sampling), 5, 5, "stop")


def test_full_disk_is_told_and_what_was_stored_stays(ws, gguf, engine, monkeypatch):
    real, calls = store.put_generation, []

    def put(ws, generation, **options):
        calls.append(generation)
        if len(calls) == 3:
            raise sqlite3.OperationalError("database or disk is full")
        real(ws, generation, **options)

    monkeypatch.setattr(store, "put_generation", put)
    with pytest.raises(WorkspaceError, match="disk is full"):
        profile(ws, "users", model=gguf)
    assert ws.db.execute("SELECT COUNT(*) FROM generations").fetchone() == (2,)
    monkeypatch.setattr(store, "put_generation", real)
    assert profile(ws, "users", model=gguf).n_generated == 3


def test_answer_that_repeats_an_id_of_the_data_is_invalid_and_tried_again(tmp_path, gguf, engine, monkeypatch):
    with make_workspace(tmp_path / "ids", {0: [0, 1], 1: [2]}, item_ids={1: "sku-ab12"}) as ws:

        def answer(self, prompt, sampling):
            good = FakeEngine.answer(self, prompt, sampling)
            return (
                good.replace("watcher", "SKU-AB12 buyer")
                if sampling.temperature == 0 and "uniqueword0" in prompt
                else good
            )

        monkeypatch.setattr(engine, "answer", answer)
        summary = profile(ws, "users", model=gguf)
        assert (summary.n_ok, summary.n_retried) == (2, 1)
        reasons = [row[0] for row in ws.db.execute("SELECT reason FROM generations WHERE status='invalid'")]
        assert reasons == ["the answer repeats the id 'sku-ab12'; generate the profile again"]


@pytest.mark.parametrize("n_retries", [0, 1, 3])
def test_every_retry_draws_with_a_seed_of_its_own(ws, gguf, engine, n_retries):
    engine.bad_words = ("uniqueword2",)
    summary = profile(ws, "users", model=gguf, n_retries=n_retries)
    assert (summary.n_invalid, summary.n_retried, summary.n_generated) == (1, n_retries, 5 + n_retries)
    assert ws.db.execute("SELECT COUNT(DISTINCT raw) FROM generations WHERE status='invalid'").fetchone() == (
        1 + n_retries,
    )
    assert summary.invalid_share == pytest.approx(1 / 8)


def test_fresh_generates_anew_what_is_in_the_store(ws, gguf, engine):
    profile(ws, "users", model=gguf)
    assert profile(ws, "users", model=gguf).n_generated == 0
    assert profile(ws, "users", model=gguf, fresh=True).n_generated == 5


def test_summary_tells_what_sharing_saved(ws, gguf):
    summary = profile(ws, "users", model=gguf, n_slots=2)
    n_tokens = sum(row[0] for row in ws.db.execute("SELECT n_prompt_tokens FROM generations"))
    assert 0 < summary.shared_prompt_share < 1 and summary.saved_prompt_share > summary.shared_prompt_share
    assert summary.prefill_tokens_per_s > 0 and n_tokens > 0
    assert (summary.profiles_per_s > 0) == (summary.n_ok > 0)
    assert 0 < summary.announced_bytes < 1 << 32 and summary.peak_bytes > 0


def test_near_ties_are_measured_and_counted(ws, gguf):
    summary = profile(ws, "users", model=gguf, n_retries=0)
    gaps = [row[0] for row in ws.db.execute("SELECT min_gap FROM generations")]
    assert all(gap is not None and gap >= 0 for gap in gaps)
    from reclm_lite.profiles.generate import NEAR_TIE

    assert summary.n_near_ties == sum(gap < NEAR_TIE for gap in gaps)


def test_progress_ends_at_the_total(ws, gguf, engine):
    calls, observer = [], Observer()
    observer.progress = lambda done, total, note="": calls.append((done, total))
    profile(ws, "users", model=gguf, observer=observer)
    assert calls[0] == (0, 8) and calls[-1] == (8, 8)


def test_bad_arguments_are_refused(ws, gguf):
    with pytest.raises(InputError, match="side"):
        profile(ws, "shelves", model=gguf)
    with pytest.raises(InputError, match="limit"):
        profile(ws, "users", model=gguf, limit=0)
    with pytest.raises(InputError, match="fallback"):
        profile(ws, "users", model=gguf, fallback="luck")
