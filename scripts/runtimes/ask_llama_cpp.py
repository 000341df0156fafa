"""Log-probabilities of llama.cpp for given tokens, in float32; runs in the environment that `build.py` makes.

python ask_llama_cpp.py '{"model": "base.gguf", "adapter": "adapter.gguf" or null, "tokens": [[1, 2, 3]]}'
"""

import json
import sys

import llama_cpp
import numpy as np

asked = json.loads(sys.argv[1])
found = []
for tokens in asked["tokens"]:
    # The cache of keys and values is float16 otherwise.
    model = llama_cpp.Llama(
        asked["model"],
        lora_path=asked["adapter"],
        logits_all=True,
        n_ctx=len(tokens) + 8,
        n_threads=1,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens)], dtype=np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    found.append((shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))).tolist())
print(json.dumps({"version": llama_cpp.__version__, "log_probabilities": found}))
