"""Every row of the registry of import formats has its importer, help, documentation, a fuzz target and a small case."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from reclm_lite.cli import import_
from reclm_lite.data.importers import import_dataset
from reclm_lite.data.importers.formats import FORMATS, markdown_table, options

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "fuzz"))
from harness import load_targets

DOCUMENT = (TESTS.parent / "docs" / "formats.md").read_text(encoding="utf-8")

# format -> the files of a small data set of four interactions; SOURCE is the first, or the folder of several.
SMALL = {
    "movielens": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,10,4,1\n1,20,3,2\n2,10,5,3\n2,30,1,4\n",
        "movies.csv": "movieId,title,genres\n10,Heat (1995),Action|Crime\n20,Other,Drama\n30,Third,Drama\n",
    },
    "mind": {
        "behaviors.tsv": "1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N1-0\n2\tU2\t11/12/2019 9:05:58 PM\t\tN1-1\n",
        "news.tsv": "".join(f"N{n}\tnews\tworld\tTitle\tText\thttp\t[]\t[]\n" for n in (1, 2, 3)),
    },
    "recbole": {"toy.inter": "user_id:token\titem_id:token\nu\ta\nu\tb\nv\ta\nw\tc\n"},
    "lightgcn": {"train.txt": "0 1 2\n1 2\n", "test.txt": "0 3\n"},
    "table": {"log.csv": "user,item\nu1,a\nu1,b\nu2,a\nu3,c\n"},
}


def source_of(name: str, folder: Path) -> Path:
    """A small data set of the format `name` in `folder`."""
    if name == "reclm":
        from targets.pickles import FILES, sound_files

        for file, data in zip(FILES, sound_files(4), strict=True):
            (folder / file).write_bytes(data)
        return folder
    for file, text in SMALL[name].items():
        (folder / file).write_text(text)
    return folder / next(iter(SMALL[name])) if len(SMALL[name]) == 1 else folder


@pytest.mark.parametrize("name", FORMATS)
def test_a_small_data_set_of_every_format_imports(name, tmp_path):
    data = import_dataset(name, source_of(name, tmp_path))
    assert data.manifest["format"] == name
    if name in SMALL:
        assert len(data.users) == 4


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_names_every_keyword_of_its_importer(name):
    code = FORMATS[name].importer().__code__
    keywords = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    assert {"source", *FORMATS[name].keywords} == set(keywords)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_in_the_help_the_documentation_and_the_fuzzers(name):
    page = CliRunner().invoke(import_.command, ["--help"], terminal_width=200).output
    row = FORMATS[name]
    assert f"  {name} " in page and row.help[:-1] in page and row.files in page
    assert all(option.flag.split("/")[0] in page for option in row.options)
    assert f"\n## {name}\n" in DOCUMENT
    assert any(f"format {name}" in target.what for target in load_targets().values())


def test_the_table_in_the_documentation_is_the_registrys():
    assert markdown_table() in DOCUMENT


def test_an_option_is_declared_once():
    flags = [option.flag for option in options()]
    assert len(flags) == len(set(flags))
