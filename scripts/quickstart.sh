#!/usr/bin/env bash
# From a fresh checkout to a tuned model: installs gora into .venv and runs the recipe that needs no network.
EXTRAS=plot
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
exec "$VENV/bin/gora" run quickstart --overwrite "$@"
