# What a contributor types; scripts/ has what CI runs.
VENV ?= .venv
PY := $(VENV)/bin/python
FAST := tests/core tests/recipe tests/data tests/report tests/gradients tests/docs

.PHONY: setup lint test test-fast test-slow coverage schema docs bench release

setup:
	EXTRAS=test,check,docs bash -c 'source scripts/install.sh'

lint:
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports
	$(VENV)/bin/codespell && $(PY) scripts/docs/vocabulary.py

test:
	bash scripts/test.sh

test-fast:
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(FAST)

test-slow:
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow

# Also where a test fails, the lines are counted. Processes that tests kill leave data that cannot be read.
coverage:
	EXTRAS=test,coverage bash -c 'source scripts/install.sh' && rm -f .coverage*
	OMP_NUM_THREADS=1 $(PY) -m coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	$(PY) -W ignore -m coverage combine --quiet && rm -f .coverage.* && $(PY) -m coverage report && exit $$tests

schema:
	$(PY) -m gora recipes schema > configs/recipe.schema.json && $(PY) scripts/docs/recipe_page.py

docs:
	$(PY) -m mkdocs build --strict

bench:
	$(PY) scripts/benchmarks/precompute_cpu.py --rounds 3

release:
	rm -rf dist && $(PY) -m pip install --quiet build twine && $(PY) -m build && $(PY) -m twine check --strict dist/*
	$(PY) -m pytest -m slow tests/scripts/test_release.py
