"""Pickles made by hand: good ones of every kind that the format reclm reads, and hostile ones, each with a name.

The hostile ones are small programs for Python's pickle machine, written with an assembler of a few functions.
`large_pickles` has those that only size makes hostile, as large as a test needs them.
"""

import pickle
import pickletools
import struct

import numpy as np
import scipy.sparse as sp

OPCODES = {opcode.name: opcode for opcode in pickletools.opcodes}
NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def whole(value: int) -> bytes:
    return b"I%d\n" % value


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def group(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def mapping(*pairs: bytes) -> bytes:
    return b"}(" + b"".join(pairs) + b"u"


NDARRAY, DTYPE = name("numpy", "ndarray"), name("numpy", "dtype")
RECONSTRUCT, SCALAR = name("numpy.core.multiarray", "_reconstruct"), name("numpy._core.multiarray", "scalar")
COO = name("scipy.sparse._coo", "coo_matrix")
EMPTY_ARRAY = RECONSTRUCT + group(NDARRAY, group(whole(0)), raw(b"b")) + b"R"
PLAIN_STATE = (whole(3), text("<"), NONE, NONE, NONE, whole(-1), whole(-1), whole(0))


def dtype(code: str = "i4", flags: tuple[bytes, ...] = (FALSE, TRUE)) -> bytes:
    return DTYPE + group(text(code), *flags) + b"R"


def full_dtype(*changes: tuple[int, bytes], code: str = "i4") -> bytes:
    state = list(PLAIN_STATE)
    for place, value in changes:
        state[place] = value
    return dtype(code) + group(*state) + b"b"


TWO_ZEROS = group(whole(1), group(whole(2)), full_dtype(), FALSE, raw(bytes(8)))


def array(
    shape: bytes | None = None,
    kind: bytes | None = None,
    data: bytes | None = None,
    *,
    version: bytes = whole(1),
    fortran: bytes = FALSE,
) -> bytes:
    """Two int32 by default."""
    state = (
        version,
        group(whole(2)) if shape is None else shape,
        full_dtype() if kind is None else kind,
        fortran,
        raw(bytes(8)) if data is None else data,
    )
    return EMPTY_ARRAY + group(*state) + b"b"


# -- good ones -----------------------------------------------------------------


def good_pickles() -> list[tuple[str, bytes, object]]:
    """Title, pickle, and the value that it holds."""
    matrix = sp.coo_matrix(np.array([[0, 2.0], [3, 0]]))
    plain = {
        "item map": {3: 0, 5: 1, 70000: 2, 1 << 40: 3},
        "texts": {
            7: {"cate": "news", "sub_cate": "world", "title": "Caf\u00e9", "abstract": ""},
            9: {"cate": "news", "title": "T\n\u20ac"},
        },
        "lists": {0: [1, 2, 3], 1: [], 2: [-5, 2.5, None, True]},
    }
    with_numpy = {
        "matrix": matrix,
        "scalars": [np.int64(-3), np.float32(0.5), np.bool_(True), np.uint8(255), np.float16(2)],
        "arrays": {
            "a": np.arange(3, dtype=np.int64),
            "f": np.asfortranarray(np.eye(2)),
            "e": np.zeros((0, 4), np.int16),
            "b": np.array([True]),
        },
        "big-endian": {"a": np.array([1, 2], ">i4"), "s": np.dtype(">f8").type(1.5)},
    }
    made = [
        (f"{title}, protocol {protocol}", pickle.dumps(value, protocol), value)
        for title, value in plain.items()
        for protocol in (0, 1, 2, 3, 4, 5)
    ]
    made += [
        (f"{title}, protocol {protocol}", pickle.dumps(value, protocol), value)
        for title, value in with_numpy.items()
        for protocol in (3, 4)
    ]
    value = {"a": np.arange(2), "s": np.int64(4), "m": matrix}
    old = (
        pickle.dumps(value, 3).replace(b"numpy._core", b"numpy.core").replace(b"scipy.sparse._coo", b"scipy.sparse.coo")
    )
    made.append(("NumPy 1, old SciPy", old, value))
    # Python 2's cPickle: text without a type, memo from 1, flags 0 and 1.
    state = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    made.append(
        (
            "Python 2, protocol 2",
            b"\x80\x02}q\x01(U\x01aq\x02h\x02U\x01bcnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
            b"(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02i2K\x00K\x01\x87Rq\x07" + state + b"\x89U\x041\x002\x00tbu.",
            {"a": "a", "b": [49, 50]},
        )
    )
    made.append(
        (
            "Python 2, protocol 0",
            b"(dp0\nS'it\\'s \\n'\np1\nI7\nsS\"b\"\nL12L\nsVcaf\\u00e9\nI01\ns.",
            {"it's \n": 7, "b": 12, "caf\u00e9": True},
        )
    )
    made.append(("crafted as NumPy writes", mapping(text("a"), array()) + b".", {"a": [0, 0]}))
    return made


# -- hostile ones -----------------------------------------------------------------

FOREIGN = (
    "os.system",
    "posix.system",
    "nt.system",
    "subprocess.Popen",
    "subprocess.check_output",
    "builtins.eval",
    "builtins.exec",
    "__builtin__.eval",
    "builtins.getattr",
    "builtins.open",
    "importlib.import_module",
    "pickle.loads",
    "shutil.rmtree",
    "socket.socket",
    "ctypes.CDLL",
    "webbrowser.open",
    "runpy.run_path",
    "timeit.timeit",
    "operator.attrgetter",
    "functools.partial",
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
    "_codecs.encode",
    "collections.OrderedDict",
    "numpy.fromfile",
    "numpy.load",
    "numpy.memmap",
    "numpy.frombuffer",
    "numpy.recarray",
    "numpy.matrix",
    "numpy.core.records.recarray",
    "numpy._core.multiarray.fromfile",
    "numpy._core.numeric._frombuffer",
    "numpy.ndarray.tofile",
    "numpy.dtype.__setstate__",
    "numpy.testing._private.utils.runstring",
    "numpy.f2py.capi_maps.eval",
    "numpy.random._pickle.__randomstate_ctor",
    "scipy.sparse._csr.csr_matrix",
    "scipy.sparse._coo.coo_array",
    "scipy.io.loadmat",
    "numpy.",
    ".",
    "..ndarray",
)
CODES = (
    "O",
    "O8",
    "f8,f8",
    "f8,O",
    "i8,O",
    "V8",
    "S8",
    "U4",
    "M8",
    "m8[s]",
    "c8",
    "c16",
    "f16",
    "g",
    "b2",
    "b8",
    "i3",
    "i16",
    "f1",
    "u0",
    "(2,2)f8",
    ">f8",
    "=i4",
    "|O",
    "i8\0",
    "",
    "i",
    "I4",
    "B1",
    "i4i4",
    "4i",
    " i4",
    "object",
    "int32",
    "f8:f8",
    "i4" * 200,
    "\u20ac",
    "i\u0664",
)
BUILD_STATES = {
    "version 0": (0, whole(0)),
    "version 2": (0, whole(2)),
    "version 4": (0, whole(4)),
    "version true": (0, TRUE),
    "version huge": (0, whole(1 << 62)),
    "no version": (0, NONE),
    "order empty": (1, text("")),
    "order long": (1, text("<" * 9)),
    "order pipe": (1, text("|")),
    "order s": (1, text("s")),
    "order bytes": (1, raw(b"<")),
    "subarray": (2, group(dtype(), group(whole(1 << 40)))),
    "names": (3, group(text("a"))),
    "names empty": (3, b")"),
    "fields": (4, mapping(text("a"), group(dtype("i8"), whole(1 << 30)))),
    "fields empty": (4, b"}"),
    "size 0": (5, whole(0)),
    "size 16": (5, whole(16)),
    "size huge": (5, whole(1 << 31)),
    "alignment 1": (6, whole(1)),
    "alignment -2": (6, whole(-2)),
    "flags object": (7, whole(0x3F)),
    "flags negative": (7, whole(-1)),
    "flags list": (7, b"]"),
}


def hostile_pickles() -> list[tuple[str, bytes]]:
    """Over 200 small pickles, every one to be refused."""
    return [*_by_opcode(), *_by_name(), *_numpy(), *_numbers_and_text(), *_memo_and_structure()]


def _by_opcode() -> list[tuple[str, bytes]]:
    made = []
    for title, opcode in OPCODES.items():
        code = opcode.code.encode("latin-1")
        made.append((f"{title} alone", code))
        if title != "STOP":
            made.append((f"{title} after a mark", b"(" + code + b"\0\0\0\0\0\0\0\0\n\n."))
        if title not in ("STOP", "PROTO", "FRAME", "MARK"):
            made.append((f"{title} with an argument of 0xff", b"NN" + code + b"\xff" * 8 + b"\n\n."))
    made += [(f"byte 0x{byte:02x}", bytes([byte]) + b"\0.") for byte in (0x00, 0x01, 0x7E, 0x7F, 0x98, 0xFE, 0xFF)]
    # What the opcodes that are left out do, in a pickle that Python would read.
    made += [
        ("DUP", b"N2\x86."),
        ("POP", b"NN0."),
        ("POP_MARK", b"N(NN1."),
        ("PERSID", b"Pid\n."),
        ("BINPERSID", b"NQ."),
        ("INST", b"(ios\nsystem\n."),
        ("OBJ", b"(" + DTYPE + text("i4") + b"o."),
        ("NEWOBJ_EX", COO + b")}\x92."),
        ("EXT1", b"\x82\x01."),
        ("EXT2", b"\x83\x01\x00."),
        ("EXT4", b"\x84\x01\x00\x00\x00."),
        ("EMPTY_SET", b"\x8f."),
        ("ADDITEMS", b"\x8f(NN\x90."),
        ("FROZENSET", b"(NN\x91."),
        ("BYTEARRAY8", b"\x96" + struct.pack("<Q", 2) + b"ab."),
        ("NEXT_BUFFER", b"\x97."),
        ("READONLY_BUFFER", b"N\x98."),
    ]
    return made


def _by_name() -> list[tuple[str, bytes]]:
    made = []
    for full in FOREIGN:
        module, _, attribute = full.rpartition(".")
        made.append((f"GLOBAL {full}", name(module, attribute) + group(text("x")) + b"R."))
        made.append((f"STACK_GLOBAL {full}", stack_name(module, attribute) + group(text("x")) + b"R."))
        dotted = full.split(".", 1)
        if len(dotted) == 2 and "." in dotted[1]:
            made.append((f"dotted {full}", b"\x80\x04" + stack_name(*dotted) + b"."))
    made += [
        ("escape sequences in a name", name("\x1b[2Jos", "system\x07") + b"."),
        ("a name of 300 bytes", name("o" * 300, "x") + b"."),
        ("a name that is a number", whole(1) + text("x") + b"\x93."),
        ("a name that is bytes", raw(b"numpy") + raw(b"ndarray") + b"\x93."),
        ("a name without an end", b"cnumpy\nndarray"),
        ("a name with a line end", stack_name("numpy\nndarray", "x\ny") + b"."),
    ]
    return made


def _numpy() -> list[tuple[str, bytes]]:
    made = [(f"dtype code {code[:12]!r}", dtype(code) + b".") for code in CODES]
    made += [
        (f"dtype code {code[:12]!r} in an array", array(kind=dtype(code), data=raw(bytes(16))) + b".") for code in CODES
    ]
    made += [(f"dtype state, {title}", array(kind=full_dtype(change)) + b".") for title, change in BUILD_STATES.items()]
    out_of_bounds = (
        dtype("f8,f8")
        + group(
            whole(3),
            text("|"),
            NONE,
            group(text("a")),
            mapping(text("a"), group(dtype("i8"), whole(1 << 30))),
            whole(16),
            whole(1),
            whole(0),
        )
        + b"b"
    )
    made += [
        (
            "a field far outside, written",
            NDARRAY + group(group(whole(1)), out_of_bounds, raw(b"A" * 16)) + b"R" + text("a") + whole(1) + b"s.",
        ),
        (
            "a number read as an object",
            SCALAR
            + group(
                dtype("f8,f8")
                + group(
                    whole(3),
                    text("|"),
                    NONE,
                    group(text("a")),
                    mapping(text("a"), group(dtype("i8,O"), whole(0))),
                    whole(16),
                    whole(1),
                    whole(0),
                )
                + b"b",
                raw(b"A" * 16),
            )
            + b"R.",
        ),
        ("dtype aligned", dtype(flags=(TRUE, TRUE)) + b"."),
        ("dtype flags 2", dtype(flags=(whole(0), whole(2))) + b"."),
        ("dtype without flags", dtype(flags=()) + b"."),
        ("dtype of a dtype", DTYPE + group(dtype(), FALSE, TRUE) + b"R."),
        ("dtype with its state twice", full_dtype() + group(*PLAIN_STATE) + b"b."),
        ("dtype state short", dtype() + group(*PLAIN_STATE[:7]) + b"b."),
        ("dtype state with metadata", dtype() + group(whole(4), *PLAIN_STATE[1:], b"}") + b"b."),
        ("dtype state a dict", dtype() + b"}b."),
        ("dtype as a value", full_dtype() + b"."),
        ("ndarray as a value", NDARRAY + b"."),
        ("class in a list", b"]" + COO + b"a."),
        ("array without its state", EMPTY_ARRAY + b"."),
        ("array without its state, inside", b"](" + EMPTY_ARRAY + b"e."),
        ("array kept, used, then finished", b"(" + EMPTY_ARRAY + b"q\0h\0" + TWO_ZEROS + b"bt."),
        ("array with its state twice", array() + TWO_ZEROS + b"b."),
        ("array finished twice", b"(" + EMPTY_ARRAY + b"q\0" + TWO_ZEROS + b"bh\0" + TWO_ZEROS + b"bt."),
        (
            "arrays that share their bytes",
            b"("
            + array(data=raw(bytes(800)) + b"q\0", shape=group(whole(200)))
            + array(data=b"h\0", shape=group(whole(200)))
            + array(data=b"h\0", shape=group(whole(200)))
            + b"t.",
        ),
        ("ndarray called", NDARRAY + group(group(whole(1 << 40))) + b"R."),
        (
            "ndarray called with an offset",
            NDARRAY + group(group(whole(1)), dtype("i8"), raw(bytes(8)), whole(64)) + b"R.",
        ),
        (
            "ndarray called with strides",
            NDARRAY + group(group(whole(9)), dtype("i8"), raw(bytes(8)), whole(0), group(whole(1 << 40))) + b"R.",
        ),
        ("ndarray by NEWOBJ", NDARRAY + group(group(whole(1 << 40))) + b"\x81."),
        ("dtype by NEWOBJ", DTYPE + group(text("O")) + b"\x81."),
        ("_reconstruct of a dtype", RECONSTRUCT + group(DTYPE, group(whole(0)), raw(b"b")) + b"R."),
        ("_reconstruct of text", RECONSTRUCT + group(text("ndarray"), group(whole(0)), raw(b"b")) + b"R."),
        ("_reconstruct of 1<<40", RECONSTRUCT + group(NDARRAY, group(whole(1 << 40)), raw(b"b")) + b"R."),
        ("_reconstruct as objects", RECONSTRUCT + group(NDARRAY, group(whole(0)), raw(b"O")) + b"R."),
        ("_reconstruct of false", RECONSTRUCT + group(NDARRAY, group(FALSE), raw(b"b")) + b"R."),
        ("_reconstruct without arguments", RECONSTRUCT + b")R."),
        ("_reconstruct of a list", RECONSTRUCT + b"]R."),
        ("scalar too short", SCALAR + group(full_dtype(), raw(bytes(3))) + b"R."),
        ("scalar too long", SCALAR + group(full_dtype(), raw(bytes(5))) + b"R."),
        ("scalar of no dtype", SCALAR + group(text("i4"), raw(bytes(4))) + b"R."),
        ("scalar of an object", SCALAR + group(dtype("O"), raw(bytes(8))) + b"R."),
        ("scalar without data", SCALAR + group(full_dtype()) + b"R."),
        ("scalar of text", SCALAR + group(full_dtype(), text("\u00e9\u00e9")) + b"R."),
        ("a call of a number", whole(1) + b")R."),
        ("a call of a list", b"])R."),
        ("a call of an array", array() + b")R."),
        ("a call of text", text("os") + b")R."),
        ("coo_matrix with arguments", COO + group(group(whole(1 << 40), whole(1 << 40))) + b"R."),
        ("coo_matrix by NEWOBJ with arguments", COO + group(whole(1)) + b"\x81."),
        ("coo_matrix without a state", COO + b")\x81."),
        ("coo_matrix state a list", COO + b")\x81]b."),
        ("coo_matrix state None", COO + b")\x81Nb."),
        ("coo_matrix state numbers", COO + b")\x81}K\x01K\x02sb."),
        ("coo_matrix state twice", COO + b")\x81}b}b."),
        ("coo_matrix key twice", COO + b")\x81" + mapping(*[text("row"), NONE] * 2) + b"b."),
        (
            "coo_matrix state of 100 names",
            COO + b")\x81" + mapping(*(part for n in range(100) for part in (text(f"k{n}"), NONE))) + b"b.",
        ),
        ("coo_matrix in itself", COO + b")\x81q\0" + mapping(text("row"), b"h\0") + b"b."),
        ("a state for a list", b"]}b."),
        ("a state for a dict", b"}}b."),
        ("a state for text", text("x") + b"}b."),
        ("a state for a class", COO + b"}b."),
        ("a state for ndarray", NDARRAY + mapping(text("shape"), whole(1)) + b"b."),
        ("a state for dtype", DTYPE + group(*PLAIN_STATE) + b"b."),
    ]
    shapes = {
        "negative": (-2,),
        "too long": (3,),
        "too short": (1,),
        "huge": (1 << 62,),
        "product beyond 64 bits": (1 << 32, 1 << 32),
        "wraps to 2": ((1 << 63) + 1, 2),
        "zero and huge": (0, 1 << 62),
        "three axes": (1, 1, 2),
        "33 axes": (1,) * 33,
        "1000 axes": (1,) * 1000,
        "minus times minus": (-1, -2),
        "none": (),
    }
    made += [(f"array shape {title}", array(shape=group(*map(whole, shape))) + b".") for title, shape in shapes.items()]
    others = {
        "list": b"](I2\ne",
        "number": whole(2),
        "None": NONE,
        "of booleans": group(TRUE),
        "of floats": group(b"F2.0\n"),
        "of text": group(text("2")),
        "nested": group(group(whole(2))),
        "of arrays": group(array()),
    }
    made += [(f"array shape {title}", array(shape=shape) + b".") for title, shape in others.items()]
    made += [
        ("array data a list", array(data=b"]") + b"."),
        ("array data None", array(data=NONE) + b"."),
        ("array data text", array(data=text("\u00e9" * 8)) + b"."),
        ("array data a number", array(data=whole(8)) + b"."),
        ("array data one byte short", array(data=raw(bytes(7))) + b"."),
        ("array data one byte long", array(data=raw(bytes(9))) + b"."),
        ("array dtype a class", array(kind=DTYPE) + b"."),
        ("array dtype text", array(kind=text("i4")) + b"."),
        ("array order 1", array(fortran=whole(1)) + b"."),
        ("array order None", array(fortran=NONE) + b"."),
        ("array version 0", array(version=whole(0)) + b"."),
        ("array version 2", array(version=whole(2)) + b"."),
        ("array version true", array(version=TRUE) + b"."),
        (
            "array of booleans that are none",
            array(kind=full_dtype((1, text("|")), code="b1"), data=raw(b"\1\2")) + b".",
        ),
        ("array state of four", EMPTY_ARRAY + group(group(whole(2)), full_dtype(), FALSE, raw(bytes(8))) + b"b."),
        ("array state a list", EMPTY_ARRAY + b"]b."),
    ]
    return made


def _numbers_and_text() -> list[tuple[str, bytes]]:
    def sized(code: str, layout: str, length: int) -> bytes:
        return OPCODES[code].code.encode("latin-1") + struct.pack(layout, length) + b"ab."

    made = [
        (f"{code} of {length}", sized(code, layout, length))
        for code, layout, lengths in (
            ("BINUNICODE", "<I", (4, 1 << 31, (1 << 32) - 1)),
            ("BINUNICODE8", "<Q", (4, 1 << 40, 1 << 63, (1 << 64) - 1)),
            ("SHORT_BINUNICODE", "<B", (4, 255)),
            ("BINBYTES", "<I", (4, 1 << 31, (1 << 32) - 1)),
            ("BINBYTES8", "<Q", (4, 1 << 40, 1 << 63, (1 << 64) - 1)),
            ("SHORT_BINBYTES", "<B", (4, 255)),
            ("BINSTRING", "<i", (4, -1, -(1 << 31), (1 << 31) - 1)),
            ("SHORT_BINSTRING", "<B", (4, 255)),
            ("LONG1", "<B", (4, 255)),
            ("LONG4", "<i", (4, -1, -(1 << 31), (1 << 31) - 1)),
            ("FRAME", "<Q", (4, 1 << 40, (1 << 64) - 1)),
        )
        for length in lengths
    ]
    made += [
        ("a number of 200 bytes", b"\x8a\xc8" + b"\x7f" * 200 + b"."),
        ("a number of 9 bytes, 2^64", b"\x8a\x09" + bytes(8) + b"\1."),
        ("a number of 9 bytes, negative", b"\x8a\x09" + bytes(8) + b"\xff."),
        ("a number of 10^30", whole(10**30) + b"."),
        ("a number of 5000 digits", b"I1" + b"0" * 5000 + b"\n."),
        ("a long of 5000 digits", b"L" + b"9" * 5000 + b"L\n."),
        ("a hexadecimal number", b"I0x10\n."),
        ("a number with underscores", b"I1_0\n."),
        ("a number with spaces", b"I 1 \n."),
        ("no number", b"I\n."),
        ("a number that is text", b"Labc\n."),
        ("a number without an end", b"I12"),
        ("no float", b"Fx\n."),
        ("a float of 100 digits", b"F" + b"1" * 100 + b"\n."),
        ("a float's sign", b"F-\n."),
        ("text not UTF-8", b"X\2\0\0\0\xff\xfe."),
        ("text cut within a character", b"X\1\0\0\0\xc3."),
        ("half a surrogate pair", text("\ud800") + b"."),
        ("half a surrogate pair, escaped", b"V\\ud800\n."),
        ("an escape that is cut", b"V\\u12\n."),
        ("an escape beyond Unicode", b"V\\U00110000\n."),
        ("text without an end", b"Vabc"),
        ("a string not quoted", b"Sabc\n."),
        ("a string half quoted", b"S'abc\n."),
        ("a string of one quote", b"S'\n."),
        ("a string with another escape", b"S'\\N{BELL}'\n."),
        ("a string with a cut escape", b"S'\\x4'\n."),
        ("a string that ends in an escape", b"S'\\'\n."),
        ("a string not ASCII", b"S'\\xe9'\n."),
        ("a short string not ASCII", b"U\1\xe9."),
        ("a string not ASCII, protocol 1", b"T\1\0\0\0\xe9."),
    ]
    return made


def _memo_and_structure() -> list[tuple[str, bytes]]:
    deep = 1000
    made = [
        ("memo 255", b"Nq\xff."),
        ("memo 2^31", b"Nr" + struct.pack("<I", 1 << 31) + b"."),
        ("memo 2^32-1", b"Nr\xff\xff\xff\xff."),
        ("memo 10^18", b"Np1000000000000000000\n."),
        ("memo -1", b"Np-1\n."),
        ("memo x", b"Npx\n."),
        ("memo of 100 digits", b"Np" + b"1" * 100 + b"\n."),
        ("memo twice", b"Nq\0q\0."),
        ("memo with a gap", b"Nq\0q\2."),
        ("memo of nothing", b"\x94."),
        ("memo of a mark", b"N(\x94."),
        ("memo not kept", b"h\0."),
        ("memo -1 used", b"Nq\0g-1\n."),
        ("memo 2^32-1 used", b"Nq\0j\xff\xff\xff\xff."),
        ("memo 0 used of 1", b"Nq\1h\0\x86."),
        ("memo 2 used of 1", b"Nq\1h\2\x86."),
        ("a list in itself", b"]q\0h\0a."),
        ("a list in itself twice", b"]q\0(h\0h\0e."),
        ("a dict in itself", b"}q\0K\1h\0s."),
        ("two lists in each other", b"]q\0]q\1h\0aa."),
        ("a tuple in itself", b"]q\0h\0\x85q\1a."),
        ("lists 1000 deep", b"]" * deep + b"a" * (deep - 1) + b"."),
        ("tuples 1000 deep", b")" + b"\x85" * deep + b"."),
        ("dicts 1000 deep", b"}K\1" * (deep - 1) + b"}" + b"s" * (deep - 1) + b"."),
        ("marks 1000 deep", b"(" * deep + b"t" * deep + b"."),
        (
            "lists made 1000 deep from below",
            b"](]" + b"".join(b"\x94]" + b"j" + struct.pack("<I", n) + b"a" for n in range(deep)) + b"e.",
        ),
        ("nine lists", b"]" * 10 + b"a" * 9 + b"."),
        (
            "a billion values",
            b"](]q\0" + b"".join(b"](" + b"h%c" % n * 30 + b"eq%c" % (n + 1) for n in range(6)) + b"e.",
        ),
        (
            "a list of 30 shared levels",
            b"](]q\0" + b"".join(b"](" + b"h%c" % n * 2 + b"eq%c" % (n + 1) for n in range(30)) + b"e.",
        ),
        ("a deep tuple as a key", b"})" + b"\x85" * deep + b"Ns."),
        ("a key without a value", b"}(Nu."),
        ("three for two pairs", b"}(K\1K\2K\3u."),
        ("DICT of three", b"(K\1K\2K\3d."),
        ("two values", b"NN."),
        ("an open mark", b"(N."),
        ("an open mark below", b"N(."),
        ("no value", b"\x80\4."),
        ("bytes after the end", b"N.N."),
        ("no end", b"N"),
        ("protocol 6", b"\x80\6N."),
        ("protocol 255", b"\x80\xffN."),
        ("protocol twice", b"\x80\4\x80\4N."),
        ("protocol late", b"N\x80\4."),
        ("a list added to text", text("x") + b"Na."),
        ("a list added to a dict", b"}Na."),
        ("lists added to a tuple", b")(NNe."),
        ("a pair set on a list", b"]K\1Ns."),
        ("a pair set on an array", array() + whole(0) + whole(7) + b"s."),
        ("pairs set on an array", array() + b"(" + whole(0) + whole(7) + b"u."),
        ("a value appended to an array", array() + b"Na."),
        ("a value from before the mark", b"]N(a."),
        ("a call across a mark", COO + b"()R."),
        ("a call past a mark", COO + b")(R."),
    ]
    keys = {
        "list": b"]",
        "dict": b"}",
        "tuple": b")",
        "None": NONE,
        "true": TRUE,
        "float": b"F1.5\n",
        "NaN": b"Fnan\n",
        "bytes": raw(b"k"),
        "array": array(),
        "dtype": full_dtype(),
        "class": COO,
        "coo_matrix": COO + b")\x81",
        "float scalar": SCALAR + group(full_dtype(code="f8"), raw(bytes(8))) + b"R",
    }
    made += [(f"a key that is a {title}", b"}" + key + NONE + b"s.") for title, key in keys.items()]
    made += [
        (f"keys one of which is a {title}", mapping(whole(1), NONE, key, NONE) + b".") for title, key in keys.items()
    ]
    return made


def large_pickles(n: int) -> list[tuple[str, bytes]]:
    """Pickles of about `n` bytes that cost most per byte, or recurse, where a reader is careless."""
    arguments = group(NDARRAY, group(whole(0)), raw(b"b"))
    memo_used = b"".join(b"j" + struct.pack("<I", index) for index in range(n // 5))
    return [
        ("tuples in a tuple", b")" + b"\x85" * n + b"."),
        ("a tuple in a tuple as a key", b"})" + b"\x85" * n + b"Ns."),
        ("lists in a list", b"]" * (n // 2) + b"a" * (n // 2 - 1) + b"."),
        ("dicts in a dict", b"}K\1" * (n // 4) + b"}" + b"s" * (n // 4) + b"."),
        ("empty dicts", b"](" + b"}" * n + b"e."),
        ("empty lists, kept", b"](" + b"]\x94" * (n // 2) + b"e."),
        ("short lists", b"](" + b"]Na" * (n // 3) + b"e."),
        ("short dicts", b"](" + b"}K\1Ns" * (n // 5) + b"e."),
        ("marks", b"(" * n + b"."),
        ("None", b"](" + b"N" * n + b"e."),
        ("kept over and over", b"N" + b"\x94" * n + b"."),
        ("kept values used", b"](" + b"N\x94" * (n // 5) + memo_used + b"e."),
        ("a list used over and over", b"](" + b"]\x94(" + b"N" * (n // 2) + b"e" + b"h\0" * (n // 4) + b"e."),
        (
            "text used over and over",
            mapping(whole(0), text("x" * (n // 2)) + b"\x94", *(b"K\1h\0" for _ in range(n // 8))) + b".",
        ),
        (
            "small arrays",
            b"]("
            + RECONSTRUCT
            + b"\x94"
            + arguments
            + b"\x94"
            + TWO_ZEROS
            + b"\x94"
            + b"h\0h\1Rh\2b" * (n // 8)
            + b"e.",
        ),
        (
            "big-endian arrays of the same bytes",
            b"]("
            + raw(bytes(8 * (n // 16)))
            + b"\x94"
            + b"".join(
                array(shape=group(whole(n // 16)), kind=full_dtype((1, text(">")), code="i8"), data=b"h\0")
                for _ in range(n // 500)
            )
            + b"e.",
        ),
        ("wide text", text("\U0001f600" + "x" * n) + b"."),
        ("a line without an end", b"V" + b"x" * n),
        ("a string of escapes", b"S'" + b"\\n" * (n // 2) + b"'\n."),
        ("numbers", b"](" + b"J\1\2\3\4" * (n // 5) + b"e."),
        ("calls", b"](" + (COO + b")\x81") * (n // 40) + b"e."),
    ]
