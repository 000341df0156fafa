"""Log-probabilities of mlx-lm for given tokens, in float32; runs in the environment that `build.py` makes.

python ask_mlx.py '{"model": FOLDER, "adapter": FOLDER or null, "tokens": [[1, 2, 3]]}'
"""

import json
import sys
from importlib.metadata import version

import mlx.core as mx
import numpy as np
from mlx_lm import load

asked = json.loads(sys.argv[1])
model, _ = load(asked["model"], adapter_path=asked["adapter"])
found = []
for tokens in asked["tokens"]:
    logits = np.array(model(mx.array([tokens]))[0].astype(mx.float32), dtype=np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    found.append((shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))).tolist())
print(json.dumps({"version": version("mlx-lm"), "log_probabilities": found}))
