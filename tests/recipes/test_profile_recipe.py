import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from reclm_lite.dialogue.preferences import SHARES
from reclm_lite.dialogue.records import KINDS, PREFERENCE, RL, SFT, line_of, read_dialogues
from reclm_lite.prompts.answer import parse_profile
from reclm_lite.prompts.forms import NO, YES
from reclm_lite.prompts.spans import LABEL
from reclm_lite.tune.scratch import ScratchSettings

RECIPE = Path(__file__).parents[2] / "recipes" / "profile_model"
ADJECTIVES = "red old quiet bright northern wooden early hidden narrow golden".split()
NOUNS = "harbour moss engine lantern orchard glacier violin bridge kettle meadow compass tunnel".split()
SIZES = ScratchSettings(vocab=400, layers=2, width=64, ffn=128, heads=4, n_ctx=256)


@pytest.fixture(scope="module")
def recipe():
    """The recipe's modules by name, imported as its scripts import them."""
    sys.path.insert(0, str(RECIPE))
    try:
        import copying
        import dialogues
        import evaluate
        import start
        import synthetic
        import wordnet_text

        yield {m.__name__: m for m in (copying, dialogues, evaluate, start, synthetic, wordnet_text)}
    finally:
        sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def pools(recipe):
    glosses = tuple(f"a {a} {n} near the {m} of the town" for a in ADJECTIVES for n, m in zip(NOUNS, reversed(NOUNS)))
    sentences = tuple(f"they saw the {a} {n} in the morning" for a in ADJECTIVES for n in NOUNS)
    names = ("Oslo", "Ada Lovelace", "Nile", "Marie Curie")
    verbs = ("build", "carry", "paint")
    return recipe["wordnet_text"].WordNetText(tuple(NOUNS), names, tuple(ADJECTIVES), verbs, glosses, sentences)


@pytest.fixture(scope="module")
def histories(recipe, pools):
    return recipe["synthetic"].Histories(pools, ["ab", " cd"])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def made(recipe, pools, tmp_path_factory):
    """A small start."""
    out = tmp_path_factory.mktemp("recipe") / "start"
    recipe["start"].make_start(out, pools, sizes=SIZES, copy_steps=4, n_texts=100)
    return out


def test_stories_depend_on_seed_and_index_alone(recipe, pools, histories):
    again = recipe["synthetic"].Histories(pools, ["ab", " cd"])
    drawn = [histories.story(7, i) for i in range(40)]
    assert [again.story(7, i) for i in reversed(range(40))] == drawn[::-1]
    assert [histories.story(8, i) for i in range(40)] != drawn


def test_further_items_change_nothing_of_a_story(histories):
    for i in range(20):
        more = histories.story(7, i, n_more=2)
        assert replace(more, more=(), others=()) == histories.story(7, i)
        assert len(more.more) == len(more.others) == (2 if more.history else 0)


def test_every_story_has_a_valid_profile_of_what_its_prompt_shows(histories):
    for i in range(200):
        example = histories.example(3, i)
        profile = parse_profile(example.answer)
        assert [phrase for phrase in profile.interests if phrase in example.prompt], example


def test_the_start_loads_as_an_ordinary_llama_that_adds_bos_only(made):
    from transformers import AutoTokenizer, LlamaForCausalLM

    model, tokenizer = LlamaForCausalLM.from_pretrained(made), AutoTokenizer.from_pretrained(made)
    ids = tokenizer("Profile:\n")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 0 and tokenizer.eos_token_id == 1 not in ids
    assert tokenizer.decode(ids[1:]) == "Profile:\n"
    assert model.config.tie_word_embeddings and model.config.vocab_size == SIZES.vocab


def test_the_written_heads_copy_before_any_training(recipe, pools, tmp_path):
    from transformers import LlamaForCausalLM

    sizes = replace(SIZES, width=256, vocab=1000, ffn=256)
    recipe["start"].make_start(tmp_path, pools, sizes=sizes, copy_steps=0, n_texts=100)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    once = torch.randint(3, 1000, (8, 20), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.zeros(8, 1, dtype=torch.long), once, once], dim=1)
    with torch.no_grad():
        predicted = model(ids).logits.argmax(-1)
    share = (predicted[:, 22:-1] == ids[:, 23:]).float().mean().item()
    assert share > 0.3  # by chance it would be 0.001


