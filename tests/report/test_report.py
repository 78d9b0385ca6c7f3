"""The report page: self-contained, escaped, accessible, and consistent with the evaluation."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.cf.fitted import FittedModel
from reclm_lite.cf.store import save
from reclm_lite.data.dataset import Imported, Split, save_imported, save_split
from reclm_lite.profiles.store import end_job, start_job
from reclm_lite.profiles.summary import Summary
from reclm_lite.report import plots, tables, write_report
from reclm_lite.report.facts import gather
from reclm_lite.report.findings import headline
from reclm_lite.types import ItemText
from reclm_lite.workspace import Workspace

HOSTILE = "<script>alert('x')</script> & \"quotes\" <img src=x onerror=alert(1)>"
N_USERS, N_ITEMS = 30, 40
VOID = {"meta", "br", "img", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what tests ask about."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert not page.open
    return page


def row(model, profiles="none", setting="full", recall=0.1, *, spread=0.1, n_users=25) -> dict:
    values = {"recall@20": recall, "recall@40": 1.5 * recall, "ndcg@20": 0.5 * recall, "ndcg@40": 0.6 * recall}
    intervals = {name: [value * (1 - spread), value * (1 + spread)] for name, value in values.items()}
    head = {"model": model, "profiles": profiles, "setting": setting, "selection": "valid"}
    return {**head, **values, "n_users": n_users, "ci95": intervals}


ROWS = [
    row("lightgcn", "users", recall=0.31),
    row("lightgcn", recall=0.22),
    row("popularity", recall=0.12),
    row("random", recall=0.02),
    row("random", setting="unseen", recall=0.1),
    row("popularity", setting="unseen", recall=0.1),
    row("lightgcn", setting="unseen", recall=0.2),
    row("lightgcn", "users", setting="unseen", recall=0.19),
]
EVALUATION = {
    "dataset": HOSTILE,
    "split": {"method": "given"},
    "rows": ROWS,
    "stale": [{"model": HOSTILE, "reason": HOSTILE}],
}


@pytest.fixture
def ws(tmp_path):
    """A data set whose every text is hostile, with a split, a model, vectors, neighbors and profiles."""
    rng = np.random.default_rng(5)
    pairs = {
        (int(u), int(i))
        for u, i in zip(rng.integers(0, N_USERS - 2, 300), rng.integers(0, N_ITEMS - 2, 300), strict=True)
    }
    users, items = np.array(sorted(pairs), np.int32).T
    data = Imported(
        name=HOSTILE,
        user_ids=[f"{HOSTILE}{user}" for user in range(N_USERS)],
        item_ids=[f"{HOSTILE}{item}" for item in range(N_ITEMS)],
        item_texts=[ItemText(f"{item} {HOSTILE}", HOSTILE, f"sub {item % 3}{HOSTILE}") for item in range(N_ITEMS)],
        users=users,
        items=items,
        manifest={
            "format": "table",
            "sources": [{"file": HOSTILE, "bytes": 1, "sha256": HOSTILE}],
            "options": {"user_column": HOSTILE},
            "notes": [HOSTILE],
            "counts": {HOSTILE: 3},
        },
    )
    with Workspace.create(tmp_path / "ws") as workspace:
        save_imported(workspace, data)
        train = sp.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=(N_USERS, N_ITEMS))
        none = sp.csr_matrix((N_USERS, N_ITEMS), dtype=np.float32)
        split = Split(
            train, none, none, none, np.arange(N_ITEMS), np.array([N_ITEMS - 1]), params={"method": HOSTILE, "seed": 3}
        )
        save_split(workspace, split, inputs={"matrices/interactions": workspace.fingerprint("matrices/interactions")})
        vectors = rng.standard_normal((N_ITEMS, 8)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        workspace.save("vectors/items", {"vectors": vectors}, inputs={}, params={"encoder": HOSTILE})
        neighbors = rng.integers(0, N_USERS, (N_USERS, 3)).astype(np.int32)
        workspace.save("matrices/neighbors", {"indices": neighbors}, inputs={}, params={})
        model = FittedModel.of_vectors(
            "lightgcn",
            rng.standard_normal((N_USERS, 4)).astype(np.float32),
            rng.standard_normal((N_ITEMS, 4)).astype(np.float32),
            None,
            np.diff(train.indptr) > 0,
            metrics={"ndcg@20": 0.1},
            params={"seed": 11, "note": HOSTILE},
        )
        save(model, workspace, inputs={"matrices/split": workspace.fingerprint("matrices/split")})
        good = "User identity: a, b, c; User interests: x, y, z"
        texts = [good.replace("c;", "<b>c</b>;").replace("x,", "<i>x</i>,"), HOSTILE, good]
        with workspace.db:
            workspace.db.executemany(
                "INSERT INTO profiles (side, idx, status, text, source, created) VALUES ('user', ?, 'edited', ?, ?, "
                "'')",
                [(user, text, HOSTILE) for user, text in enumerate(texts)],
            )
        yield workspace


def test_page_is_self_contained_and_small(ws):
    path = write_report(ws, evaluation=EVALUATION)
    assert path == ws.root / "reports" / "report.html"
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    page = parse(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"{tag} has a handler {name}"
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith("#"), f"{tag} points out of the page: {value}"
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style


def test_hostile_text_is_shown_and_never_run(ws):
    html = write_report(ws, evaluation=EVALUATION).read_text(encoding="utf-8")
    assert "<script" not in html and "<img" not in html and "<b>c</b>" not in html
    page = parse(html)
    assert HOSTILE in "".join(page.text)


def test_page_is_accessible(ws):
    html = write_report(ws, evaluation=EVALUATION).read_text(encoding="utf-8")
    page = parse(html)
    assert page.tags.count("h1") == 1
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False)), (
        "a heading level is skipped"
    )
    assert page.tags.count("table") == page.tags.count("caption") > 3
    assert len(page.ids) == len(set(page.ids))
    links = {value[1:] for tag, name, value in page.attributes if name == "href"}
    assert links and links <= set(page.ids)
    assert html.count("<svg") == html.count('role="img"') + html.count('aria-hidden="true"')
    assert 'lang="en"' in html and 'name="viewport"' in html
    for scheme in ("light dark", "prefers-color-scheme: dark", "@media print"):
        assert scheme in html


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_colours_have_contrast_in_both_schemes(ws):
    html = write_report(ws, evaluation=EVALUATION).read_text(encoding="utf-8")
    palettes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", html, re.S)
    ]
    for palette in palettes[:2]:
        for name in ("ink", "soft", "blue", "orange", "grey"):
            light, dark = sorted((luminance(palette[name]), luminance(palette["paper"])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{name} on paper"


def test_page_states_the_evaluation_and_the_data(ws):
    html = write_report(ws, evaluation=EVALUATION).read_text(encoding="utf-8")
    text = "".join(parse(html).text)
    for each in ROWS:
        assert f"{each['ndcg@40']:.4f}" in text
    facts = gather(ws, evaluation=EVALUATION)
    assert f"{facts.n_interactions:,} interactions" in text
    assert ws.fingerprint("matrices/split")[:12] in text
    assert "--seed 3" in text and "reclm fit lightgcn" in text
    assert len(facts.people) == 3 and all(len(person.recommendation.items) == 10 for person in facts.people)


def test_a_damaged_model_is_left_out_with_the_command_that_makes_it(ws, caplog):
    ws.path("models/gfcf").write_bytes(b"no model")
    text = "".join(parse(write_report(ws).read_text(encoding="utf-8")).text)
    _, _, left_out = text.partition("Not compared:")
    assert left_out.startswith("gfcf: damaged") and "stale" not in left_out[:40]
    assert f"models/gfcf is left out of the report: {ws.path('models/gfcf')}" in caplog.text
    assert f"make it again with `reclm fit gfcf -w {ws.argument}`" in caplog.text


def test_what_each_stage_took_is_told_where_it_was_noted(ws, monkeypatch):
    assert "No timings are recorded." not in "".join(parse(write_report(ws, evaluation=EVALUATION).read_text()).text)
    clock = iter((100.0, 103.25, 103.25))
    monkeypatch.setattr("reclm_lite.workspace.time.monotonic", lambda: next(clock))
    with ws.writing():
        ws.save("vectors/items", {"vectors": np.ones((N_ITEMS, 8), np.float32)}, inputs={}, params={})
    assert ws.provenance("vectors/items", made_by="")["seconds"] == 3.25
    ws.save(
        "matrices/neighbors", {"indices": np.zeros((N_USERS, 3), np.int32)}, inputs={}, params={}
    )  # without the lock: not known
    assert "seconds" not in ws.provenance("matrices/neighbors", made_by="")
    monkeypatch.undo()
    summary = Summary(
        "users",
        f"{HOSTILE}.gguf, of four bits",
        n_generated=1234,
        seconds=200.0,
        profiles_per_s=6.17,
        ended_by="deadline",
    )
    end_job(ws, start_job(ws, "profile users", {}), "deadline", summary.as_dict())
    html = write_report(ws, evaluation=EVALUATION).read_text()
    text = "".join(parse(html).text)
    assert (
        "vectors/items3.2 s" in text
        and "matrices/neighbors" not in text.split("Time per stage")[1].split("Provenance")[0]
    )
    assert "3 min for 1,234 generated, 6.2 profiles/s; ended by: deadline" in text and HOSTILE not in html


def test_headline_names_the_best_and_says_where_intervals_overlap(ws):
    facts = gather(ws, evaluation=EVALUATION)
    text = re.sub(r"<[^>]+>", "", headline(facts)).replace("\u00a0", " ")
    assert (
        "LightGCN + user profiles ranks best of 2 models, with NDCG@20 0.1550 (95 % interval 0.1395 to 0.1705)" in text
    )
    assert "beside 0.0600 of popularity." in text
    assert "Profiles raise LightGCN from 0.1100 to 0.1550 by 41 %." in text
    assert "There, profiles lower LightGCN from 0.1000 to 0.0950 by 5 % (the intervals overlap)." in text


def test_headline_says_when_popularity_is_better(ws):
    facts = gather(ws, evaluation={"rows": [row("lightgcn", recall=0.1), row("popularity", recall=0.2)]})
    text = re.sub(r"<[^>]+>", "", headline(facts)).replace("\u00a0", " ")
    assert (
        text
        == "Over all candidates, LightGCN reaches NDCG@20 0.0500 (95 % interval 0.0450 to 0.0550), below the 0.1000 "
        "of popularity."
    )


def test_coverage_counts_distinct_items(ws):
    facts = gather(ws, evaluation=EVALUATION)
    assert facts.n_user_profiles == 3 and facts.n_item_profiles == 0
    assert 20 <= facts.n_covered_items <= N_ITEMS and facts.coverage_basis == "lightgcn"


def test_out_names_the_file_and_nothing_half_written_stays(ws, tmp_path):
    path = write_report(ws, tmp_path / "deep" / "page.html", evaluation=EVALUATION)
    assert [child.name for child in path.parent.iterdir()] == ["page.html"]


def test_a_workspace_without_split_or_model_still_gets_its_page(tmp_path):
    with Workspace.create(tmp_path / "ws") as workspace:
        texts, users = [ItemText("X"), ItemText("Y")], np.array([0, 1], np.int32)
        data = Imported("plain", ["a", "b"], ["x", "y"], texts, users, np.zeros(2, np.int32))
        save_imported(workspace, data)
        text = "".join(parse(write_report(workspace).read_text(encoding="utf-8")).text)
    assert "Nothing has been evaluated yet" in text and "reclm split" in text


# -- tables and plots --------------------------------------------------------------


def printed(table) -> str:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_terminal_tables_fit_80_columns_and_put_references_first():
    texts = [printed(table) for table in tables.models_table(EVALUATION)]
    assert len(texts) == 2 and "…" not in "".join(texts)
    names = [line.split("  ")[0] for line in texts[0].splitlines()[3:] if line.strip()]
    assert names == ["Random", "Popularity", "LightGCN", "LightGCN + user profiles"]
    assert "0.3100" in texts[0] and "0.2790–0.3410" in texts[0]


def test_rows_that_ranked_nobody_are_left_out():
    rows = [row("popularity"), {**row("lightgcn"), "n_users": 0, "recall@20": None}]
    assert [each["model"] for each in tables.rows_of(rows, "full")] == ["popularity"]
    assert len(tables.models_table({"rows": rows[1:]})) == 0


def test_tables_work_without_intervals():
    bare = {key: value for key, value in row("lightgcn").items() if key != "ci95"}
    assert tables.interval_of(bare, "ndcg@20") is None
    assert "0.1000" in printed(tables.models_table({"rows": [bare]})[0])


@pytest.mark.parametrize(
    "lengths",
    [np.array([0]), np.array([], np.int64), np.array([1] * 50), np.array([0, 1, 2, 3, 700, 57000]), np.arange(400)],
)
def test_histogram_counts_every_user_once(lengths):
    svg = plots.history_histogram(lengths)
    parse(svg)
    assert "nan" not in svg and "inf" not in svg
    assert sum(int(n.replace(",", "")) for n in re.findall(r"interactions: ([\d,]+) users</title>", svg)) == len(
        lengths
    )


@pytest.mark.parametrize("counts", [[], [0, 0], [1], [5, 0, 1], np.arange(3000) ** 2])
def test_popularity_curve_stays_inside_its_box(counts):
    svg = plots.popularity_curve(counts)
    parse(svg)
    points = re.findall(r'points="([^"]*)"', svg)
    for x, y in (map(float, point.split(",")) for line in points for point in line.split()):
        assert 0 <= x <= plots.WIDTH and 0 <= y <= 250


@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.0043, 0.37, 1.0])
def test_dot_plot_orders_values_on_one_axis_from_zero(scale):
    dots = [plots.Dot(str(i), scale * i / 4, scale * i / 5, scale * i / 3) for i in range(4)]
    svg = plots.dot_plot(dots, title="t", axis="a", reference=scale / 4, reference_label="popularity")
    parse(svg)
    xs = [float(x) for x in re.findall(r'cx="([\d.]+)"', svg)]
    assert xs == sorted(xs) and max(xs) <= plots.WIDTH and len(xs) == 4
