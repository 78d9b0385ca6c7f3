"""The generated demo data set: plausible, without leakage, reproducible."""

import numpy as np
import pytest

from reclm_lite.data.dataset import GIVEN_TEST, GIVEN_TRAIN, GIVEN_UNSEEN
from reclm_lite.data.demo import demo_user_ids_to_show, generate_demo, generate_texts


@pytest.fixture(scope="module")
def demo():
    return generate_demo()


def part(data, label):
    return data.users[data.given == label], data.items[data.given == label]


def test_demo_is_the_same_for_the_same_seed_and_another_for_another():
    one, two, other = generate_demo(3, 200, 120), generate_demo(3, 200, 120), generate_demo(4, 200, 120)
    assert one.item_texts == two.item_texts and one.manifest == two.manifest
    for name in ("users", "items", "timestamps", "given"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.item_texts != other.item_texts


def test_demo_is_large_enough(demo):
    assert len(demo.user_ids) >= 2000 and len(demo.item_ids) >= 600
    assert demo.users.dtype == demo.items.dtype == np.int32


def test_demo_titles_are_distinct_and_every_slot_is_filled(demo):
    titles = [text.title for text in demo.item_texts]
    assert len(set(titles)) == len(titles)
    for text in demo.item_texts:
        assert text.category and text.subcategory and text.title[0] == text.title[0].upper()
        assert "{" not in text.joined() and "  " not in text.joined()


def test_twenty_thousand_titles_can_be_made_without_a_repeat():
    texts, topics = generate_texts(np.random.default_rng(0), 20_000)
    assert len({text.title for text in texts}) == 20_000 and len(topics) == 20_000


def test_demo_has_cold_users_light_users_and_unseen_items(demo):
    n_train = np.bincount(part(demo, GIVEN_TRAIN)[0], minlength=len(demo.user_ids))
    assert 0.03 <= (n_train == 0).mean() <= 0.05
    assert ((n_train == 1) | (n_train == 2)).mean() > 0.2
    assert 0.10 <= len(demo.unseen_candidates) / len(demo.item_ids) <= 0.15
    cold_with_test = np.intersect1d(np.flatnonzero(n_train == 0), part(demo, GIVEN_TEST)[0])
    assert len(cold_with_test) > 50


def test_demo_labels_agree_with_training(demo):
    trained = np.unique(part(demo, GIVEN_TRAIN)[1])
    assert np.isin(part(demo, GIVEN_TEST)[1], trained).all()
    assert not np.isin(part(demo, GIVEN_UNSEEN)[1], trained).any()
    np.testing.assert_array_equal(demo.full_candidates, trained)
    pairs = demo.users.astype(np.int64) * len(demo.item_ids) + demo.items
    assert len(np.unique(pairs)) == len(pairs)


def test_demo_training_is_before_the_rest_in_time(demo):
    train = demo.given == GIVEN_TRAIN
    assert demo.timestamps[train].max() < demo.timestamps[~train].min()


def test_demo_popularity_is_skewed_and_subjects_attract_their_readers(demo):
    users, items = part(demo, GIVEN_TRAIN)
    counts = np.sort(np.bincount(items, minlength=len(demo.item_ids)))[::-1]
    assert counts[: len(counts) // 10].sum() > 0.25 * counts.sum()
    subjects = np.array([f"{text.category}/{text.subcategory}" for text in demo.item_texts])
    codes = np.unique(subjects, return_inverse=True)[1][items]
    rng = np.random.default_rng(0)

    def alike(codes):
        same = users[1:] == users[:-1]
        return (codes[1:] == codes[:-1])[same].mean()

    order = np.argsort(users, kind="stable")
    users = users[order]
    assert alike(codes[order]) > 3 * alike(rng.permutation(codes))


def test_three_users_to_show_have_histories_of_different_subjects(demo):
    chosen = demo_user_ids_to_show(demo)
    assert chosen == demo.manifest["users_to_show"] and len(set(chosen)) == 3
    users, items = part(demo, GIVEN_TRAIN)
    mains = []
    for user_id in chosen:
        categories = [demo.item_texts[item].category for item in items[users == demo.user_ids.index(user_id)]]
        assert len(categories) >= 3
        mains.append(max(sorted(set(categories)), key=categories.count))
    assert len(set(mains)) == 3
