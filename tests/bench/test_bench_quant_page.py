"""The results of `reclm bench quant` as a page, in the report of a workspace, and the text encoder's part of them."""

import csv
import io
import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import pytest

from reclm_lite.bench.quant import html_page, quant_bench, text_and_csv
from reclm_lite.report import write_report
from reclm_lite.workspace import Workspace


class Page(HTMLParser):
    """What a page loads, which tags it leaves open, and its text."""

    VOID = ("meta", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.loads, self.text, self.ids, self.links = [], [], "", set(), set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loads += [
            value
            for name, value in attributes
            if name in ("src", "srcset", "data") or (name == "href" and not value.startswith("#"))
        ]
        self.loads += [tag] if tag in ("script", "iframe", "link", "img", "object") else []
        self.ids |= {given["id"]} if "id" in given else set()
        self.links |= {given["href"].removeprefix("#")} if "href" in given else set()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report_shows_the_frontier_where_it_was_measured(whole, root, tmp_path, caplog):
    mine = shutil.copytree(root, tmp_path / "ws")
    with Workspace.open(mine) as ws:
        assert "Size of the profile model" not in Page(write_report(ws).read_text()).text
        quant_bench.write_results(whole.document, mine / "reports" / "quant")
        page = Page(write_report(ws).read_text())
        assert (
            not page.open
            and "Size of the profile model" in page.text
            and "The data or the split have changed" not in page.text
        )
        assert "The frontier" in page.text and "no profiles, the backbone alone" in page.text
        assert whole.document["choice"]["sentence"].replace(" %", "\u00a0%") in page.text
        quant_bench.write_results({**whole.document, "split": "another"}, mine / "reports" / "quant")
        assert "The data or the split have changed since then." in Page(write_report(ws).read_text()).text
        rows = whole.document["files"]
        odd = [
            {"files": [{}]},
            {"choice": None},
            {"files": [{**rows[0], "size_bytes": 10**400}, *rows[1:]]},
            {"choice": {**whole.document["choice"], "max_loss": float("inf")}},
            {"settings": {**whole.document["settings"], "n_seeds": None}},
            {"choice": {**whole.document["choice"], "sentence": 3}},
        ]
        odd = [json.dumps({**whole.document, **change}) for change in odd]
        for damage in ("{", "[]", "[" * 100_000, *odd):
            (mine / "reports" / "quant" / "quant.json").write_text(damage)
            caplog.clear()
            assert "Size of the profile model" not in Page(write_report(ws).read_text()).text
            assert "quant.json is left out of the report: expected what `reclm bench quant` writes" in caplog.text


def test_encoders_are_in_the_table_and_on_the_page(whole):
    figure = {"value": 0.99, "interval": [0.98, 1.0]}
    row = {
        **whole.document["files"][0],
        "texts_per_s": 50.0,
        "downstream": None,
        "cosine": figure,
        "min_cosine": 0.9,
        "neighbours_kept": figure,
    }
    document = {**whole.document, "encoders": [row, {**row, "name": "q1", "excluded": "why not"}]}
    assert any("99.0 (98.0–100.0)" in line for line in text_and_csv.lines_of(document, auto=False))
    page = Page(html_page.render(document))
    assert not page.open and "Text encoder" in page.text and "why not" in page.text
    rows = list(csv.DictReader(io.StringIO(text_and_csv.csv_of(document))))
    assert [row["kind"] for row in rows] == ["profile model", "profile model", "backbone", "encoder", "encoder"]
    assert (rows[3]["texts_per_s"], rows[3]["neighbours_kept_low"], rows[4]["excluded"]) == ("50.0", "0.98", "why not")


INTERVAL = {"value": 0.98765, "interval": [0.98123, 0.99456]}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium to lay the page out")
@pytest.mark.parametrize(("width", "medium"), [(360, "screen"), (1200, "screen"), (692, "print")])
def test_in_a_browser_nothing_sticks_out_of_the_page_and_words_do_not_lie_on_each_other(whole, tmp_path, width, medium):
    document = {
        **whole.document,
        "encoders": [
            {
                **whole.document["files"][0],
                "texts_per_s": 50.0,
                "min_cosine": 0.9,
                "neighbours_kept": INTERVAL,
                "cosine": INTERVAL,
            }
        ],
    }
    page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", html_page.render(document))
    page = page.replace("@media print", "@media all") if medium == "print" else page
    ask = """
        const d = frame.contentDocument, boxes = e => e.getBoundingClientRect();
        const words = [...d.querySelectorAll("svg")].map(s => [...s.querySelectorAll("text")].map(boxes));
        const touching = words.flatMap(w => w.flatMap((a, i) => w.slice(i + 1).filter(
            b => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
              && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)));
        const found = [d.documentElement.scrollWidth, frame.clientWidth, words.flat().length, touching.length];
        document.title = JSON.stringify(found);"""
    outer = (
        f'<iframe id="frame" style="border:0;width:{width}px;height:900px" '
        f'srcdoc="{escape(page, quote=True)}"></iframe><script>onload = () => {{{ask}}}</script>'
    )
    (tmp_path / "outer.html").write_text(outer, encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,1000",
        "--dump-dom",
    ]
    done = subprocess.run(
        [*command, (tmp_path / "outer.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    content, inside, n_words, n_touching = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert inside == width and content <= width and n_words > 30 and n_touching == 0


def test_the_page_is_whole_loads_nothing_and_shows_every_file(whole):
    html = html_page.render(whole.document)
    page = Page(html)
    assert not page.open and not page.loads and page.links <= page.ids
    assert "default-src 'none'" in html and "url(" not in html and "@import" not in html
    assert whole.document["choice"]["sentence"].replace(" %", "\u00a0%") in page.text
    for row in whole.document["files"]:
        assert page.text.count(row["name"]) >= 5 and row["sha256"] in page.text
    assert html.count("<svg") >= 7 and "NaN" not in html and ">nan" not in html


def test_what_the_page_shows_of_names_is_escaped(whole):
    document = json.loads(json.dumps(whole.document))
    document["files"][1]["name"] = "<script>alert(1)</script>"
    document["files"].append({**document["files"][1], "name": "b&d", "excluded": "<b>why</b>"})
    document["settings"]["model"] = "models/<i>.gguf"
    page = Page(html_page.render(document))
    assert not page.open and not page.loads and "<script>alert(1)</script>" in page.text and "<b>why</b>" in page.text
