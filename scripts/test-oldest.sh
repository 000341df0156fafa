#!/usr/bin/env bash
# Installs the oldest versions that gora allows into .venv-oldest, then runs the tests of what depends on them: recipes, rows,
# the method, gradients, models, training with resume, merging, all methods, and runs of several processes. About 25 minutes
# on two cores. Arguments are given to pytest instead of that list.
EXTRAS=test
VENV=${VENV:-.venv-oldest}
CONSTRAINTS=constraints-oldest.txt
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
# DeepSpeed's optimizer is built for each version of it.
export OMP_NUM_THREADS=1 TORCH_EXTENSIONS_DIR="$(realpath "$VENV")/extensions"
tests=(
  tests/test_private_apis.py tests/test_versions.py tests/test_files.py tests/test_plan.py
  tests/recipe tests/core tests/data tests/gradients tests/methods tests/models tests/adapters tests/runs
  tests/stages tests/runtime/test_distributed.py
  # Older versions make another tokenizer of such files, which gora then refuses, where newer ones keep the text.
  --deselect "tests/models/test_tokenizers.py::test_classes_that_keep_the_text_are_taken[LlamaTokenizer]"
)
[ $# -gt 0 ] || set -- "${tests[@]}"
exec "$VENV/bin/python" -m pytest "$@"
