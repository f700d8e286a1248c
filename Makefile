# `make train` runs the main job, `make test` the tests; both build what they need on first use.
# `make gpu` needs a CUDA GPU, and works with the Python that is there (see bench/gpu/run.py).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_CLIENTS := $(VENV)/.installed-clients
INSTALLED_BENCH := $(VENV)/.installed-bench
TORCH := torch==2.13.0
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)

.PHONY: train test clients lint bench study versions gpu clean

train: $(INSTALLED)
	$(BIN)/python -m wpadamw train $(ARGS)

# Files go whole to one of two workers, as their tests share what is slow to make. One thread each,
# and where a test wants two, none spins for the core that the other worker has.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive WPADAMW_EXPECT_BACKENDS=cpp,torch \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The real trainers; `test` has those of them that are small.
clients: $(INSTALLED_CLIENTS)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive WPADAMW_CLIENTS=all \
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/clients $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED_BENCH)
	$(BIN)/python -m wpadamw bench --keep $(ARGS)
	$(BIN)/python -m wpadamw.bench.report

study: $(INSTALLED)
	$(BIN)/python -m wpadamw study --out $(or $(OUT),runs/study) $(ARGS)

versions: $(INSTALLED)
	$(BIN)/python -m wpadamw.bench.versions $(ARGS)
	$(BIN)/python -m wpadamw.bench.report

gpu: PYTHON = python3
gpu:
	$(PYTHON) -m bench.gpu $(or $(OUT),runs/gpu)

# torch is pinned here, for reproducible tests; the package itself takes any torch >= 2.4. Modules are
# compiled when they are imported: most never are.
$(INSTALLED): $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile $(TORCH)
	$(BIN)/pip install --quiet --no-compile --editable '.[test,lint]'
	touch $@

$(INSTALLED_BENCH): $(INSTALLED)
	$(BIN)/pip install --quiet --no-compile $(TORCH) --editable '.[bench]'
	touch $@

$(INSTALLED_CLIENTS): $(INSTALLED)
	$(BIN)/pip install --quiet --no-compile $(TORCH) --editable '.[clients]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info wpadamw/_C*.so
