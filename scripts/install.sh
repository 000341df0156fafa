#!/usr/bin/env bash
# Sourced by the other scripts: a virtual environment in .venv with gora and the extras given as `EXTRAS`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "gora needs Python 3.11 or newer; $("$python" --version) is here. Set PYTHON to another one." >&2
  exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
# A plain `torch` brings several GB of GPU packages; an installed build, such as a CPU one, is kept.
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  .venv/bin/python -m pip install --quiet "$(grep '^torch==' constraints.txt)"
fi
.venv/bin/python -m pip install --quiet --editable ".[${EXTRAS}]" --constraint constraints.txt
