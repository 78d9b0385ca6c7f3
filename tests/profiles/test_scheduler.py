"""The scheduler: batched sequences give the same answers as single ones."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from tiny_llama import BOS, write_tiny_llama

from reclm_lite.assets import profile_model_path
from reclm_lite.errors import ModelError
from reclm_lite.profiles.scheduler import Engine, Sampling
from reclm_lite.profiles.worker import MAX_CHUNK, MIN_ALONGSIDE
from reclm_lite.runtime import load_model

WORDS = "the moon rises over old harbours while bakers sing and comets draw slow letters in cold rain".split()


def prompts(n: int, *, prefix: str = "Topics: news\nHistory:\n- ", seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [prefix + " ".join(rng.choice(WORDS, rng.integers(3, 18))) + "\nProfile:\n" for _ in range(n)]


def run(engine: Engine, texts: list[str], **options) -> list:
    results = sorted(engine.generate(texts, max_new_tokens=20, **options), key=lambda r: r.index)
    assert [r.index for r in results] == list(range(len(texts)))
    return results


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


def test_many_at_once_equals_one_at_a_time(model):
    texts = prompts(40)
    with Engine(model, 1, 8) as engine:
        together = run(engine, texts)
        assert engine.n_steps < 40 * 20 / 4
    with Engine(model, 1, 1, share_prefix=False) as engine:
        alone = run(engine, texts)
    # Batch shape changes the order of summation: a near-tie of this random model may fall the other way.
    different = [a.index for a, b in zip(together, alone) if (a.text, a.n_new_tokens) != (b.text, b.n_new_tokens)]
    assert len(different) <= 2, different
    assert len({r.text for r in together}) > 30


def test_sharing_a_prefix_leaves_results_unchanged(model):
    texts = prompts(30, prefix="A long common beginning that every prompt of this test has, word for word. ")
    with Engine(model, 1, 6) as engine:
        shared = run(engine, texts)
        assert engine.n_reused_tokens > 30 * 10
        n_decoded = engine.n_decoded_tokens
    with Engine(model, 1, 6, share_prefix=False) as engine:
        apart = run(engine, texts)
        assert engine.n_reused_tokens == 0 and engine.n_decoded_tokens > n_decoded
    assert sum(a.text != b.text for a, b in zip(shared, apart)) <= 2
    assert [a.n_prompt_tokens for a in shared] == [b.n_prompt_tokens for b in apart]


def test_no_free_slot_stands_between_two_at_work(model, monkeypatch):
    from reclm_lite.profiles.llama_context import LlamaCalls

    at_work, texts, decode = [], prompts(40), LlamaCalls.decode

    def spy(self, batch, n_logits):
        at_work.append(np.unique(batch.seq[: batch.c.n_tokens]).tolist())
        return decode(self, batch, n_logits)

    with Engine(model, 1, 1, share_prefix=False) as engine:
        alone = run(engine, texts, sampling=Sampling(guided=True))
    monkeypatch.setattr(LlamaCalls, "decode", spy)
    with Engine(model, 1, 8) as engine:
        together = run(engine, texts, sampling=Sampling(guided=True))
    assert all(slots == list(range(len(slots))) for slots in at_work)
    assert {len(slots) for slots in at_work} >= {1, 2, 3, 8}  # with all slots at work, and with few at the end
    # What moved went on as if it had not; that the bits are the same too is tested below, with the bundled model.
    assert sum((a.text, a.finish) != (b.text, b.finish) for a, b in zip(together, alone)) <= 2


def test_equal_calls_give_equal_results_in_equal_order(model):
    with Engine(model, 1, 4) as engine:
        first = list(engine.generate(prompts(15), max_new_tokens=12))
        second = list(engine.generate(prompts(15), max_new_tokens=12))
    assert first == second


def test_two_workers_answer_as_one_does_and_alike_every_time(model):
    texts = prompts(50)
    with Engine(model, 1, 8) as engine:
        assert len(engine.workers) == 1
        one = run(engine, texts)
    with Engine(model, 2, 8) as engine:
        assert [worker.n_slots for worker in engine.workers] == [4, 4]
        two, again = run(engine, texts), run(engine, texts)
        assert all(worker.n_decoded_tokens for worker in engine.workers)
    assert two == again
    assert sum(a.text != b.text for a, b in zip(one, two)) <= 2


def test_error_in_a_worker_reaches_the_caller_and_ends_the_threads(model, monkeypatch):
    def fail(self, *args):
        raise ModelError("this worker broke")

    with Engine(model, 2, 4) as engine:
        monkeypatch.setattr(engine.workers[1], "_step", fail.__get__(engine.workers[1]))
        with pytest.raises(ModelError, match="broke"):
            run(engine, prompts(30))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reclm-profiles")]


def test_results_that_nobody_waits_for_end_the_threads(model):
    with Engine(model, 2, 4) as engine:
        results = engine.generate(prompts(40), max_new_tokens=20)
        next(results)
        results.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("reclm-profiles")]
        assert len(run(engine, prompts(5))) == 5


def test_equal_prompts_in_one_call_are_each_answered(model):
    with Engine(model, 1, 4) as engine:
        results = run(engine, prompts(1) * 9)
    assert len({r.text for r in results}) == 1


def test_prompt_too_long_for_the_context_is_reported_and_the_rest_goes_on(model):
    texts = prompts(5)
    texts[2] = "far too long " * 200
    with Engine(model, 1, 3, n_ctx=256) as engine:
        results = run(engine, texts)
    assert results[2].finish == "too_long" and results[2].text == "" and results[2].n_new_tokens == 0
    assert all(r.finish in ("stop", "length") for i, r in enumerate(results) if i != 2)


def test_prompt_longer_than_a_batch_is_decoded_in_pieces(model):
    texts = prompts(6, prefix="word " * 40)
    with Engine(model, 1, 3, n_batch=32) as engine:
        pieces = run(engine, texts)
    with Engine(model, 1, 3) as engine:
        whole = run(engine, texts)
    assert sum(a.text != b.text for a, b in zip(pieces, whole)) <= 1


def test_no_more_than_max_new_tokens(model):
    with Engine(model, 1, 4) as engine:
        results = list(engine.generate(prompts(8), max_new_tokens=3))
    assert all(r.n_new_tokens <= 3 for r in results)
    assert {r.finish for r in results} <= {"length", "stop"}


def test_text_ends_at_the_first_line_break(model):
    with Engine(model, 1, 8) as engine:
        results = list(engine.generate(prompts(60), max_new_tokens=60))
    assert not any("\n" in r.text for r in results)
    assert any(r.finish == "stop" for r in results)


def test_no_prompts_give_no_results(model):
    with Engine(model, 1, 2) as engine:
        assert list(engine.generate([], max_new_tokens=4)) == []


def test_bos_comes_once_and_only_if_the_vocabulary_asks(model, tmp_path):
    with Engine(model, 1, 1) as engine:
        assert engine.tokenize("hello").tolist().count(BOS) == 1
    without = write_tiny_llama(tmp_path / "no_bos.gguf", add_bos=False)
    with Engine(without, 1, 1) as engine:
        assert BOS not in engine.tokenize("hello").tolist()


def test_special_tokens_written_in_a_prompt_stay_text(model):
    with Engine(model, 1, 1) as engine:
        tokens = engine.tokenize("before <s></s> after").tolist()
    assert tokens.count(BOS) == 1 and 1 not in tokens


def test_seeded_draws_do_not_depend_on_the_company(model):
    texts, sampling = prompts(12), Sampling(temperature=0.8, top_k=20, seed=3)
    with Engine(model, 1, 4) as engine:
        together = run(engine, texts, sampling=sampling)
        backwards = run(engine, texts[::-1], sampling=sampling)[::-1]
        other = run(engine, texts, sampling=Sampling(temperature=0.8, top_k=20, seed=4))
    assert sum(a.text != b.text for a, b in zip(together, backwards)) <= 1
    assert sum(a.text != b.text for a, b in zip(together, other)) > 6


def test_chat_template_surrounds_the_prompt_and_bos_is_not_doubled(tmp_path):
    from reclm_lite.profiles.chat import chat_wrap
    from reclm_lite.runtime import load_model

    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}[assistant]"
    )
    path = write_tiny_llama(tmp_path / "chat.gguf", chat_template=template)
    with load_model(path, vocab_only=True) as loaded:
        wrap = chat_wrap(loaded)
    assert (wrap.before, wrap.after) == ("<s>[user]", "</s>[assistant]")
    with Engine(path, 1, 1, chat=wrap) as engine:
        tokens = engine.tokenize("hi </s>").tolist()
    assert tokens.count(BOS) == 1 and tokens[0] == BOS
    assert tokens.count(1) == 1  # the template's, not the one the user wrote


def test_chat_template_that_cannot_be_rendered_is_refused(tmp_path):
    from reclm_lite.profiles.chat import chat_wrap
    from reclm_lite.runtime import load_model

    path = write_tiny_llama(tmp_path / "chat.gguf", chat_template="{% for m in messages %}{{ m.nothing.at.all }}")
    with load_model(path, vocab_only=True) as loaded, pytest.raises(ModelError, match="chat template"):
        chat_wrap(loaded)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_truncated_model_is_refused(model, tmp_path, share):
    whole = model.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError):
        Engine(cut, 1, 1)


def shares(todo, is_writing, n_batch=1024):
    """How many tokens of each slot a step takes; every slot has decoded 500 tokens before."""
    from reclm_lite.kernels.decoding import fill_batch

    n = len(todo)
    tokens = np.arange(n * 1000, dtype=np.int32).reshape(n, 1000)
    n_cached = np.full(n, 500)
    n_known, n_prompt = n_cached + todo, np.where(np.array(is_writing, bool), 400, 900)
    token, pos, seq, logits, speaking = (
        np.full(n_batch, -1, dtype) for dtype in (np.int32, np.int32, np.int32, np.int8, np.int64)
    )
    total, n_speaking = fill_batch(
        tokens, n_known, n_cached, n_prompt, n_batch, MAX_CHUNK, MIN_ALONGSIDE, token, pos, seq, logits, speaking
    )
    counts = np.bincount(seq[:total], minlength=n)
    assert (n_cached == 500 + counts).all() and (np.diff(seq[:total]) >= 0).all()
    assert (token[:total] == tokens[seq[:total], pos[:total]]).all()
    assert pos[:total].tolist() == [500 + k for count in counts for k in range(count)]
    done = [slot for slot in range(n) if counts[slot] and counts[slot] == todo[slot]]
    assert speaking[:n_speaking].tolist() == done
    assert np.flatnonzero(logits[:total] == 1).tolist() == [int(np.cumsum(counts)[slot]) - 1 for slot in done]
    assert (token[total:] == -1).all()
    return counts.tolist()


def test_prompts_of_a_step_get_equally_many_tokens_and_writers_one_each():
    assert shares([100, 1, 40, 0, 1], [0, 1, 0, 0, 1]) == [40, 1, 40, 0, 1]
    assert shares([100, 200], [0, 0]) == [60, 60]
    assert shares([100, 200, 1], [0, 0, 1]) == [61, 61, 1]
    assert shares([60, 59], [0, 0]) == [59, 59]  # an end is worth more than a multiple of four


def test_step_has_no_more_tokens_than_the_batch():
    assert shares([100, 100, 1], [0, 0, 1], n_batch=21) == [9, 9, 1]
    assert shares([9, 9, 9], [0, 0, 0], n_batch=2) == [1, 1, 0]
    assert shares([1] * 5, [1] * 5, n_batch=3) == [1, 1, 1, 0, 0]


def test_fixed_words_go_in_a_lump_only_where_few_are_alongside():
    assert shares([3, 1, 1], [1, 1, 1]) == [3, 1, 1]
    assert shares([3, 1, 1, 1, 1, 1], [1] * 6) == [1] * 6


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(guided=True)], ids=["free", "form held"])
def test_answers_have_the_same_bits_whatever_the_slots_the_threads_and_the_company(sampling):
    """The distance of the two likeliest tokens is compared too: it changes with the last bit of a logit."""
    texts = [prompt for _, prompt in demo_prompts()][:48]
    answers = []
    for n_threads, n_slots, share_prefix in ((1, 1, False), (1, 5, True), (2, 24, True), (1, 32, False)):
        with Engine(profile_model_path(), n_threads, n_slots, n_ctx=256, share_prefix=share_prefix) as engine:
            results = run(engine, texts, sampling=sampling)
            answers.append([(r.text, r.n_new_tokens, r.min_gap) for r in results])
    assert answers[0] == answers[1] == answers[2] == answers[3]
    assert max(map(len, texts)) > 100


def demo_prompts():
    from reclm_lite.profiles.calibration_texts import sample_prompts

    return list(enumerate(sample_prompts(n=64)))


MEMORY = """
import sys
from pathlib import Path
from reclm_lite.memory import peak_resident_bytes
from reclm_lite.profiles.scheduler import Engine
with Engine(Path(sys.argv[1]), 2, int(sys.argv[2]), n_ctx=1024) as engine:
    for _ in engine.generate([f"prompt {n} " + "word " * 150 for n in range(48)], max_new_tokens=12):
        pass
    print(engine.announced_bytes, peak_resident_bytes())
"""


@pytest.mark.parametrize("n_slots", [2, 32])
def test_memory_is_what_was_announced(n_slots):
    command = [sys.executable, "-P", "-c", MEMORY, str(profile_model_path()), str(n_slots)]
    announced, peak = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert peak == pytest.approx(announced, rel=0.10)


def test_slots_are_as_many_as_memory_has_room_for():
    from reclm_lite.profiles.memory_plan import plan_memory

    with load_model(profile_model_path(), vocab_only=True) as model:

        def slots(**options):
            return plan_memory(model.gguf, model.n_vocab, n_ctx=512, n_threads=2, **options)

        most = slots(available=1 << 40)
        assert (most.n_slots, most.n_workers) == (64, 2)
        few = slots(available=most.need_bytes - (30 << 20))
        assert 1 <= few.n_slots < 64 and few.need_bytes <= most.need_bytes - (30 << 20)
        with pytest.raises(ModelError, match="Nothing was started"):
            slots(available=1 << 20)
        with pytest.raises(ModelError, match="fewer --slots"):
            slots(available=few.need_bytes, n_slots=64)
        with pytest.raises(ModelError, match="1 to 256 slots"):
            slots(n_slots=257)
