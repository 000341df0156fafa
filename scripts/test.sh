#!/usr/bin/env bash
# Installs gora with the extras of tests and checks into .venv, then checks style, types and behaviour.
EXTRAS=test,check
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
# DeepSpeed compiles an extension for CPUs where it is first used, which takes minutes: beside the checks, here.
"$VENV"/bin/python scripts/compile_extensions.py &> /dev/null &
"$VENV"/bin/ruff check .
"$VENV"/bin/ruff format --check .
"$VENV"/bin/mypy
"$VENV"/bin/lint-imports
"$VENV"/bin/codespell
"$VENV"/bin/python scripts/docs/vocabulary.py
# Two test processes with one thread each: many tests wait for processes of their own. A module's runs are shared by its
# tests, so that they stay together; the longest modules begin first.
export OMP_NUM_THREADS=1
exec "$VENV"/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10 "$@"
