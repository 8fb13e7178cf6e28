# Everything from a fresh machine: needs Python 3.11-3.13 and a C++17 compiler, nothing else.
# Each target makes .venv and builds the package when that is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Two are enough to test with; `pip install .` compiles for all that nvcc knows.
export MASKED_LSTM_CUDA_ARCHITECTURES ?= 80;90a

NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)
CXX_FILES := $(shell find csrc tests -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')
PY_DIRS := python tests bench examples docs setup.py

.PHONY: demo test lint format bench wheel docs clean

demo: $(VENV)/built $(VENV)/extra-demo  ## Trains a grapheme-to-phoneme model with Keras' LSTM and ours
	$(BIN)/python -m masked_lstm.demo $(ARGS)

test: lint $(VENV)/built $(VENV)/extra-test  ## Lint and all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/extra-test  ## ruff and clang-format, without changing anything
	$(BIN)/ruff check $(PY_DIRS)
	$(BIN)/ruff format --check $(PY_DIRS)
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/extra-test  ## Formats the sources in place
	$(BIN)/ruff check --fix $(PY_DIRS)
	$(BIN)/ruff format $(PY_DIRS)
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/built $(VENV)/extra-bench  ## Measures ours against every peer; tables and charts
	$(BIN)/python bench/run.py $(ARGS)
	$(BIN)/python bench/report.py

wheel: $(VENV)/tools  ## dist/*.whl, built against the TensorFlow in .venv
	$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w dist .
	@ls dist

docs: $(VENV)/built $(VENV)/extra-demo  ## Pictures of docs/ from their scripts
	$(BIN)/python docs/draw_slots.py

clean:
	rm -rf $(VENV) build dist python/*.egg-info python/masked_lstm/*.so

# ---- the virtual environment ---------------------------------------------------------------------

# What pyproject.toml says a build needs, TensorFlow included.
$(VENV)/tools: pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), \
	  "Python 3.11, 3.12 or 3.13 is needed (make PYTHON=...), got " + sys.version'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import tomllib; \
	  print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"]))' \
	  > $(VENV)/build-requires.txt
	$(BIN)/python -m pip install -q -r $(VENV)/build-requires.txt
	touch $@

$(VENV)/built: $(VENV)/tools $(NATIVE)
	$(BIN)/python -m pip install -q --no-build-isolation -e .
	touch $@

# The packages of one extra of pyproject.toml.
$(VENV)/extra-%: $(VENV)/tools pyproject.toml
	$(BIN)/python -c 'import tomllib; \
	  print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$*"]))' \
	  > $(VENV)/$*-requires.txt
	$(BIN)/python -m pip install -q -r $(VENV)/$*-requires.txt
	touch $@
