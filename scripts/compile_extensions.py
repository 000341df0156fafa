"""Compile what DeepSpeed would compile during the tests: its CPU Adam, and its communication between CPU processes."""

import os

os.environ |= {"DS_ACCELERATOR": "cpu", "MAX_JOBS": "1"}

from deepspeed.accelerator import get_accelerator

for builder in ("ShareMemCommBuilder", "CPUAdamBuilder"):
    get_accelerator().create_op_builder(builder).load(verbose=False)
