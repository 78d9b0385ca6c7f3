"""The choice of instruction set, and the library that is found."""

import os
import subprocess
import sys

import pytest

from reclm_lite.errors import InputError
from reclm_lite.kernels import _library, native


@pytest.fixture(autouse=True)
def keep_isa():
    before = native.isa()
    yield
    native.use_isa(before)


def test_the_best_instruction_set_is_chosen_unless_the_environment_names_one():
    code = "from reclm_lite.kernels import native; print(native.isa())"
    for wanted in ("", *native.isas()):
        environment = {**os.environ, "RECLM_ISA": wanted}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert run.stdout.strip() == (wanted or native.isas()[-1])


def test_an_instruction_set_that_the_processor_lacks_is_an_error_and_never_a_fallback():
    code = "from reclm_lite.kernels import native; native.isa()"
    environment = {**os.environ, "RECLM_ISA": "avx1024"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode != 0 and "RECLM_ISA: expected one of base" in run.stderr and "avx1024" in run.stderr
    with pytest.raises(InputError, match="expected one of base"):
        native.use_isa("avx1024")
    with pytest.raises(native.KernelError, match="instruction set"):
        native.raise_for_status(_library.function("reclm_use_isa", _library.I32)(99), "use_isa")


def test_every_instruction_set_can_be_used_in_turn():
    for name in native.isas():
        native.use_isa(name)
        assert native.isa() == name


def test_the_code_outside_the_chosen_loops_runs_on_any_processor_of_the_architecture():
    """Functions without a suffix of a newer set must hold no AVX; needs objdump and an x86-64 build."""
    library = native.find_library()
    try:
        listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(library)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("objdump is not installed")
    if "x86-64" not in listing.stdout[:500]:
        pytest.skip("not an x86-64 library")
    suspicious, n_functions, function = set(), 0, ""
    for line in listing.stdout.splitlines():
        if line.endswith(">:"):
            function, n_functions = line.split("<")[1].removesuffix(">:"), n_functions + 1
        elif ("%ymm" in line or "%zmm" in line) and not any(tag in function for tag in ("_avx2", "_avx512")):
            suspicious.add(function)
    assert n_functions > 10
    assert not suspicious


def test_a_missing_library_says_how_to_build_it(monkeypatch, tmp_path):
    import reclm_lite.kernels

    monkeypatch.delenv("RECLM_KERNELS", raising=False)
    monkeypatch.setattr(reclm_lite.kernels, "__path__", [str(tmp_path)])
    with pytest.raises(native.KernelError, match="cmake --build build"):
        native.find_library()


def test_every_status_of_the_header_maps_to_an_exception():
    for status, (exception, _) in native.STATUS_ERRORS.items():
        with pytest.raises(exception, match="spmm: "):
            native.raise_for_status(status, "spmm")
    native.raise_for_status(0, "spmm")
    with pytest.raises(native.KernelError, match="unknown status 99"):
        native.raise_for_status(99, "spmm")


def test_the_sanitized_build_stops_at_a_read_past_the_end():
    """Run by `make sanitize`; elsewhere the library has no such checks."""
    if "sanitize" not in os.environ.get("RECLM_KERNELS", ""):
        pytest.skip("not the build of `make sanitize`")
    code = (
        "import numpy as np\n"
        "from reclm_lite.kernels._library import I64, POINTER, function, pointer\n"
        "indptr, indices = np.zeros(3, np.int64), np.zeros(0, np.int32)\n"
        "function('reclm_check_csr', I64, I64, I64, POINTER, POINTER)(3, 1, 0, pointer(indptr), pointer(indices))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode != 0 and "heap-buffer-overflow" in run.stderr
