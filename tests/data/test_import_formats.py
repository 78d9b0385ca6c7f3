"""Each format imports the content of its files: small hand-written files, and real data if present."""

import gzip
import json

import numpy as np
import pytest

from reclm_lite.data.dataset import GIVEN_TEST, GIVEN_TRAIN, GIVEN_UNSEEN, load_interactions, save_imported
from reclm_lite.data.importers import import_dataset
from reclm_lite.data.importers.formats import FORMATS
from reclm_lite.data.split import run_split
from reclm_lite.errors import InputError
from reclm_lite.types import ItemText
from reclm_lite.workspace import Workspace


def rows(data):
    """The interactions by id, as a set of (user, item, time, rating, given)."""
    columns = [
        [data.user_ids[user] for user in data.users],
        [data.item_ids[item] for item in data.items],
        *(
            nothing(len(data.users)) if values is None else values.tolist()
            for values in (data.timestamps, data.ratings, data.given)
        ),
    ]
    return set(zip(*columns, strict=True))


def nothing(n):
    return [None] * n


def text_of(data, item_id):
    return data.item_texts[data.item_ids.index(item_id)]


# -- table ---------------------------------------------------------------------


def test_table_csv_keeps_ids_as_text(tmp_path):
    source = tmp_path / "log.csv"
    source.write_text("user,item\n007,a b\n7,ä😀\n7,0012\n 7,x\n", encoding="utf-8")
    data = import_dataset("table", source)
    assert rows(data) == {
        ("007", "a b", None, None, None),
        ("7", "ä😀", None, None, None),
        ("7", "0012", None, None, None),
        (" 7", "x", None, None, None),
    }
    assert data.name == "log" and data.users.dtype == np.int32


def test_table_reads_times_and_ratings_under_any_name(tmp_path):
    source = tmp_path / "log.csv"
    source.write_text(
        "who,what,when,stars\nu,1,2024-05-01 12:00:00,4.5\nu,2,1714564801,3\nu,3,2024-05-01T12:00:02+00:00,1\n"
    )
    data = import_dataset(
        "table", source, user_column="who", item_column="what", time_column="when", rating_column="stars"
    )
    assert rows(data) == {
        ("u", "1", 1714564800, 4.5, None),
        ("u", "2", 1714564801, 3.0, None),
        ("u", "3", 1714564802, 1.0, None),
    }
    assert data.timestamps.dtype == np.int64 and data.ratings.dtype == np.float32


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "jsonl", "parquet", "bom.csv", "crlf.csv"])
def test_table_reads_the_same_from_every_kind_of_file(tmp_path, kind):
    records = [{"user": "u1", "item": "007", "title": 'say "hi", you'}, {"user": "u2", "item": "b", "title": "two"}]
    source = tmp_path / f"log.{kind}"
    plain = 'user,item,title\nu1,007,"say ""hi"", you"\nu2,b,two\n'
    if kind == "csv.gz":
        source.write_bytes(gzip.compress(plain.encode()))
    elif kind == "tsv":
        source.write_text('user\titem\ttitle\nu1\t007\t"say ""hi"", you"\nu2\tb\ttwo\n')
    elif kind == "jsonl":
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "parquet":
        import duckdb

        duckdb.sql(
            "SELECT * FROM (VALUES ('u1', '007', 'say \"hi\", you'), ('u2', 'b', 'two')) t(\"user\", item, title)"
        ).write_parquet(str(source))
    else:
        source.write_bytes(
            {"csv": b"", "bom.csv": b"\xef\xbb\xbf", "crlf.csv": b""}[kind]
            + plain.replace("\n", "\r\n" if "crlf" in kind else "\n").encode()
        )
    data = import_dataset("table", source, title_column="title")
    assert {row[:2] for row in rows(data)} == {("u1", "007"), ("u2", "b")}
    assert text_of(data, "007").title == 'say "hi", you'


def test_table_whose_name_looks_like_a_pattern_is_read_alone(tmp_path):
    (tmp_path / "log1.csv").write_text("user,item\nu,wrong\n")
    (tmp_path / "log[1].csv").write_text("user,item\nu,right\n")
    assert import_dataset("table", tmp_path / "log[1].csv").item_ids == ["right"]


