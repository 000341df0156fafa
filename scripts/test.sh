#!/usr/bin/env bash
# Installs gora with the test extras into .venv, then checks style, types and behaviour.
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
# Two test processes with one thread each: many tests wait for processes of their own. A module's runs are shared by its
# tests, so that they stay together; the longest modules begin first.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
