# Set-up and doors for people; each is one line over the tools below it.
PYTHON ?= python3
CORES ?= all
GPUS ?= $(words $(wildcard /dev/nvidia[0-9] /dev/nvidia[0-9][0-9]))
BIN := .venv/bin
READY := .venv/ready
# What is made here lies beside the reference, outside git; RESULTS=results renews the reference.
RESULTS ?= reproduced
MEASURED := $(RESULTS)/benchmarks
# Tests run in two processes, a file in one of them, with one thread each: tiny tensors wait for each
# other on more.
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup reproduce study grid bench gpu readme test quick lint book lab lock

setup: $(READY)  ## the environment in .venv: source .venv/bin/activate

reproduce: $(READY)  ## videos -> all runs of Table 2 -> tables and figures, beside the reference; resumes where it stopped
	$(BIN)/snakemake --cores $(CORES) --quiet host --rerun-incomplete --nolock --config results=$(RESULTS) $(CONFIG) $(if $(filter-out 0,$(GPUS)),--resources gpu=$(GPUS)) $(ARGS)

study: $(READY)  ## the same over five seeds, with controls, trials and sweeps
	$(MAKE) reproduce CONFIG="seeds=5 other_seeds=5 trial_seeds=2"

grid: $(READY)  ## every row over three seeds on GRID, with its controls: data/README.md says how to get the index
	$(MAKE) reproduce CONFIG="preset=grid seeds=3 other_seeds=3 trial_seeds=3"

bench: $(READY)  ## every benchmark, into reproduced/benchmarks: on a CPU, or with GPUS=1 on a GPU at the paper's sizes
ifneq ($(filter-out 0,$(GPUS)),)
	$(BIN)/python benchmarks/sampler.py --batches 1 16 64 --out $(MEASURED)/sampler-cuda
	$(BIN)/python benchmarks/models.py --batches 1 16 --compile --out $(MEASURED)/models-cuda
	$(BIN)/python benchmarks/training.py --preset mini-kinetics --recipe paper --out $(MEASURED)/training-cuda
	$(BIN)/s2d run notebooks/10_latency.ipynb $(RESULTS)/notebooks/10_latency.ipynb -p results ../$(RESULTS) -p batches '[1, 16]'
	$(BIN)/python benchmarks/tiles.py --out $(MEASURED)/tiles-cuda
	$(BIN)/python benchmarks/predicting.py --batches 1 16 --out $(MEASURED)/predicting-cuda
else
	$(BIN)/python benchmarks/sampler.py --out $(MEASURED)/sampler-cpu
	$(BIN)/python benchmarks/models.py --out $(MEASURED)/models-cpu
	$(BIN)/python benchmarks/training.py --out $(MEASURED)/training-cpu
	$(BIN)/python benchmarks/loading.py --out $(MEASURED)/loading-cpu
	$(BIN)/python benchmarks/predicting.py --batches 1 4 --out $(MEASURED)/predicting-cpu
	$(BIN)/s2d run notebooks/10_latency.ipynb $(RESULTS)/notebooks/10_latency.ipynb -p results ../$(RESULTS)
endif
	$(BIN)/python benchmarks/distances.py $(MEASURED)

gpu: $(READY)  ## all that this project claims of GPUs, tested and measured on this one: 9 minutes at most, one table
	$(BIN)/python benchmarks/gpu_check.py --out $(MEASURED)

readme: $(READY)  ## the tables of README.md and docs/results.md, written anew from results/
	$(BIN)/python -m s2dlib.report.readme

test: lint  ## lint, then all tests
	$(TESTS)

# Of the method, its training and the contract of notebooks. Left out: videos, indexes, results and
# figures, commands, benchmarks, export, networks of full size, and what is marked slow elsewhere.
QUICK := banded checkpoints config cuda detail layout losses model notebooks parallel readme sampler \
	run_config sharing synopsis synthetic train
quick: lint  ## lint, and the tests that together take a minute
	$(TESTS) -m "not slow" $(QUICK:%=tests/test_%.py)

lint: $(READY)  ## style, limits of length and complexity, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

book: $(READY)  ## notebooks, docs and docstrings as a site that any static host takes as it is: book/html
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --conf-dir docs --doctree-dir book/doctrees . book/html

lab: $(READY)  ## JupyterLab, with this environment's kernel; OPEN=08_inspector.ipynb opens that one
	PATH="$(CURDIR)/$(BIN):$$PATH" JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter lab notebooks/$(OPEN)

$(READY): pyproject.toml requirements.lock
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable .[dev]
	test ! -d .git || git config diff.ipynb.textconv "$(CURDIR)/$(BIN)/nbstripout -t"
	test ! -d .git || $(BIN)/pre-commit install > /dev/null
	touch $@

lock:  ## pin anew what pyproject.toml asks for, in an environment of its own
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --editable .[dev]
	.venv-lock/bin/python -m pip freeze --exclude-editable > requirements.lock
	rm -rf .venv-lock
