"""The parts of `reclm bench quant` that need no model: types asked for, figures kept, positions, profiles compared,
plots."""

import json
import re

import numpy as np
import pytest

from reclm_lite.bench.quant.resumable import State
from reclm_lite.bench.quant.text_and_csv import number
from reclm_lite.bench.quant.token_distributions import stored_masks
from reclm_lite.bench.quant.variants import parse_types
from reclm_lite.bench.quant.written_profiles import Written, similarity
from reclm_lite.errors import InputError
from reclm_lite.report.frontier import frontier, frontier_plot, marked
from reclm_lite.report.plots import nice_ticks


def test_types_come_with_and_without_importance_matrix_where_both_can_be_had(tmp_path):
    (tmp_path / "b.gguf").write_bytes(b"")
    names = [asked.name for asked in parse_types(["Q8_0", "q4_k_m", "iq2_xs", str(tmp_path / "b.gguf")], imatrix=True)]
    assert names == ["q8_0", "q4_k_m", "q4_k_m+imatrix", "iq2_xs+imatrix", "b.gguf"]
    assert [asked.name for asked in parse_types(["q4_k_m"], imatrix=False)] == ["q4_k_m"]


def test_given_files_are_told_apart_by_as_much_of_their_path_as_it_takes(tmp_path):
    for name in ("a/x.gguf", "b/x.gguf", "c/y.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    paths = [str(tmp_path / name) for name in ("a/x.gguf", "b/x.gguf", "a/../a/x.gguf", "c/y.gguf")]
    assert [asked.name for asked in parse_types(paths, imatrix=False)] == ["a/x.gguf", "b/x.gguf", "y.gguf"]
    with pytest.raises(InputError, match="expected a GGUF file at .*none.gguf, which --types names, found none"):
        parse_types([str(tmp_path / "none.gguf")], imatrix=False)


@pytest.mark.parametrize(
    ("types", "why"),
    [
        (["q4_x"], "found 'q4_x'"),
        (["f16"], "found 'f16'"),
        (["iq1_s"], "importance matrix for iq1_s"),
        ([], "found none"),
    ],
)
def test_types_that_cannot_be_made_are_refused(types, why):
    with pytest.raises(InputError, match=why):
        parse_types(types, imatrix=False)


def test_a_measurement_is_found_by_what_it_was_made_of_alone(tmp_path):
    state = State(tmp_path)
    assert state.once("speed", {"file": "a", "n": (1, 2)}, lambda: {"x": 1}) == {"x": 1}
    assert State(tmp_path).get("speed", {"n": [1, 2], "file": "a"}) == {"x": 1}
    assert state.get("speed", {"file": "b", "n": [1, 2]}) is None is state.get("logits", {"file": "a", "n": [1, 2]})
    with pytest.raises(ValueError, match="[Nn]ot JSON compliant|nan"):
        state.put("speed", {"file": "c"}, float("nan"))
    assert len(list(tmp_path.iterdir())) == 1
    path = state.path("speed", {"file": "a", "n": [1, 2]})
    path.write_text(json.dumps({"made_of": {"file": "another"}, "value": 1}))
    with pytest.raises(InputError, match="found one of something else; delete that file"):
        state.get("speed", {"file": "a", "n": [1, 2]})
    path.write_text("{")
    with pytest.raises(InputError, match="delete that file"):
        state.get("speed", {"file": "a", "n": [1, 2]})


def test_stored_positions_are_those_of_answers_first():
    masks = stored_masks([4, 2], [6, 5], 6)
    assert [mask.tolist() for mask in masks] == [[True, False, False, True, True], [False, True, True, True]]
    assert sum(int(mask.sum()) for mask in stored_masks([4, 2], [6, 5], 3)) == 3


def test_a_profile_that_a_file_did_not_manage_counts_as_another_with_cosine_zero():
    vectors = np.array([[1, 0], [0.6, 0.8], [1, 0], [0, 0]], np.float32)
    theirs = Written(
        {0: "a", 1: "b", 2: "a", 4: "e"},
        {0: "k", 1: "l", 2: "k", 3: "m", 4: "n"},
        np.vstack([np.eye(2), [[1, 0], [0, 0], [0, 1]]]).astype(np.float32),
    )
    ours = Written({0: "a", 1: "c", 2: "a"}, {}, np.vstack([vectors, [[0, 0]]]).astype(np.float32))
    found = similarity(ours, theirs)  # users 0 and 2 share a prompt; nobody wrote one for user 3
    assert found == {"n_prompts": 3, "n_exact": 1, "cosines": [1.0, pytest.approx(0.8), 0.0], "n_missing": 1}


def test_numbers_are_short_in_the_table():
    assert [number(value) for value in (0.0012345, 12.345, 4058.8)] == ["0.00123", "12.3", "4,059"]


def test_the_frontier_joins_those_that_nothing_smaller_beats():
    assert frontier([(9.0, 0.0), (5.0, 0.01), (3.0, 0.2), (4.0, 0.3), (2.0, 0.25)]) == [
        (2.0, 0.25),
        (3.0, 0.2),
        (5.0, 0.01),
        (9.0, 0.0),
    ]
    assert frontier([(9.0, 0.2), (5.0, 0.01), (3.0, 0.3), (4.0, 0.0), (9.0, 0.1)], more_is_better=True) == [
        (9.0, 0.1),
        (5.0, 0.01),
        (4.0, 0.0),
    ]


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-0.2, 0.013], [0.0, 9.05], [0.0, 1e-9], [-3.0, -1.0]])
def test_ticks_are_few_and_enclose_all_values(values):
    ticks = nice_ticks(values)
    assert ticks[0] <= min(values) + 1e-12 and ticks[-1] >= max(values) - 1e-12 and 2 <= len(ticks) <= 7
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_names_of_files_of_one_size_do_not_lie_on_each_other():
    marks = [(3.0 + i / 1000, marked(f"file{i}", "3 MB", 0.1, None, "plain", "")) for i in range(6)]
    svg = frontier_plot(marks, title="t", x_axis="MB", y_axis="loss")
    places = re.findall(r'<text class="label" x="([\d.]+)" y="([\d.]+)"', svg)
    assert 2 <= len(places) == len(set(places)) and svg.count("<circle") == 6
