"""The opcodes of Python's pickle, protocols 0 to 5, that the published files need.

Left out, and refused by name: sets, bytearrays, out-of-band buffers, extension codes, persistent ids, the opcodes that
only self-referential values need, and numbers beyond 64 bits. Python's pickletools documents the opcodes. `HANDLERS`
has a function for each byte; pickle_reader.py runs them.
"""

import codecs
import pickletools
import re
import struct
from collections.abc import Callable

from .pickle_stack import PickleStack
from .pickle_values import PickledDict, UnbuiltArray, build, call, damaged, new, shown, unexpected

# Names of classes and numbers as text are short; longer ones are refused before searching for their end.
MAX_NAME_BYTES = 256
MAX_NUMBER_BYTES = 64
# Python 2's quoted text, whose escapes cost about 45 bytes each to check.
MAX_QUOTED_BYTES = 1 << 20
_INT_RANGE = range(-(1 << 63), 1 << 64)
# The escapes that Python 2 wrote in text of protocol 0.
_ESCAPE = re.compile(rb"""\\(?:[\\'"nrt]|x[0-9a-f]{2})""")
_Handler = Callable[[PickleStack], None]
_OPCODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
STOP = _OPCODES["STOP"]
_U1, _U2, _U4, _U8, _I4, _F8 = (struct.Struct(layout) for layout in ("<B", "<H", "<I", "<Q", "<i", ">d"))


def _refuse(reader: PickleStack) -> None:
    code, where = reader.data[reader.position - 1], reader.position - 1
    name = next((name for name, known in _OPCODES.items() if known == code), None)
    if name is None:
        raise damaged(f"byte {where}, 0x{code:02x}, is no opcode")
    raise unexpected(f"the opcode {name} at byte {where}")


HANDLERS: list[_Handler] = [_refuse] * 256


def _on(*names: str) -> Callable[[_Handler], _Handler]:
    def register(handler: _Handler) -> _Handler:
        for name in names:
            HANDLERS[_OPCODES[name]] = handler
        return handler

    return register


def _constant(name: str, make: Callable[[], object]) -> None:
    _on(name)(lambda reader: reader.stack.append(make()))


_constant("NONE", lambda: None)
_constant("NEWTRUE", lambda: True)
_constant("NEWFALSE", lambda: False)
_constant("EMPTY_TUPLE", tuple)
_constant("EMPTY_LIST", list)
_constant("EMPTY_DICT", PickledDict)


@_on("PROTO")
def _proto(reader: PickleStack) -> None:
    at_start = reader.position == 1
    protocol = reader.number(_U1)
    if not at_start or protocol > 5:
        raise damaged(f"protocol {protocol}: expected 0 to 5, given once, at the start")


@_on("FRAME")
def _frame(reader: PickleStack) -> None:
    n_bytes = reader.number(_U8)
    if n_bytes > len(reader.data) - reader.position:
        raise damaged(
            f"byte {reader.position} begins a frame of {n_bytes} bytes, and {len(reader.data) - reader.position} are "
            "left"
        )


# -- opcodes: numbers -------------------------------------------------------------


@_on("BININT1")
def _binint1(reader: PickleStack) -> None:
    reader.stack.append(reader.number(_U1))


@_on("BININT2")
def _binint2(reader: PickleStack) -> None:
    reader.stack.append(reader.number(_U2))


@_on("BININT")
def _binint(reader: PickleStack) -> None:
    reader.stack.append(reader.number(_I4))


@_on("LONG1")
def _long1(reader: PickleStack) -> None:
    _long(reader, reader.number(_U1))


@_on("LONG4")
def _long4(reader: PickleStack) -> None:
    _long(reader, reader.number(_I4))


def _long(reader: PickleStack, n_bytes: int) -> None:
    raw = reader.take(n_bytes)
    value = int.from_bytes(raw, "little", signed=True) if n_bytes <= 9 else _INT_RANGE.stop
    _push_int(reader, value, f"of {n_bytes} bytes")


@_on("INT")
def _int(reader: PickleStack) -> None:
    text = reader.line(MAX_NUMBER_BYTES)
    if text in (b"00", b"01"):  # how protocol 0 writes False and True
        reader.stack.append(text == b"01")
    else:
        _decimal(reader, text)


@_on("LONG")
def _long_text(reader: PickleStack) -> None:
    _decimal(reader, reader.line(MAX_NUMBER_BYTES).removesuffix(b"L"))


def _decimal(reader: PickleStack, text: bytes) -> None:
    _push_int(reader, _parse_decimal(text), shown(text.decode("latin-1")))


def _parse_decimal(text: bytes) -> int:
    if not re.fullmatch(rb"-?[0-9]+", text):
        raise damaged(f"{shown(text.decode('latin-1'))} is no whole number")
    return int(text)


def _push_int(reader: PickleStack, value: int, found: str) -> None:
    if value not in _INT_RANGE:
        raise unexpected(f"a whole number {found}, beyond 64 bits")
    reader.stack.append(value)


@_on("BINFLOAT")
def _binfloat(reader: PickleStack) -> None:
    reader.stack.append(reader.number(_F8))


@_on("FLOAT")
def _float(reader: PickleStack) -> None:
    text = reader.line(MAX_NUMBER_BYTES)
    try:
        reader.stack.append(float(text))
    except ValueError:
        raise damaged(f"{shown(text.decode('latin-1'))} is no number") from None


# -- opcodes: text and bytes ------------------------------------------------------


def _sized(name: str, layout: struct.Struct, push: Callable[[PickleStack, bytes], None]) -> None:
    _on(name)(lambda reader: push(reader, reader.take(reader.number(layout))))


