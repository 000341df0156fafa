"""Compile what DeepSpeed would compile during the tests: its CPU Adam."""

import os

os.environ |= {"DS_ACCELERATOR": "cpu", "MAX_JOBS": "1"}

from deepspeed.accelerator import get_accelerator

get_accelerator().create_op_builder("CPUAdamBuilder").load(verbose=False)