def test_items_table_gives_texts_and_items_nobody_touched(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\nu,a\nu,b\nv,lost\n")
    (tmp_path / "items.csv").write_text("sku,name,kind,long,more\na,Lamp,home,Bright,Brass\nb,,,,\nc,Chair,home,,\n")
    data = import_dataset(
        "table",
        tmp_path / "log.csv",
        items_source=tmp_path / "items.csv",
        items_item_column="sku",
        title_column="name",
        category_column="kind",
        description_column="long",
        text_columns=("more",),
    )
    assert text_of(data, "a") == ItemText("Lamp", "home", "", "Bright. Brass")
    assert text_of(data, "b") == text_of(data, "lost") == ItemText("")
    assert data.item_ids == ["a", "b", "c", "lost"]
    counts = data.manifest["counts"]
    assert (counts["items_without_text"], counts["items_not_in_items_table"], counts["items_without_interactions"]) == (
        2,
        1,
        1,
    )
    assert [source["file"] for source in data.manifest["sources"]] == ["log.csv", "items.csv"]


def test_texts_within_the_interactions_that_differ_are_told(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,title\nu,a,Zebra\nv,a,Ant\nv,b,Bee\n")
    data = import_dataset("table", tmp_path / "log.csv", title_column="title")
    assert text_of(data, "a").title == "Ant" and "1 items have different texts" in data.manifest["notes"][0]


def test_repeated_pairs_keep_the_earliest_and_are_counted(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,time,rating\nu,a,30,1\nu,a,10,2\nu,a,20,5\nu,b,5,4\n")
    data = import_dataset("table", tmp_path / "log.csv", time_column="time", rating_column="rating")
    assert rows(data) == {("u", "a", 10, 2.0, None), ("u", "b", 5, 4.0, None)}
    assert data.manifest["dropped"]["repeated pairs"] == 2


def test_min_rating_and_core_limits_are_applied_until_nothing_changes_and_recorded(tmp_path):
    # Dropping user w (one pair) takes item c below two users, which takes user v below two items.
    (tmp_path / "log.csv").write_text("user,item,rating\ns,a,5\ns,b,5\nu,a,5\nu,b,5\nu,low,1\nv,c,5\nv,a,5\nw,c,5\n")
    data = import_dataset("table", tmp_path / "log.csv", rating_column="rating", min_rating=4, min_user=2, min_item=2)
    assert data.user_ids == ["s", "u"] and data.item_ids == ["a", "b"]
    assert data.manifest["options"]["min_user"] == 2
    assert data.manifest["dropped"] == {
        "rated below min_rating": 1,
        "repeated pairs": 0,
        "pairs of users or items below min_user or min_item": 3,
    }


def test_whole_number_ids_are_in_their_order_then_the_rest(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\n10,a\n9,a\nx,a\n007,a\n7,a\n")
    assert import_dataset("table", tmp_path / "log.csv").user_ids == ["007", "7", "9", "10", "x"]


def test_an_import_survives_the_workspace(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,time\n007,a,1\n007,b,2\nv,a,3\n")
    data = import_dataset("table", tmp_path / "log.csv", time_column="time", min_user=1)
    with Workspace.create(tmp_path / "w") as ws:
        save_imported(ws, data)
        np.testing.assert_array_equal(load_interactions(ws).timestamps, data.timestamps)
        assert ws.config["data"]["manifest"]["sources"][0]["sha256"] == data.manifest["sources"][0]["sha256"]


# -- movielens -----------------------------------------------------------------


def test_movielens_latest_layout(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.0,100\n1,20,0.5,101\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n10,"Lamp, The (1995)",Adventure|Animation\n20,Dusk,(no genres '
        "listed)\n30,Unrated,Drama\n"
    )
    data = import_dataset("movielens", tmp_path, min_rating=1)
    assert rows(data) == {("1", "10", 100, 4.0, None)}
    assert text_of(data, "10") == ItemText("Lamp, The (1995)", "Adventure, Animation")
    assert text_of(data, "20").category == "" and text_of(data, "30").title == "Unrated"


def test_movielens_older_layouts_are_latin_1(tmp_path):
    one = tmp_path / "1m"
    one.mkdir()
    (one / "ratings.dat").write_text("1::10::5::100\n2::10::3::101\n")
    (one / "movies.dat").write_bytes("10::Café: The Film (1990)::Drama|Children's\n".encode("latin-1"))
    data = import_dataset("movielens", one)
    assert text_of(data, "10") == ItemText("Café: The Film (1990)", "Drama, Children's") and len(data.users) == 2
    small = tmp_path / "100k"
    small.mkdir()
    (small / "u.data").write_text("1\t10\t5\t100\n")
    flags = ["0"] * 19
    flags[1] = flags[8] = "1"
    (small / "u.item").write_bytes(("10|Café (1990)|01-Jan-1990||http://x|" + "|".join(flags) + "\n").encode("latin-1"))
    assert text_of(import_dataset("movielens", small), "10") == ItemText("Café (1990)", "Action, Drama")


# -- mind, recbole, lightgcn ---------------------------------------------------


def test_mind_takes_clicks_and_history_and_keeps_users_without_either(tmp_path):
    (tmp_path / "behaviors.tsv").write_text(
        "1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0\n2\tU2\t11/12/2019 1:00:00 PM\t\tN3-0\n3\tU1\t11/13/2019 "
        "1:00:00 AM\tN1 N2\tN4-1\n"
    )
    (tmp_path / "news.tsv").write_text(
        "".join(f'N{n}\tnews\tworld\tThe "title" {n}\tAbstract\thttp\t[]\t[]\n' for n in range(1, 6))
    )
    data = import_dataset("mind", tmp_path)
    first = 1573463158
    assert rows(data) == {
        ("U1", "N1", first - 2, None, None),
        ("U1", "N2", first - 1, None, None),
        ("U1", "N3", first, None, None),
        ("U1", "N4", 1573606800, None, None),
    }
    assert data.user_ids == ["U1", "U2"] and data.manifest["counts"]["users_without_history"] == 1
    assert text_of(data, "N5") == ItemText('The "title" 5', "news", "world", "Abstract")
    assert {row[1] for row in rows(import_dataset("mind", tmp_path, history=False))} == {"N3", "N4"}


def test_recbole_atomic_files(tmp_path):
    (tmp_path / "toy.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\t01\t4\t100.5\n"
    )
    (tmp_path / "toy.item").write_text(
        'item_id:token\tmovie_title:token_seq\tclass:token_seq\n01\tA "Film"\tDrama Comedy\n'
    )
    (tmp_path / "toy.user").write_text("user_id:token\tage:float\nu1\t3\nu2\t4\n")
    data = import_dataset("recbole", tmp_path)
    assert rows(data) == {("u1", "01", 100, 4.0, None)}
    assert text_of(data, "01") == ItemText('A "Film"', "Drama Comedy")
    assert data.user_ids == ["u1", "u2"] and data.manifest["options"]["title_column"] == "movie_title"


@pytest.mark.parametrize(
    ("layout", "train", "test"),
    [("list", "0 5 7\n1 5\n2\n", "0 9\n1 7\n"), ("colon", "0:5 7\n1:5\n2:\n", "0:9\n1:7\n")],
)
def test_lightgcn_lists_are_told_by_their_first_line(tmp_path, layout, train, test):
    (tmp_path / "train.txt").write_text(train)
    (tmp_path / "test.txt").write_text(test)
    data = import_dataset("lightgcn", tmp_path)
    assert rows(data) == {
        ("0", "5", None, None, GIVEN_TRAIN),
        ("0", "7", None, None, GIVEN_TRAIN),
        ("1", "5", None, None, GIVEN_TRAIN),
        ("0", "9", None, None, GIVEN_TEST),
        ("1", "7", None, None, GIVEN_TEST),
    }
    assert data.manifest["options"]["layout"] == layout and data.user_ids == ["0", "1", "2"]


def test_lightgcn_triples_keep_the_count_as_rating(tmp_path):
    (tmp_path / "train.txt").write_text("4\t7\t993\n4\t8\t1\n")
    (tmp_path / "test.txt").write_text("5\t7\t2\n")
    data = import_dataset("lightgcn", tmp_path, min_rating=2)
    assert rows(data) == {("4", "7", None, 993.0, GIVEN_TRAIN), ("5", "7", None, 2.0, GIVEN_TEST)}


def test_every_format_refuses_an_option_it_does_not_have(tmp_path):
    for name in FORMATS:
        with pytest.raises(InputError, match=f"format {name} has no option 'nonsense'"):
            import_dataset(name, tmp_path, nonsense=1)
    with pytest.raises(InputError, match="expected one of the formats"):
        import_dataset("xls", tmp_path)


# -- real data -----------------------------------------------------------------


def test_real_reclm_mind_has_the_published_counts(shared_data, tmp_path):
    data = import_dataset("reclm", shared_data / "reclm-mind")
    assert len(data.user_ids) == 57_128 and len(data.item_ids) == 3_827
    assert [int((data.given == label).sum()) for label in (GIVEN_TRAIN, GIVEN_TEST, GIVEN_UNSEEN)] == [
        89_734,
        87_974,
        25_928,
    ]
    assert (len(data.full_candidates), len(data.unseen_candidates)) == (2_461, 1_441)
    with Workspace.create(tmp_path / "w") as ws:
        save_imported(ws, data)
        split = run_split(ws)
    assert split.known().nnz == 89_734 and split.test.nnz == 87_974 and split.unseen.nnz == 25_928
    assert (len(split.full_candidates), len(split.unseen_candidates)) == (2_461, 1_441)


def test_real_movielens_imports_every_row(shared_data):
    folder = shared_data / "ml-latest-small"
    lines = (folder / "ratings.csv").read_text().splitlines()[1:]
    data = import_dataset("movielens", folder)
    assert len(data.users) == len(lines) and len(data.user_ids) == len({line.split(",")[0] for line in lines})
    assert len(data.item_ids) == 9_742 and data.manifest["counts"]["items_without_text"] == 0


@pytest.mark.parametrize(("folder", "n_users"), [("amazon-beauty", 22_363), ("lastfm", 1_880)])
def test_real_text_splits_import_every_pair(shared_data, folder, n_users):
    data = import_dataset("lightgcn", shared_data / folder)
    expected = 0
    for file in ("train.txt", "test.txt"):
        for line in (shared_data / folder / file).read_text().splitlines():
            expected += 1 if "\t" in line else len(line.split(":")[1].split())
    assert len(data.users) + data.manifest["dropped"]["repeated pairs"] == expected
    assert len(data.user_ids) == n_users
