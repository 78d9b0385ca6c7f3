import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from reclm_lite.dialogue.templates import parse_profile

RECIPE = Path(__file__).parents[1] / "recipes" / "profile_model"
ADJECTIVES = "red old quiet bright northern wooden early hidden narrow golden".split()
NOUNS = "harbour moss engine lantern orchard glacier violin bridge kettle meadow compass tunnel".split()


@pytest.fixture(scope="module")
def recipe():
    """The recipe's modules, imported as the script itself imports them."""
    sys.path.insert(0, str(RECIPE))
    try:
        import copying
        import synthetic
        import train
        import wordnet_text

        yield {"train": train, "synthetic": synthetic, "wordnet_text": wordnet_text, "copying": copying}
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
def config(recipe):
    return recipe["train"].Config(
        vocab=400, tokenizer_texts=200, layers=2, width=64, ffn=128, heads=4, steps=24, copy_steps=4, batch=4,
        warmup=4, lr_matrix=0.01, lr_other=3e-3, autocast=False,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def weights(folder):
    from safetensors.torch import load_file

    return load_file(next(iter(folder.glob("step-*"))) / "model.safetensors")


@pytest.fixture(scope="module")
def whole_run(recipe, pools, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, recipe["train"].train(out, config, pools=pools, n_eval=0)


def test_loss_falls(whole_run, config):
    losses = whole_run[1]
    task = losses[config.copy_steps :]
    assert sum(task[-4:]) < 0.9 * sum(task[:4])


def test_an_interrupted_run_continues_as_if_it_had_not_been(recipe, pools, config, whole_run, tmp_path):
    first = recipe["train"].train(tmp_path, config, pools=pools, n_eval=0, stop_at=11)
    second = recipe["train"].train(tmp_path, config, pools=pools, n_eval=0)
    assert first + second == whole_run[1]
    expected, found = weights(whole_run[0]), weights(tmp_path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_half_written_checkpoint_is_not_taken_for_one(recipe, tmp_path):
    (tmp_path / "partial").mkdir()
    assert recipe["train"].latest_checkpoint(tmp_path) is None


def test_examples_depend_on_seed_and_index_alone(recipe, pools):
    histories = recipe["synthetic"].Histories(pools, ["ab", " cd"])
    again = recipe["synthetic"].Histories(pools, ["ab", " cd"])
    drawn = [histories.example(7, i) for i in range(40)]
    assert [again.example(7, i) for i in reversed(range(40))] == drawn[::-1]
    assert [histories.example(8, i) for i in range(40)] != drawn


def test_every_example_is_a_valid_profile_of_what_its_prompt_shows(recipe, pools):
    histories = recipe["synthetic"].Histories(pools, ["ab", " cd"])
    for index in range(200):
        example = histories.example(3, index)
        profile = parse_profile(example.answer)
        shown = [phrase for phrase in profile.interests if phrase in example.prompt]
        assert shown, example


def test_checkpoint_loads_as_an_ordinary_llama_that_adds_bos_only(whole_run, config):
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = next(iter(whole_run[0].glob("step-*")))
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Profile:\n")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 0 and tokenizer.eos_token_id == 1 not in ids
    assert tokenizer.decode(ids[1:]) == "Profile:\n"
    assert model.config.tie_word_embeddings and model.config.vocab_size == config.vocab


def test_the_written_heads_copy_before_any_training(recipe, config):
    train = recipe["train"]
    model = train.new_model(replace(config, width=256, vocab=1000, ffn=256))
    once = torch.randint(3, 1000, (8, 20), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.zeros(8, 1, dtype=torch.long), once, once], dim=1)
    with torch.no_grad():
        predicted = model(ids).logits.argmax(-1)
    share = (predicted[:, 22:-1] == ids[:, 23:]).float().mean().item()
    assert share > 0.3  # by chance it would be 0.001
