#!/usr/bin/env bash
# Installs gora with the test extras into .venv, then checks style, types and behaviour.
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