def test_training_on_copying_lowers_its_loss(recipe, pools, tmp_path):
    first = recipe["start"].make_start(tmp_path, pools, sizes=SIZES, copy_steps=1, n_texts=100)
    assert recipe["start"].make_start(tmp_path, pools, sizes=SIZES, copy_steps=20, n_texts=100) < 0.9 * first


@pytest.fixture(scope="module")
def drawn(recipe, histories):
    """Dialogues of every kind."""
    m = recipe["dialogues"]
    return {
        SFT: list(m.sft(histories, 400)),
        PREFERENCE: list(m.preferences(histories, 300)),
        RL: list(m.rl(histories, 100)),
    }


def test_the_dialogues_are_what_the_training_reads(drawn, tmp_path):
    for kind in KINDS:
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(map(line_of, drawn[kind])), encoding="utf-8")
        assert list(read_dialogues(path, kind)) == drawn[kind]
        assert 0 < sum(d.part == "held_out" for d in drawn[kind]) < 0.05 * len(drawn[kind])


def script(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, RECIPE / "dialogues.py", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def test_any_number_of_processes_writes_the_same_files_and_a_missing_wordnet_ends_them(made, tmp_path):
    line = (
        '00001740 03 n 01 {0} 0 000 @ 0000 n 0000 | the {0} of a town near the river; "they saw the {0} in the '
        'morning"\n'
    )
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text(
            "".join(line.format(word) for word in (*NOUNS, *ADJECTIVES, "Oslo", "Nile", "Ada"))
        )
    counts = ("--sft", 520, "--preferences", 30, "--rl", 20, "--wordnet", tmp_path)
    for jobs in (1, 2):
        ended = script(made, tmp_path / str(jobs), *counts, "--jobs", jobs)
        assert ended.returncode == 0, ended.stderr
    for kind in KINDS:
        one, two = ((tmp_path / str(jobs) / f"{kind}.jsonl").read_bytes() for jobs in (1, 2))
        assert one == two and one
    ended = script(made, tmp_path / "none", "--wordnet", tmp_path / "nowhere", "--jobs", 2)
    assert ended.returncode != 0 and "expected WordNet's" in ended.stderr


def test_second_rounds_are_yes_about_half_the_time(drawn):
    said = Counter(d.messages[3].text for d in drawn[SFT] if len(d.messages) == 4)
    assert set(said) == {YES, NO} and min(said.values()) > 0.35 * sum(said.values())
    assert all(d.messages[3].spans[0].origin == LABEL for d in drawn[SFT] if len(d.messages) == 4)
    assert 0.1 < sum(said.values()) / len(drawn[SFT]) < 0.4


def test_rejected_profiles_are_spoiled_in_every_way(drawn):
    assert {d.corruption for d in drawn[PREFERENCE]} == set(SHARES)
    assert all(parse_profile(d.chosen) and d.rejected != d.chosen for d in drawn[PREFERENCE])


def test_prompts_of_rl_have_items_of_both_kinds_to_rank(drawn):
    assert all(len(d.positives) == len(d.negatives) > 0 and not set(d.positives) & set(d.negatives) for d in drawn[RL])


def test_own_above_other_is_one_where_each_profile_is_its_own_history_alone(recipe):
    vectors = np.eye(6, dtype=np.float32)
    assert recipe["evaluate"].own_above_other(vectors, vectors) == 1.0
    assert recipe["evaluate"].own_above_other(np.ones_like(vectors), vectors) == 0.5  # ties


def test_the_figures_count_what_parses_and_whose_words_are_the_teachers(recipe):
    m = recipe["evaluate"]
    good, other = (
        f"User identity: a fan, b fan, c fan; User interests: {x}"
        for x in ("moss, kettle, tunnel", "moss, kettle, violin")
    )
    data = m.Prepared(["# moss kettle tunnel"] * 4, [good] * 4, np.eye(4, dtype=np.float32), np.zeros(4, np.float32))

    def encode(texts):
        return np.ones((len(texts), 4), np.float32)

    found = m.evaluate("made up", data, lambda prompts: [good, other, "moss", good], encode)
    assert found["model"]["parsed"] == 0.75 and len(found["failed"]) == 1
    assert found["model"]["interests_as_teacher"] == found["model"]["interests_in_prompt"] == round(8 / 9, 4)
