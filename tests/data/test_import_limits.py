"""Memory, disk and time per file are bounded, and DuckDB can only open the sources."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reclm_lite.data.importers import import_dataset, numbering
from reclm_lite.data.importers.limits import Limits, parse_limits
from reclm_lite.data.importers.parquet import _MAX_FOOTER_BYTES
from reclm_lite.data.importers.staging import Staging, quoted
from reclm_lite.errors import InputError, ReclmError

# Beyond what the process has after loading; DuckDB itself is held to 768 MB, and takes some more beside.
MEMORY_BYTES = 1600 << 20
CODE = """
import resource, sys
from pathlib import Path
from reclm_lite.data.importers import import_dataset
from reclm_lite.errors import ReclmError
import duckdb
path, most = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + most, used + most))
try:
    import_dataset(sys.argv[3], path)
except ReclmError as error:
    print(error)
else:
    print('accepted')
"""


def refusal(source, format_name="table", **options):
    with pytest.raises(ReclmError) as caught:
        import_dataset(format_name, source, **options)
    message = str(caught.value)
    assert "\n" not in message and "reclm-import" not in message and len(message) < 3000
    return message


def in_little_memory(source, format_name="table"):
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(source), str(MEMORY_BYTES), format_name],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.mark.parametrize("ending", ["csv.gz", "jsonl.gz"])
def test_one_endless_line_in_a_small_gzip_is_refused_in_little_memory(tmp_path, ending):
    source = tmp_path / f"log.{ending}"
    with gzip.open(source, "wb", compresslevel=1) as out:
        for _ in range(400):
            out.write(b"x" * (1 << 20))
    assert "line 1: the line is longer than 4,194,304 bytes" in in_little_memory(source)


def test_a_gzip_of_short_lines_may_not_unpack_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("reclm_lite.data.importers.limits.FREE_UNPACKED_BYTES", 10_000)
    source = tmp_path / "log.csv.gz"
    source.write_bytes(gzip.compress(b"user,item\n" + b"u,a\n" * 50_000))
    assert "refused as a decompression bomb" in refusal(source)
    assert import_dataset("table", source, limits=Limits(unpacked_ratio=1000)).item_ids == ["a"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_longest_line_is_measured_across_chunks_and_every_line_end(tmp_path, end):
    source = tmp_path / "log.csv"
    limits = Limits(line_bytes=64)
    lines = [b"user,item", *(b"u%d,a" % n for n in range(100))]
    source.write_bytes(end.join([*lines, b"u," + b"x" * 62]) + end)  # 64 bytes
    assert len(import_dataset("table", source, limits=limits).user_ids) == 101
    source.write_bytes(end.join([*lines, b"u," + b"x" * 63]) + end)
    assert "longer than 64 bytes" in refusal(source, limits=limits)


def test_a_table_of_very_many_columns_is_refused_in_a_short_sentence(tmp_path):
    source = tmp_path / "log.csv"
    source.write_text("user,item," + ",".join(f"c{n}" for n in range(200_000)) + "\n")
    assert "line 1: found 200,002 columns, expected at most 2,000" in refusal(source)
    (tmp_path / "log.jsonl").write_text(json.dumps({f"c{n}": 1 for n in range(50_000)}) + "\n")
    assert "found 50,000 columns" in refusal(tmp_path / "log.jsonl")
    source.write_text(",".join(f"c{n}" for n in range(1000)) + "\n")
    assert "'c19' and 980 more" in refusal(source)


def test_a_line_of_a_million_delimiters_is_too_many_fields(tmp_path):
    source = tmp_path / "log.csv"
    source.write_bytes(b"user,item\nu,a\n" + b",x" * 1_000_000 + b"\n")
    assert "line 3: too many fields: expected 2, found" in refusal(source)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"user":' + "[" * 5000 + "]" * 5000 + "}"])
def test_deep_json_is_refused_on_the_first_line_and_on_later_ones(tmp_path, text):
    source = tmp_path / "log.jsonl"
    source.write_text(text + "\n")
    assert "line 1: the JSON object is nested too deeply" in refusal(source)
    source.write_text('{"user": "u", "item": "i"}\n' + text[:-1] + "\n")
    assert "line 2" in refusal(source)


def test_an_id_has_a_length_and_a_longer_text_is_cut_and_counted(tmp_path):
    source = tmp_path / "log.csv"
    source.write_text(f"user,item,title\nu,a,{'t' * 200}\nv,{'b' * 21},T\n")
    limits = Limits(id_bytes=20, text_chars=150)
    assert "row 2: column 'item' contains an id of more than 20 bytes" in refusal(source, limits=limits)
    data = import_dataset("table", source, title_column="title", limits=Limits(id_bytes=21, text_chars=150))
    assert data.item_texts[0].title == "t" * 150
    assert "1 items have a text of more than 150 characters; it was cut there" in data.manifest["notes"]
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text(f"0 {'7' * 21}\n")
    assert f"the item id '{'7' * 21}' is longer than 20 bytes" in refusal(tmp_path, "lightgcn", limits=limits)


def test_a_lightgcn_line_of_two_million_items_takes_bounded_memory(tmp_path):
    (tmp_path / "train.txt").write_text("0 " + "1 " * 2_000_000 + "\n")
    (tmp_path / "test.txt").write_text("0 2\n")
    assert in_little_memory(tmp_path, "lightgcn") == "accepted\n"


def test_a_chain_of_pairs_comes_to_its_core_without_a_round_for_every_link(tmp_path, monkeypatch):
    at_once = []
    n = 400
    (tmp_path / "log.csv").write_text(
        "user,item\n"
        + "".join(f"u{k},i{k}\nu{k},i{k + 1}\n" for k in range(n))
        + "".join(f"{user},{item}\n" for user in "xyz" for item in "abc")
    )
    drop_chains = numbering._drop_chains
    monkeypatch.setattr(numbering, "_drop_chains", lambda *args: (at_once.append(1), drop_chains(*args)))
    data = import_dataset("table", tmp_path / "log.csv", min_user=2, min_item=2)
    assert len(data.users) == 9 and len(at_once) == 1


def test_the_core_is_the_same_in_rounds_and_at_once():
    rng = np.random.default_rng(5)
    for least_user, least_item in ((2, 2), (3, 2), (1, 4), (9, 9)):
        pairs = np.unique(rng.integers(0, 30, (120, 2)), axis=0)
        gone = numbering.outside_core(pairs[:, 0], pairs[:, 1], least_user, least_item)
        left = pairs
        while True:
            few = [
                np.bincount(left[:, side], minlength=30) < least for side, least in ((0, least_user), (1, least_item))
            ]
            keep = ~(few[0][left[:, 0]] | few[1][left[:, 1]])
            if keep.all():
                break
            left = left[keep]
        kept = pairs[~np.isin(pairs[:, 0], gone[0]) & ~np.isin(pairs[:, 1], gone[1])]
        assert kept.tolist() == left.tolist()


def test_limits_are_parsed_and_every_one_has_a_range():
    assert parse_limits(["line-bytes=100", "id_bytes = 5"]) == Limits(line_bytes=100, id_bytes=5)
    for word in (
        "lines=3",
        "columns",
        "columns=0",
        "columns=-1",
        "columns=1e3",
        "columns=" + "9" * 5000,
        "line-bytes=99999999999",
        "=",
        "columns=²",
    ):
        with pytest.raises(InputError) as caught:
            parse_limits([word])
        assert "expected" in str(caught.value) and len(str(caught.value)) < 300


# -- Parquet -----------------------------------------------------------------------


def write_parquet(path: Path, query: str) -> None:
    import duckdb

    with duckdb.connect() as db:
        db.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")


def test_a_parquet_file_of_run_lengths_may_not_unpack_without_bound(tmp_path, monkeypatch):
    source = tmp_path / "log.parquet"
    write_parquet(source, "SELECT 'u' AS user, 'a' AS item FROM range(100000)")
    assert import_dataset("table", source).user_ids == ["u"]
    monkeypatch.setattr("reclm_lite.data.importers.limits.FREE_UNPACKED_BYTES", 10_000)
    assert "claims to contain 100,000 rows" in refusal(source)
    # Few rows, but one long value repeated in each of them.
    write_parquet(source, "SELECT 'u' AS user, n::VARCHAR AS item, repeat('t', 90000) AS title FROM range(40) t(n)")
    monkeypatch.setattr("reclm_lite.data.importers.limits.FREE_UNPACKED_BYTES", 200_000)
    assert "its columns come to" in refusal(
        source, items_source=source, title_column="title", limits=Limits(unpacked_ratio=1)
    )


def test_a_parquet_footer_and_its_columns_are_bounded(tmp_path):
    source = tmp_path / "log.parquet"
    source.write_bytes(b"PAR1" + b"\0" * 100 + (_MAX_FOOTER_BYTES + 1).to_bytes(4, "little") + b"PAR1")
    assert "a footer of 33,554,433 bytes" in refusal(source)
    write_parquet(source, "SELECT " + ", ".join(f"1 AS c{n}" for n in range(30)))
    assert "found 30 columns" in refusal(source, limits=Limits(columns=29))


def test_a_parquet_page_is_as_large_as_its_own_header_says(tmp_path, monkeypatch):
    """The footer may claim anything: here that the column takes 0 bytes."""
    source = tmp_path / "log.parquet"
    write_parquet(source, "SELECT n::VARCHAR AS user, repeat('a', 50000) || n AS item FROM range(3) t(n)")
    import_options = {"limits": Limits(id_bytes=60_000)}
    assert len(import_dataset("table", source, **import_options).item_ids) == 3
    content = source.read_bytes()
    footer_bytes = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - footer_bytes], content[-8 - footer_bytes :]
    import duckdb

    with duckdb.connect() as db:
        sizes = db.execute(f"SELECT total_uncompressed_size FROM parquet_metadata('{source}')").fetchall()
    for (size,) in sizes:
        packed = zigzag_varint(size)
        assert packed in footer
        footer = footer.replace(packed, b"\x80" * (len(packed) - 1) + b"\0")
    source.write_bytes(body + footer)
    monkeypatch.setattr("reclm_lite.data.importers.limits.FREE_UNPACKED_BYTES", 100_000)
    assert "unpacks to more than 100,000 bytes" in refusal(source, limits=Limits(id_bytes=60_000, unpacked_ratio=1))
    monkeypatch.setattr("reclm_lite.data.importers.parquet_pages.MAX_PAGE_BYTES", 50_000)
    assert "found a page of 15" in refusal(source, **import_options)
    monkeypatch.undo()
    monkeypatch.setattr("reclm_lite.data.importers.parquet_pages.MAX_PAGES", 1)
    assert "among 2, expected at most 1 pages" in refusal(source, **import_options)


def zigzag_varint(value: int) -> bytes:
    value, out = 2 * value, b""
    while value > 127:
        value, out = value >> 7, out + bytes([value & 127 | 128])
    return out + bytes([value])


def test_page_headers_of_every_codec_and_of_nested_columns_are_read(tmp_path):
    import duckdb

    with duckdb.connect() as db:
        for codec in ("uncompressed", "snappy", "gzip", "zstd"):
            for version in ("v1", "v2"):
                path = tmp_path / f"{codec}-{version}.parquet"
                db.execute(
                    "COPY (SELECT 'u' || n % 50 AS user, n AS item, [n, n + 1] AS list, {'a': [n], 'b': "
                    "NULL::INTEGER} AS nested, "
                    f"NULL::VARCHAR AS none FROM range(5000) t(n)) TO '{path}' (FORMAT parquet, COMPRESSION {codec}, "
                    f"PARQUET_VERSION {version}, ROW_GROUP_SIZE 2048)"
                )
                assert len(import_dataset("table", path).item_ids) == 5000


# -- what DuckDB may reach ---------------------------------------------------------


@pytest.fixture
def staging(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\nu,a\n")
    (tmp_path / "secret.csv").write_text("user,item\ns,s\n")
    with Staging(tmp_path / "log.csv") as staging:
        yield staging


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('/etc/passwd', delim=':', header=false, auto_detect=false, columns={{'a': 'VARCHAR'}})",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('{folder}/secret.csv')",
        "SELECT * FROM '{folder}/secret.csv'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('https://example.org/a.parquet')",
        "SELECT * FROM read_csv('s3://bucket/a.csv')",
        "COPY (SELECT 1) TO '{folder}/written.csv'",
        "ATTACH '{folder}/other.duckdb'",
        "LOAD httpfs",
        "INSTALL httpfs",
        "SET enable_external_access=true",
        "SET autoload_known_extensions=true",
        "RESET lock_configuration",
        "SET lock_configuration=false",
        "SET allowed_directories=['/']",
        "PRAGMA memory_limit='100GB'",
    ],
)
def test_duckdb_reads_no_other_file_and_loads_no_extension(staging, tmp_path, statement, ordered):
    import duckdb

    db = staging.ordered if ordered else staging.db
    with pytest.raises(duckdb.Error, match=r"Permission Error|Cannot change|locked|disabled"):
        db.execute(statement.format(folder=tmp_path)).fetchall()
    assert not (tmp_path / "written.csv").exists()


def test_a_link_that_appears_in_the_staging_folder_after_the_start_leads_nowhere_else(staging, tmp_path):
    import duckdb

    if tuple(int(part) for part in duckdb.__version__.split(".")[:2]) < (1, 5):
        pytest.skip("older versions of DuckDB compare names alone; only this process writes in the folder")
    (staging.folder / "source-9").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(duckdb.PermissionException):
        staging.db.execute(f"SELECT * FROM read_text({quoted(str(staging.folder / 'source-9'))})")


NASTY = [
    "a'); COPY raw TO 'x",
    "u\" FROM read_text('/etc/passwd') --",
    "x' OR '1'='1",
    "{}'::STRUCT",
    "a\\",
    "\x1b[31m",
    "%s{value}",
    "a\nb",
]


@pytest.mark.parametrize("name", NASTY)
def test_a_hostile_file_column_or_value_is_only_text(tmp_path, name):
    source = tmp_path / (name.replace("/", "_") + ".csv")
    quote = '"' + name.replace('"', '""') + '"'
    source.write_text(f"{quote},item\n{quote},{quote}\n", newline="")
    data = import_dataset("table", source, user_column=name)
    assert data.user_ids == data.item_ids == [name]
    json_source = source.with_suffix(".jsonl")
    json_source.write_text(json.dumps({name: name, "item": name}) + "\n")
    assert import_dataset("table", json_source, user_column=name).user_ids == [name]


def test_a_source_behind_links_and_in_a_folder_named_like_a_pattern_is_read(tmp_path):
    folder = tmp_path / "a[b]*"
    folder.mkdir()
    (folder / "log.csv").write_text("user,item\nu,a\n")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "log.csv").symlink_to(tmp_path / "link" / "log.csv")
    assert import_dataset("table", tmp_path / "log.csv").user_ids == ["u"]
    assert import_dataset("table", folder / "log.csv").user_ids == ["u"]


def test_a_parquet_file_compressed_by_brotli_is_refused_before_its_pages_are_read(tmp_path):
    import duckdb

    path = tmp_path / "log.parquet"
    with duckdb.connect() as db:
        db.execute(
            f"COPY (SELECT 'u' || i AS \"user\", 'i' || i AS item FROM range(50) t(i)) TO '{path}' (COMPRESSION brotli)"
        )
    with pytest.raises(InputError, match="compressed by Brotli.*zstd or snappy"):
        import_dataset("table", path)
    with duckdb.connect() as db:
        db.execute(
            f"COPY (SELECT 'u' || i AS \"user\", 'i' || i AS item FROM range(50) t(i)) TO '{path}' (COMPRESSION zstd)"
        )
    assert len(import_dataset("table", path).user_ids) == 50


def test_a_parquet_file_that_names_one_long_text_in_every_row_is_refused_before_it_is_written_out(tmp_path):
    import duckdb

    path = tmp_path / "log.parquet"
    with duckdb.connect() as db:
        db.execute(
            "COPY (SELECT 'u' || i % 100 AS \"user\", 'i' || i AS item, repeat('y', 99000) AS t FROM range(20000) "
            "r(i)) "
            f"TO '{path}' (COMPRESSION zstd, ROW_GROUP_SIZE 2048)"
        )
    assert path.stat().st_size < 1 << 20
    for options in ({"text_columns": ["t"]}, {"title_column": "t"}):
        with pytest.raises(InputError, match="refused as a decompression bomb"):
            import_dataset("table", path, **options)
    assert len(import_dataset("table", path).item_ids) == 20_000
