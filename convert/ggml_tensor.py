"""Reads a `ggml_tensor` that llama.cpp hands to a callback: its name, shape, operation, sources and values.

The layout of the struct is not part of llama.cpp's interface, so it is proved before it is trusted: ggml makes a
tensor whose every field is known, and the fields are read back through the layout below. Another llama.cpp whose
layout differs is refused.

Format followed: `struct ggml_tensor` of ggml/include/ggml.h.
"""

import ctypes
import functools
from typing import Any

import numpy as np

from reclm_lite.errors import ModelError
from reclm_lite.runtime import llama_lib

F32 = 0  # enum ggml_type
_MAX_DIMS, _MAX_SRC, _MAX_OP_PARAMS, _MAX_NAME = 4, 10, 64, 64
_PROOF_BYTES = 1 << 16


class GgmlTensor(ctypes.Structure):
    """One tensor of a graph. `ne` is its shape, fastest-varying dimension first; `nb` its strides in bytes."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * _MAX_DIMS),
        ("nb", ctypes.c_size_t * _MAX_DIMS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * (_MAX_OP_PARAMS // 4)),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _MAX_SRC),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _MAX_NAME),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """The functions of ggml that this takes, and the number of the operation MUL_MAT; made by `load_ggml`."""

    def __init__(self, library: ctypes.CDLL):
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        signatures = {
            "ggml_init": (pointer, [_InitParams]),
            "ggml_free": (None, [pointer]),
            "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
            "ggml_set_name": (pointer, [pointer, ctypes.c_char_p]),
            "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
            "ggml_get_data": (pointer, [pointer]),
            "ggml_nbytes": (size, [pointer]),
            "ggml_backend_tensor_get": (None, [pointer, pointer, size, size]),
        }
        for name, (restype, argtypes) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = restype, argtypes
            setattr(self, name.removeprefix("ggml_"), function)
        self.mul_mat_op = -1

    def tensor(self, address: int) -> GgmlTensor:
        """The tensor at `address`, which must outlive the result."""
        return GgmlTensor.from_address(address)

    def values(self, address: int) -> np.ndarray:
        """A copy of an F32 tensor's values, from whatever device holds them: float32 (ne3, ne2, ne1, ne0)."""
        tensor = self.tensor(address)
        raw = np.empty(self.nbytes(address), dtype=np.uint8)
        self.backend_tensor_get(address, raw.ctypes.data, 0, raw.size)
        return np.ndarray(tuple(tensor.ne)[::-1], dtype=np.float32, buffer=raw, strides=tuple(tensor.nb)[::-1])

    def prove_layout(self) -> str | None:
        """What the layout gets wrong about a tensor that ggml made, or None. Learns the number of MUL_MAT."""
        context = self.init(_InitParams(_PROOF_BYTES, None, False))
        if not context:
            return "ggml made no context"
        try:
            weight = self.new_tensor_2d(context, F32, 7, 5)
            activations = self.new_tensor_2d(context, F32, 7, 3)
            self.set_name(weight, b"blk.0.proof.weight")
            product = self.mul_mat(context, weight, activations)
            made, given = self.tensor(product), self.tensor(activations)
            checks = {
                "name": self.tensor(weight).name == b"blk.0.proof.weight",
                "type": (made.type, given.type) == (F32, F32),
                "ne": (tuple(given.ne), tuple(made.ne)) == ((7, 3, 1, 1), (5, 3, 1, 1)),
                "nb": tuple(given.nb) == (4, 28, 84, 84),
                "src": (made.src[0], made.src[1], made.src[2]) == (weight, activations, None),
                "data": given.data is not None and given.data == self.get_data(activations),
                "op": given.op == 0 and 0 < made.op < 256,
                "view_src": made.view_src is None and made.view_offs == 0,
            }
            self.mul_mat_op = made.op
        finally:
            self.free(context)
        wrong = [name for name, holds in checks.items() if not holds]
        return f"other values in the fields {', '.join(wrong)}" if wrong else None


@functools.cache
def load_ggml() -> Ggml:
    """ggml as llama-cpp-python brings it, its tensors' layout proved; ModelError where it is another one."""
    lib: Any = llama_lib()
    try:
        ggml = Ggml(lib._lib)  # looking a function up in libllama also looks in libggml, which it needs
    except AttributeError as error:
        raise ModelError(
            f"expected a llama-cpp-python whose ggml functions can be called, found: {error}; "
            "an importance matrix needs them: export with --imatrix none, or install llama-cpp-python 0.3.36"
        ) from error
    wrong = ggml.prove_layout()
    if wrong is not None:
        raise ModelError(
            f"expected ggml's tensors laid out as in llama-cpp-python 0.3.36, found {wrong}; an importance matrix "
            "needs them: export with --imatrix none, or install llama-cpp-python 0.3.36"
        )
    return ggml
