# Two commands from a fresh clone: `make quickstart` and `make test`.
# PYTHON is the interpreter that makes .venv; every version is pinned in constraints.txt.

PYTHON  ?= python3
VENV    := .venv
FLOORS  := .venv-floors
SOURCES := $(shell git ls-files reclm_lite kernels convert CMakeLists.txt pyproject.toml constraints.txt 2>/dev/null)

# llama.cpp without its tools, its vision part and TLS: 4 to 5 minutes on two cores; pip's cache keeps the wheel.
LLAMA_FLAGS := -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_OPENSSL=OFF
INSTALL := CMAKE_ARGS="$(LLAMA_FLAGS)" $(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt

.PHONY: quickstart lint test test-all test-floors test-gpu sanitize fuzz fuzz-pickles install clean

quickstart: install
	$(VENV)/bin/reclm quickstart

install: $(VENV)/package.stamp

# Style, layout and type hints of the source; `ruff check --fix` and `ruff format` repair most of what ruff finds.
# mypy checks links in build/types, laid out as the package is installed: kernels/ and convert/ are part of reclm_lite.
lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf build/types && mkdir -p build/types/reclm_lite
	cd build/types/reclm_lite && ln -s ../../../reclm_lite/* ../../../kernels ../../../convert .
	$(VENV)/bin/mypy

# The suite runs against the installed package: `--import-mode=importlib` in pyproject.toml keeps this folder off sys.path.
# One worker for each core; a file's tests stay in one worker, since they share fixtures. In the order of their names: xdist's
# own order, by the number of tests, puts the slowest files last. The 20 slowest tests are printed at the end.
TEST_WORKERS ?= auto
PARALLEL := -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations=20
test: $(VENV)/dev.stamp
	$(VENV)/bin/pytest tests -m "not slow" $(PARALLEL) $(PYTEST_ARGS)

test-all: $(VENV)/dev.stamp
	$(VENV)/bin/pytest tests $(PARALLEL) $(PYTEST_ARGS)

# The suite with the lowest allowed version of every direct dependency (constraints-floors.txt), in a venv of its own.
test-floors: $(FLOORS)/floors.stamp
	$(FLOORS)/bin/pytest tests -m "not slow" $(PARALLEL) $(PYTEST_ARGS)

# The pinned torch is for CPUs: install one for your GPU into .venv first.
test-gpu: $(VENV)/dev.stamp
	RECLM_TEST_GPU=1 $(VENV)/bin/pytest tests/tune/test_tune_gpu.py $(PYTEST_ARGS)

# The kernels' own tests once more, with every read and write of theirs checked. Python's memory is not ours: leaks are not looked for.
SANITIZED := build-sanitize/libreclm_kernels.so
sanitize: $(VENV)/dev.stamp
	cmake -S . -B build-sanitize -DRECLM_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo
	cmake --build build-sanitize
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc RECLM_KERNELS=$(abspath $(SANITIZED)) \
	  $(VENV)/bin/pytest tests/kernels/test_kernels_isa.py tests/kernels/test_kernels_bad_input.py tests/kernels/test_kernels_spmm.py \
	    tests/kernels/test_kernels_topk*.py $(PARALLEL) $(PYTEST_ARGS)

# Hostile inputs for every parser, guided by coverage: FUZZ_SECONDS for each target, resumable (build/fuzz). Not part of the suite.
FUZZ_SECONDS ?= 300
fuzz: $(VENV)/fuzz.stamp
	$(VENV)/bin/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS)

# Ten million mutated pickles under AddressSanitizer: half an hour to an hour, resumable (build/fuzz/pickles). Not part of the suite.
FUZZ_PICKLES ?= 10000000
fuzz-pickles: $(VENV)/dev.stamp
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	  $(VENV)/bin/python tests/fuzz/run.py --mutated $(FUZZ_PICKLES) pickles

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Run: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/package.stamp: $(VENV)/bin/pip $(SOURCES)
	$(INSTALL) .
	touch $@

$(VENV)/dev.stamp: $(VENV)/package.stamp
	$(INSTALL) ".[dev]"
	touch $@

$(VENV)/fuzz.stamp: $(VENV)/dev.stamp
	$(INSTALL) ".[dev,fuzz]"
	touch $@

$(FLOORS)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "constraints-floors.txt is for Python 3.11; found $$($(PYTHON) --version). Run: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(FLOORS)

# From the environment, for these hold in the isolated builds too: the second is what newer versions of pip read there.
$(FLOORS)/floors.stamp: $(FLOORS)/bin/pip $(SOURCES) constraints-floors.txt
	PIP_CONSTRAINT=constraints-floors.txt PIP_BUILD_CONSTRAINT=constraints-floors.txt CMAKE_ARGS="$(LLAMA_FLAGS)" \
	  $(FLOORS)/bin/pip install --disable-pip-version-check ".[dev,bench]"
	touch $@

clean:
	rm -rf $(VENV) $(FLOORS) build build-sanitize dist quickstart-workspace
