# Set-up and doors for people; each is one line over the tools below it.
PYTHON ?= python3
CORES ?= all
BIN := .venv/bin
READY := .venv/ready

.PHONY: setup reproduce study test lint lab lock

setup: $(READY)  ## the environment in .venv: source .venv/bin/activate

reproduce: $(READY)  ## videos -> all runs of Table 2 -> tables and figures; resumes where it stopped
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete --nolock $(if $(CONFIG),--config $(CONFIG)) $(if $(GPUS),--resources gpu=$(GPUS)) $(ARGS)

study: $(READY)  ## the same over five seeds, with controls, trials and sweeps
	$(MAKE) reproduce CONFIG="seeds=5 other_seeds=5 trial_seeds=2"

test: lint  ## lint, then all tests; one thread, since tiny tensors wait for each other on more
	OMP_NUM_THREADS=1 $(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

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
