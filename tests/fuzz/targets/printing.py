"""Text on its way out: what `printable` and `json_text` let through, and what a spreadsheet would run."""

import csv
import io
import json
import unicodedata

from harness import Target

TEXT = "User identity: cook, gardener, parent; User interests: herbs, soups, tools"


def printable_text(data: bytes) -> str:
    from reclm_lite.csv_cells import is_formula, marked, unmarked
    from reclm_lite.printable import json_text, printable

    text = (
        data.decode("utf-8", "surrogateescape")
        if data[:1] != b"u"
        else data[1:].decode("utf-16-le", "surrogatepass" if len(data) % 2 else "replace")
    )
    for lines in (False, True):
        shown = printable(text, lines=lines)
        assert printable(shown, lines=lines) == shown, "printed twice it changes"
        for char in shown:
            allowed = lines and char in "\t\n"
            assert allowed or unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp"), hex(ord(char))
            assert unicodedata.bidirectional(char) not in (
                "LRE",
                "RLE",
                "LRO",
                "RLO",
                "PDF",
                "LRI",
                "RLI",
                "FSI",
                "PDI",
            ), hex(ord(char))
    told = json_text({text: [text]})
    assert json.loads(told) == {text: [text]} and printable(told) == told
    cell = marked(text)
    assert unmarked(cell) == text and not is_formula(cell)
    if any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        return "surrogates"
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerow([cell])
    read = next(csv.reader(io.StringIO(out.getvalue(), newline="")))
    assert "\0" in text or unmarked(read[0]) == text
    return "changed" if printable(text) != text else "unchanged"


_PLACE = []


def _workspace():
    """One small workspace in memory for all inputs of a process; what an input stores is rolled back."""
    if not _PLACE:
        import tempfile
        from pathlib import Path

        from profile_workspace import make_workspace

        folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        _PLACE.extend((folder, make_workspace(Path(folder.name) / "ws", {0: [0], 1: [1], 2: [2]}), Path(folder.name)))
    return _PLACE[1], _PLACE[2]


def _profiles(ws) -> list[tuple]:
    return ws.db.execute(
        "SELECT side, idx, status, text, source, basis, created FROM profiles ORDER BY side, idx"
    ).fetchall()


def profile_exchange(data: bytes) -> str:
    """The first byte says the form: a file is imported; what was accepted goes out and comes in again the same."""
    from reclm_lite.errors import InputError
    from reclm_lite.profiles.exchange import export_profiles, import_profiles, read_profiles

    ws, folder = _workspace()
    form = {b"j": "jsonl", b"c": "csv", b"r": "reclm"}.get(data[:1], "jsonl")
    path = folder / "in"
    path.write_bytes(data[1:])
    with ws.db:
        ws.db.execute("DELETE FROM profiles")
    try:
        summary = import_profiles(ws, path, side="user" if data[1:2] in b"ui" else None, form=form, skip_invalid=True)
        read_profiles(ws, path, side="user" if form == "reclm" else None, form=form)
    except InputError as error:
        assert not _profiles(ws), "refused, and yet something was stored"
        assert len(str(error)) < 4000
        return "refused"
    stored = _profiles(ws)
    assert summary.n_imported == len(stored)
    for again in ("jsonl", "csv"):
        out = io.BytesIO()
        export_profiles(ws, out, form=again)
        copy = folder / f"out.{again}"
        copy.write_bytes(out.getvalue())
        with ws.db:
            ws.db.execute("DELETE FROM profiles")
        if stored:
            import_profiles(ws, copy, form=again)
        assert _profiles(ws) == stored, f"not the same after {again}"
    return f"accepted {'some' if stored else 'none'}"


def workspace_toml(data: bytes) -> str:
    """A workspace.toml of somebody else's."""
    from reclm_lite.errors import ReclmError
    from reclm_lite.report import background, facts
    from reclm_lite.status import workspace_status

    ws, _ = _workspace()
    before = ws.toml_path.read_bytes()
    ws.toml_path.write_bytes(data)
    try:
        workspace_status(ws)
        config = ws.config
        assert all(isinstance(section, dict) for section in config.values())
        manifest = config.get("data", {}).get("manifest")
        manifest = (
            manifest if isinstance(manifest, dict) else {}
        )  # what the report shows is the artefact's: of JSON too
        told = background._manifest(manifest) + "\n".join(facts._commands(ws, manifest))
        assert "<script" not in told.lower()
        ws.set_config("data", {"name": "x"})
        assert ws.config == {**config, "data": {"name": "x"}} or any(value != value for value in _numbers(config))
    except ReclmError:
        return "refused"
    finally:
        ws.toml_path.write_bytes(before)
    return "accepted"


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for one in value.values() for number in _numbers(one)]
    if isinstance(value, list):
        return [number for one in value for number in _numbers(one)]
    return [value] if isinstance(value, float) else []