def _push_text(reader: PickleStack, raw: bytes) -> None:
    try:
        reader.stack.append(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise unexpected(f"text that is not UTF-8 (before byte {reader.position})") from None


def _push_ascii(reader: PickleStack, raw: bytes) -> None:
    """Push Python 2's str as text. Must be ASCII, since the encoding of other bytes is unknown."""
    if not raw.isascii():
        raise unexpected(f"Python 2's text with bytes that are not ASCII (before byte {reader.position})")
    reader.stack.append(raw.decode("ascii"))


def _push_bytes(reader: PickleStack, raw: bytes) -> None:
    reader.stack.append(raw)


_sized("SHORT_BINUNICODE", _U1, _push_text)
_sized("BINUNICODE", _U4, _push_text)
_sized("BINUNICODE8", _U8, _push_text)
_sized("SHORT_BINBYTES", _U1, _push_bytes)
_sized("BINBYTES", _U4, _push_bytes)
_sized("BINBYTES8", _U8, _push_bytes)
_sized("SHORT_BINSTRING", _U1, _push_ascii)
_sized("BINSTRING", _I4, _push_ascii)


@_on("UNICODE")
def _unicode(reader: PickleStack) -> None:
    raw = reader.line(len(reader.data))
    try:
        text = raw.decode("raw-unicode-escape")
        text.encode("utf-8")  # raises for an unpaired surrogate, which cannot be encoded later
    except UnicodeError:
        raise unexpected(f"text that is no Unicode (before byte {reader.position})") from None
    reader.stack.append(text)


@_on("STRING")
def _string(reader: PickleStack) -> None:
    raw = reader.line(MAX_QUOTED_BYTES).strip()
    if len(raw) < 2 or raw[:1] not in (b"'", b'"') or raw[-1:] != raw[:1] or b"\\" in _ESCAPE.sub(b"", raw[1:-1]):
        raise damaged(f"text before byte {reader.position} is not quoted as Python 2 quotes it")
    _push_ascii(reader, codecs.escape_decode(raw[1:-1])[0])


# -- opcodes: containers, memo, names ------------------------------------------------


@_on("MARK")
def _mark(reader: PickleStack) -> None:
    reader.marks.append(len(reader.stack))


@_on("TUPLE")
def _tuple(reader: PickleStack) -> None:
    reader.stack.append(tuple(reader.pop_mark()))


def _fixed_tuple(name: str, n: int) -> None:
    _on(name)(lambda reader: reader.stack.append(tuple(reader.pop(n))))


_fixed_tuple("TUPLE1", 1)
_fixed_tuple("TUPLE2", 2)
_fixed_tuple("TUPLE3", 3)


@_on("LIST")
def _list(reader: PickleStack) -> None:
    reader.stack.append(reader.pop_mark())


@_on("DICT")
def _dict(reader: PickleStack) -> None:
    made = PickledDict()
    made.add(reader.pop_mark())
    reader.stack.append(made)


@_on("APPEND")
def _append(reader: PickleStack) -> None:
    value = reader.pop(1)
    reader.top(list).append(value[0])


@_on("APPENDS")
def _appends(reader: PickleStack) -> None:
    values = reader.pop_mark()
    reader.top(list).extend(values)


@_on("SETITEM")
def _setitem(reader: PickleStack) -> None:
    pair = reader.pop(2)
    reader.top(PickledDict).add(pair)


@_on("SETITEMS")
def _setitems(reader: PickleStack) -> None:
    pairs = reader.pop_mark()
    reader.top(PickledDict).add(pairs)


@_on("MEMOIZE")
def _memoize(reader: PickleStack) -> None:
    reader.put(len(reader.memo))


@_on("BINPUT")
def _binput(reader: PickleStack) -> None:
    reader.put(reader.number(_U1))


@_on("LONG_BINPUT")
def _long_binput(reader: PickleStack) -> None:
    reader.put(reader.number(_U4))


@_on("PUT")
def _put(reader: PickleStack) -> None:
    reader.put(_parse_decimal(reader.line(MAX_NUMBER_BYTES)))


@_on("BINGET")
def _binget(reader: PickleStack) -> None:
    reader.get(reader.number(_U1))


@_on("LONG_BINGET")
def _long_binget(reader: PickleStack) -> None:
    reader.get(reader.number(_U4))


@_on("GET")
def _get(reader: PickleStack) -> None:
    reader.get(_parse_decimal(reader.line(MAX_NUMBER_BYTES)))


@_on("GLOBAL")
def _global(reader: PickleStack) -> None:
    reader.name(*(reader.line(MAX_NAME_BYTES).decode("latin-1") for _ in range(2)))


@_on("STACK_GLOBAL")
def _stack_global(reader: PickleStack) -> None:
    module, name = reader.pop(2)
    if type(module) is not str or type(name) is not str:
        raise damaged("a class is named by something other than text")
    reader.name(module, name)


@_on("REDUCE")
def _reduce(reader: PickleStack) -> None:
    name, args = reader.pop(2)
    reader.stack.append(call(name, args))


@_on("NEWOBJ")
def _newobj(reader: PickleStack) -> None:
    name, args = reader.pop(2)
    reader.stack.append(new(name, args))


@_on("BUILD")
def _build(reader: PickleStack) -> None:
    target, state = reader.pop(2)
    built = build(target, state, reader.array_bytes_left)
    reader.stack.append(built)
    if type(target) is UnbuiltArray:  # memoized before it became an array
        reader.array_bytes_left -= built.nbytes
        for index in target.memo:
            reader.memo[index] = built
        target.memo = None
