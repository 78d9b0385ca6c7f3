"""What no binding lets through to code that trusts its input: arrays of other kinds, numbers of other kinds, forked
processes."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.errors import InputError
from reclm_lite.kernels import _library, native

VECTORS = np.ones((4, 3), np.float32)


def small_csr() -> sp.csr_matrix:
    return sp.csr_matrix(np.eye(4, dtype=np.float32))


def ours(matrix: sp.csr_matrix) -> native.CSR:
    return native.make_csr(matrix.indptr, matrix.indices, matrix.data, matrix.shape)


def test_a_matrix_of_scipy_is_refused_where_ours_is_expected():
    with pytest.raises(InputError, match="matrix: expected what make_csr.* found csr_matrix"):
        native.spmm(small_csr(), VECTORS)
    with pytest.raises(InputError, match="seen: expected what make_csr.* found csr_matrix"):
        native.topk(VECTORS, VECTORS, 1, seen=small_csr())
    with pytest.raises(InputError, match="seen: expected what make_csr.* found csr_matrix"):
        native.select(np.ones((4, 4), np.float32), 1, seen=small_csr())


@pytest.mark.parametrize(
    "change",
    [{"data": np.ones(4)}, {"data": np.ones(3, np.float32)}, {"indptr": np.arange(4)}, {"indices": np.arange(4)}],
)
def test_a_matrix_with_an_array_replaced_by_another_kind_is_refused(change):
    with pytest.raises(InputError, match=f"{next(iter(change))}: expected"):
        dataclasses.replace(ours(small_csr()), **change)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 1), (4.0, 4), ("4", 4), None, (-4, 4), (4, 2**31)])
def test_a_shape_of_another_kind_is_refused(shape):
    matrix = small_csr()
    with pytest.raises(InputError, match="shape: expected"):
        native.make_csr(matrix.indptr, matrix.indices, matrix.data, shape)


@pytest.mark.parametrize("n_threads", [2.5, "2", 2**40])
def test_a_number_of_threads_of_another_kind_is_refused(n_threads):
    with pytest.raises(InputError, match="expected a number of threads of at most"):
        native.topk(VECTORS, VECTORS, 1, n_threads=n_threads)


@pytest.mark.parametrize("k", [2**31, 2**63, "5", None])
def test_a_k_beyond_memory_or_of_another_kind_is_refused(k):
    for rank, arrays in (
        (native.topk, (VECTORS, VECTORS)),
        (native.select, (VECTORS,)),
        (native.knn, (VECTORS, VECTORS)),
    ):
        with pytest.raises(InputError, match="k: expected an integer"):
            rank(*arrays, k)


@pytest.mark.parametrize("relu_dim", [1.0, "1", None])
def test_a_relu_dim_of_another_kind_is_refused(relu_dim):
    with pytest.raises(InputError, match="relu_dim: expected an integer"):
        native.topk(VECTORS, VECTORS, 1, relu_dim=relu_dim)


@pytest.mark.parametrize("weight", [np.nan, np.inf, "1", None])
def test_a_weight_that_is_no_finite_number_is_refused(weight):
    with pytest.raises(InputError, match="weight: expected a finite number"):
        native.spmm(ours(small_csr()), VECTORS, add_to=np.zeros((4, 3), np.float32), weight=weight)


def test_a_result_must_not_lie_on_the_matrix():
    data = np.ones(12, np.float32)
    matrix = native.make_csr(np.array([0, 4, 8, 12]), np.tile(np.arange(4), 3), data, (3, 4))
    with pytest.raises(InputError, match="shared with dense or the matrix"):
        native.spmm(matrix, np.ones((4, 4), np.float32), out=data.reshape(3, 4))


def test_arrays_off_their_alignment_or_read_only_are_answered_and_masked_ones_refused():
    astray = np.frombuffer(b"\0" + VECTORS.tobytes(), np.float32, offset=1).reshape(4, 3)
    assert not astray.flags.aligned and not astray.flags.writeable
    assert np.array_equal(native.topk(astray, astray, 2)[0], native.topk(VECTORS, VECTORS, 2)[0])
    assert np.array_equal(native.spmm(ours(small_csr()), astray), VECTORS)
    assert np.array_equal(native.from_bf16(native.to_bf16(astray)), VECTORS)
    with pytest.raises(InputError, match="users: expected a 2-dimensional array of float32, found MaskedArray"):
        native.topk(np.ma.masked_array(VECTORS, mask=VECTORS > 0), VECTORS, 1)


def test_arrays_in_the_byte_order_of_other_machines_are_refused_or_converted():
    with pytest.raises(InputError, match="found >f4"):
        native.topk(VECTORS.astype(">f4"), VECTORS, 1)
    matrix = small_csr()
    swapped = native.make_csr(matrix.indptr.astype(">i8"), matrix.indices.astype(">i4"), matrix.data, matrix.shape)
    assert np.array_equal(native.spmm(swapped, VECTORS), VECTORS)


def test_from_bfloat16_refuses_what_does_not_hold_it():
    for values in (VECTORS, [1]):
        with pytest.raises(InputError, match="values: expected an array of uint16"):
            native.from_bf16(values)


@pytest.mark.parametrize("value,expected", [("3", 3), ("2,1", 2), (" 4 ", 4)])
def test_the_threads_of_the_environment_are_understood(monkeypatch, value, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert native.default_threads() == _library.threads(None) == expected


@pytest.mark.parametrize("value", ["99999", "9" * 5000])
def test_more_threads_in_the_environment_than_the_machine_can_be_asked_for_are_refused(monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(InputError, match="expected OMP_NUM_THREADS of at most"):
        _library.threads(None)


@pytest.mark.parametrize("value", ["", "0", "-1", "many", "²"])
def test_threads_of_the_environment_that_make_no_sense_are_those_of_the_machine(monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert native.default_threads() == len(os.sched_getaffinity(0))


def test_a_library_that_is_none_of_ours_is_named():
    import ctypes.util

    libc = ctypes.util.find_library("c")
    if libc is None:
        pytest.skip("no libc found")
    code = "from reclm_lite.kernels import native; native.isa()"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "RECLM_KERNELS": libc}
    )
    assert run.returncode == 1 and "expected kernel version" in run.stderr and "found none" in run.stderr


FORK = """
import os, signal
import numpy as np
from reclm_lite.kernels import native
vectors = np.random.default_rng(0).standard_normal((900, 64), dtype=np.float32)
here = native.topk(vectors, vectors, 10, n_threads=2)
child = os.fork()
if child == 0:
    signal.alarm(30)  # a child that waits for threads that were not forked ends here
    there = native.topk(vectors, vectors, 10, n_threads=2)
    os._exit(0 if all(np.array_equal(a, b) for a, b in zip(here, there)) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_forked_after_threads_were_used_gets_its_answer_and_is_told_of_one_thread():
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True)
    assert run.returncode == 0, (run.returncode, run.stderr)
    assert "kernels use one thread here" in run.stderr
