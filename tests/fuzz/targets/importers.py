"""Every importer but that of pickles: one file of its input is hostile, the others are good.

Each input starts a DuckDB, some tens of milliseconds, so the slices are small.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from harness import Target

from reclm_lite.data.importers import import_dataset
from reclm_lite.errors import InputError, WorkspaceError

_ARRAYS = {"timestamps": np.int64, "ratings": np.float32, "given": np.uint8}


def outcome(format: str, files: dict[str, bytes], source: str, **options) -> str:
    """Import `source` ("" is the folder itself) from a folder of `files`, and check whatever is accepted."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        options = {key: folder / value if key == "items_source" else value for key, value in options.items()}
        try:
            data = import_dataset(format, folder / source, **options)
        except (InputError, WorkspaceError) as error:
            message = str(error)
            assert "\n" not in message.replace(str(folder), ""), message
            assert "reclm-import-" not in message and len(message) < 3000, message[:5000]
            return f"refused {type(error).__name__}"
    finally:
        shutil.rmtree(folder)
    n_users, n_items = len(data.user_ids), len(data.item_ids)
    assert data.users.dtype == data.items.dtype == np.int32 and data.users.shape == data.items.shape and len(data.users)
    assert data.users.min() >= 0 and data.users.max() < n_users and data.items.min() >= 0 and data.items.max() < n_items
    assert len(data.item_texts) == n_items and len(set(data.user_ids)) == n_users and len(set(data.item_ids)) == n_items
    assert all(data.user_ids) and all(data.item_ids) and not any("\0" in one for one in data.user_ids + data.item_ids)
    for name, dtype in _ARRAYS.items():
        array = getattr(data, name)
        assert array is None or (
            array.dtype == dtype and array.shape == data.users.shape and not np.ma.isMaskedArray(array)
        )
    assert data.ratings is None or np.isfinite(data.ratings).all()
    counts = data.manifest["counts"]
    assert counts["rows"] == len(data.users) + sum(data.manifest["dropped"].values())
    return "accepted"


TABLE = b"user,item,time,rating,title\nu1,a,1,2.5,One\nu2,b,2024-05-01 12:30:00,3,Two\nu1,b,,4,Two\n"
NAMED = {"time_column": "time", "rating_column": "rating", "title_column": "title"}
WORDS = (
    b",",
    b'"',
    b"\n",
    b"\r",
    b"\r\n",
    b"\t",
    b"\0",
    b"\x01",
    b"\xef\xbb\xbf",
    b"nan",
    b"inf",
    b"1e400",
    b"10" * 40,
    b"-1",
    b"user",
    b"USER",
    b"1000000000-01-01",
    b"infinity",
    b"Line: 7",
    b"interrupt",
    b"No space left",
    b"Malformed JSON",
    b"\xff",
    b"'",
    b"''",
    b"\\u0000",
    b"read_csv('/etc/passwd')",
    b"1_000",
)


def run_csv(data: bytes) -> str:
    return outcome("table", {"log.csv": data[1:]}, "log.csv", **(NAMED if data[:1] < b"a" else {}))


def csv_seeds() -> list[bytes]:
    good = TABLE.replace(b",,", b",3,")
    return [
        b"0" + good,
        b"a" + good,
        b"auser,USER,item\na,b,c\n",
        b"a\n",
        b'auser,"it""em\n",item\na,"b\n",c\n',
        b"auser,item\n" + b"," * 1000,
        b"auser,item\ninterrupt,b,c\n",
        b"auser,item\n1" + b"0" * 30 + b",b\n",
        b"0" + good.replace(b",1,", b",infinity,"),
    ]


def run_jsonl(data: bytes) -> str:
    return outcome("table", {"log.jsonl": data[1:]}, "log.jsonl", **(NAMED if data[:1] < b"a" else {}))


def jsonl_seeds() -> list[bytes]:
    good = (
        b'{"user": "u", "item": 7, "time": 1, "rating": 2.5, "title": "One"}\n{"user": "v", "item": "b", "time": '
        b'2, "rating": 1, "title": null}\n'
    )
    return [
        b"0" + good,
        b"a" + good,
        b'a{"user":1,"USER":2,"item":3}\n',
        b"a" + b"[" * 3000,
        b'a{"user":"u","item":' + b"[" * 1500 + b"]" * 1500 + b"}\n",
        b"a" + good + b'{"user":' + b'{"a":' * 900,
        b'a{"user":"a\\u0000b","item":"\\ud800"}\n',
        b'a{"\\ud800":1,"user":1,"item":2}\n',
        b'a{"user":"u","user":"v","item":"w"}\n',
        b'a{"":1,"user":1,"item":2}\n',
        b'a{"user":"a\\u0000b","item":"c"}\n',
    ]


def run_parquet(data: bytes) -> str:
    return outcome("table", {"log.parquet": data[1:]}, "log.parquet", **(NAMED if data[:1] < b"a" else {}))