def _text_seeds() -> list[bytes]:
    texts = (
        "plain",
        "\x1b]0;t\x07\x1b[2J",
        "\x9b31m",
        "\u202ea\u2066\u2069",
        "a\u2028b\u2029",
        "=1+1",
        "\ufeff =cmd|'/c'!A0",
        "'=x",
        "''@x",
        "\uff1dx",
        "\t=x",
        "é ü 日本 😀 👩‍👧 e\u0301",
        "-1",
        "'",
        "\r\n",
        "[/bold]:x:",
    )
    return [text.encode() for text in texts] + [
        b"\xff\xfe\x80",
        b"\xed\xa0\x80",
        b"u\x00\xd8\x1b",
        b"u\x1b\x00\x2e\x20",
    ]


def _profile_seeds() -> list[bytes]:
    def row(**more):
        return json.dumps({"side": "user", "id": "u0", "profile": TEXT, **more}).encode() + b"\n"

    header = b"side,id,profile,status,source,reason,basis,created\n"
    return [
        b"j" + row(),
        b"j"
        + row(source="=1+1", status="edited", basis="history", created="2024-05-01T00:00:00+00:00")
        + row(id="u1", source="\x1b[2J'=\ud800"),
        b"j" + row(id=1),
        b"j[",
        b"j" + b"[" * 3000,
        b"j" + row(profile=TEXT.replace("cook", "=cook")),
        b'j{"side": "item", "id": "i1", "profile": "' + TEXT.encode() + b'"}\n',
        b"c" + header + b'user,u0,"' + TEXT.encode() + b"\",ok,'=1+1,,history,2024-05-01T00:00:00+00:00\n",
        b'cid,profile\nu0,"never closed',
        b"cid,profile\nu0,\x00\n",
        b'c\xef\xbb\xbfid,profile,side\nu2,"' + TEXT.encode() + b'",users\n',
        b'rUID,Input,Response\nu0,x,"' + TEXT.encode() + b'"\n',
        b"cid,profile\n" + b'"' + b"x" * 3000,
    ]


def _toml_seeds() -> list[bytes]:
    return [
        b'[workspace]\nschema_version = 5\ncreated = "2024-05-01T00:00:00+00:00"\n',
        b'[data]\nname = "shop"\nformat = "table"\nsources = [{file = "a", bytes = 1, sha256 = '
        b'"x"}]\n[data.counts]\nusers = 3\n',
        b"data = 1\n",
        b"data = []\n",
        b"[[data]]\n",
        b"[data]\nname = [[1]]\ncounts = 1\nsources = 3\n",
        b"x = " + b"[" * 3000,
        b"[a]\n" + b"b." * 3000 + b"c = 1\n",
        b"[" + b"'a' . " * 3000 + b"b]\n",
        b"[a]\nb = {" + b'"\\"".' * 3000 + b"c = 1}\n",
        b"[a]\nb = " + b"9" * 3000,
        b"[a]\nb = nan\n",
        b"\xff",
        b"",
        b'[data]\nname = "\\u001b[2J"\n',
        b"[data]\noptions = {a = inf, b = 1979-05-27}\ndropped = {x = -1}\n",
        b"[data]\nsources = [1, 'a', {}]\n[data.options]\n",
    ]


TARGETS = (
    Target(
        "printable",
        "text, JSON and CSV cells on their way out",
        _text_seeds,
        printable_text,
        dictionary=(
            b"\x1b[",
            b"\xc2\x9b",
            "\u202e".encode(),
            "\u2028".encode(),
            b"=",
            b"'",
            "\uff1d".encode(),
            "\ufeff".encode(),
            b"\r",
            b"\xed\xa0\x80",
        ),
        max_bytes=512,
    ),
    Target(
        "profile_exchange",
        "files of profiles, in and out",
        _profile_seeds,
        profile_exchange,
        dictionary=(
            b'"side"',
            b'"id"',
            b'"profile"',
            b'"status"',
            b"edited",
            b"invalid",
            b'"u1"',
            b"\\ud800",
            b"'=",
            b"\n",
            b",",
            b'""',
            b"User identity: ",
            b"\r",
            b"=",
            b"\t",
        ),
    ),
    Target(
        "workspace_toml",
        "workspace.toml",
        _toml_seeds,
        workspace_toml,
        dictionary=(
            b"[data]",
            b"[data.counts]",
            b"sources",
            b"name",
            b"counts",
            b"dropped",
            b"options",
            b"= nan",
            b"= inf",
            b"[[",
            b"{",
            b'"""',
            b"= 1",
            b"licence",
            b"\\u001b",
        ),
    ),
)
