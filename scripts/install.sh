#!/usr/bin/env bash
# Sourced by the other scripts: a virtual environment in `VENV` with gora and the extras given as `EXTRAS`, in the versions
# of `CONSTRAINTS`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
CONSTRAINTS=${CONSTRAINTS:-constraints.txt}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "gora needs Python 3.11 or newer; $("$python" --version) is here. Set PYTHON to another one." >&2
  exit 1
}
[ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
# A plain `torch` brings several GB of GPU packages; an installed build, such as a CPU one, is kept.
if ! "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
  "$VENV/bin/python" -m pip install --quiet "$(grep '^torch==' "$CONSTRAINTS")"
fi
"$VENV/bin/python" -m pip install --quiet --editable ".[${EXTRAS}]" --constraint "$CONSTRAINTS"
