# Every target installs what it needs into .venv first; Python 3.10 or newer and a network are all it takes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help install demo test lint types bench bench-verdicts bench-remedies samples clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml setup.py $(wildcard gradscope/summarise/*.[ch]) constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

install: $(STAMP) ## Make .venv and install gradscope and its tools into it

demo: $(STAMP) ## Train the bundled programs, print their verdicts, write their reports into reports/
	$(BIN)/gradscope demo --output reports

samples: $(STAMP) ## Make the sample pages in reports/ and the README's picture of one again
	$(BIN)/gradscope demo vanishing-sigmoid relu-he --output reports
	$(BIN)/python examples/lecture/vanishing_and_exploding.py
	$(BIN)/python tests/chromium.py
	$(BIN)/python -m docs.picture

test: $(STAMP) lint types ## Run everything that CI runs
	$(BIN)/python tests/chromium.py
	$(BIN)/python -m pytest -n 2

lint: $(STAMP) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## Check types
	$(BIN)/mypy

bench: $(STAMP) ## Measure what recording costs, beside what people use today
	$(BIN)/python benchmarks/overhead.py

bench-verdicts: $(STAMP) ## Judge over 300 programs beside six other tools: false alarms, causes, layers
	$(BIN)/python benchmarks/verdicts/run.py

bench-remedies: $(STAMP) ## Try what is prescribed on every ailing program, beside two other orders of repair
	$(BIN)/python benchmarks/remedies/run.py

clean: ## Remove .venv, caches and recorded runs
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info gradscope_runs lightning_logs