def parquet_seeds() -> list[bytes]:
    import duckdb

    seeds = []
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as db:
        rows = (
            "SELECT 'u' || (n % 3) AS user, n AS item, n AS time, n / 2 AS rating, 'T' || n AS title FROM range(5) t(n)"
        )
        odd = (
            "SELECT 'a' || chr(0) AS user, [{'x': n}] AS item, NULL AS time, 'inf' AS rating, n::BLOB AS title FROM "
            "(SELECT n::VARCHAR AS n FROM range(3) t(n))"
        )
        for number, (query, packing) in enumerate(
            ((rows, "uncompressed"), (rows, "zstd"), (rows, "snappy"), (odd, "gzip"))
        ):
            path = Path(folder) / f"{number}.parquet"
            db.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet, COMPRESSION {packing})")
            seeds += [b"0" + path.read_bytes(), b"a" + path.read_bytes()]
    return seeds


FILMS = {
    "latest": {
        "ratings.csv": b"userId,movieId,rating,timestamp\n1,10,4.0,1\n2,20,3.5,2\n",
        "movies.csv": b'movieId,title,genres\n10,Heat (1995),Action|Crime\n20,"A, B",Drama\n',
    },
    "colons": {
        "ratings.dat": b"1::10::4::1\n2::20::3::2\n",
        "movies.dat": b"10::Heat (1995)::Action|Crime\n20::Am\xe9lie::Drama\n",
    },
    "100k": {
        "u.data": b"1\t10\t4\t1\n2\t20\t3\t2\n",
        "u.item": b"10|Heat|1995||x" + b"|0" * 5 + b"|1" * 14 + b"\n20|Am\xe9lie|2001||y" + b"|0" * 19 + b"\n",
    },
}
NEWS = {
    "behaviors.tsv": b"1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN2-1 N1-0\n2\tU2\t11/12/2019 9:05:58 PM\t\tN1-1\n",
    "news.tsv": b"N1\tnews\tworld\tTitle\tText\thttp\t[]\t[]\nN2\tsport\tball\tOther\t\thttp\t[]\t[]\n",
}
ATOMIC = {
    "toy.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\ta\t4\t1\nv\tb\t3\t2\n",
    "toy.item": b"item_id:token\tmovie_title:token_seq\tclass:token_seq\na\tHeat\tCrime\nb\tOther\tDrama\n",
    "toy.user": b"user_id:token\tage:float\nu\t3\nw\t4\n",
}
GRAPHS = {
    "list": {"train.txt": b"0 1 2\n1 2 3\n\n2\n", "test.txt": b"0 3\n1 1\n"},
    "colon": {"train.txt": b"0:1 2\n1: 2 3\n2:\n", "test.txt": b"0:3\n"},
    "triples": {"train.txt": b"0\t1\t3\n1\t2\t1\n", "test.txt": b"0\t2\t1\n"},
}


def one_of(format: str, folders: list[dict[str, bytes]], source: str = ""):
    """(run, seeds): an input's first byte chooses which file of which folder the rest of it is."""
    places = [(folder, name) for folder in folders for name in folder]

    def run(data: bytes) -> str:
        folder, name = places[(data[0] if data else 0) % len(places)]
        return outcome(format, folder | {name: data[1:]}, source)

    def seeds() -> list[bytes]:
        hostile = [bytes([number]) + content for number in range(len(places)) for content in (b"\x01", b" \t \n\x0b")]
        return [bytes([number]) + folder[name] for number, (folder, name) in enumerate(places)] + hostile

    return run, seeds


def target(name: str, what: str, run, seeds, n_slice: int, words: tuple[bytes, ...] = ()) -> Target:
    return Target(name, what, seeds, run, dictionary=WORDS + words, memory_bytes=2 << 30, n_slice=n_slice)


TARGETS = (
    target("csv", "CSV files of the format table", run_csv, csv_seeds, 30),
    target(
        "jsonl",
        "JSON lines of the format table",
        run_jsonl,
        jsonl_seeds,
        30,
        (b"{", b"}", b"[", b'":', b"null", b"\\ud800"),
    ),
    target(
        "parquet",
        "Parquet files of the format table",
        run_parquet,
        parquet_seeds,
        30,
        (b"PAR1", b"\x15\x00", b"\x19", b"\xff" * 9),
    ),
    target(
        "movielens",
        "a file among those of the format movielens",
        *one_of("movielens", list(FILMS.values())),
        30,
        (b"::", b"|"),
    ),
    target("mind", "a file among those of the format mind", *one_of("mind", [NEWS]), 30, (b"-1", b"-0", b" ", b"AM")),
    target(
        "recbole",
        "a file among those of the format recbole",
        *one_of("recbole", [ATOMIC], "toy.inter"),
        30,
        (b":token", b":"),
    ),
    target(
        "lightgcn",
        "a file among those of the format lightgcn",
        *one_of("lightgcn", list(GRAPHS.values())),
        30,
        (b":", b" "),
    ),
)
