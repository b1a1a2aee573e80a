# make train [ARGS="model=... data=..."]   a trained model; the first time installs what it needs into .venv
# make ladder [ARGS="data=..."]             every model beside its exact answer: a table and a figure in outputs/ladder
# make test [ARGS="tests/test_cli.py"]      the tests
# make coverage                             the same, and which lines of src/ they do not reach
# make lint                                 style and types
# make audit                                known vulnerabilities of the pinned versions (needs a network)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Of every Python process that a sweep or the tests start, the first one compiles for all.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train ladder test coverage lint audit

train: $(VENV)/.installed
	$(BIN)/lowerbound-train $(ARGS)

ladder: $(VENV)/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/lowerbound-ladder $(ARGS)

test: $(VENV)/.installed-dev
	$(PYTEST) $(ARGS)

coverage: $(VENV)/.installed-dev
	$(PYTEST) --cov lowerbound --cov-report term-missing:skip-covered $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

# torch by itself first: where a build for this kind of machine (say, a CPU build) is offered beside the general one, that is the one pip takes.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch==$(TORCH)
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e '.[dev,sweep,slurm]'
	touch $@
