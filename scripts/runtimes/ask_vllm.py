"""Log-probabilities of vLLM for the token after each prompt; runs in the environment that `build.py` makes.

    python ask_vllm.py '{"model": FOLDER, "adapter": FOLDER or null, "rank": 16, "tokens": [[1, 2, 3]]}'

The twenty most likely tokens of each prompt are printed, by id.
"""

import json
import os
import sys

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import vllm
from vllm.lora.request import LoRARequest

asked = json.loads(sys.argv[1])
lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": asked["rank"]} if asked["adapter"] else {}
engine = vllm.LLM(
    model=asked["model"],
    dtype="float32",
    max_model_len=64,
    max_num_seqs=4,
    enforce_eager=True,
    # Of the memory of the machine, on a CPU as well.
    gpu_memory_utilization=0.2,
    skip_tokenizer_init=True,
    **lora,
)
made = engine.generate(
    [{"prompt_token_ids": tokens} for tokens in asked["tokens"]],
    vllm.SamplingParams(max_tokens=1, temperature=0.0, logprobs=20, detokenize=False),
    lora_request=LoRARequest("gora", 1, asked["adapter"]) if asked["adapter"] else None,
)
found = [{token: float(told.logprob) for token, told in result.outputs[0].logprobs[0].items()} for result in made]
print(json.dumps({"version": vllm.__version__, "log_probabilities": found}))
