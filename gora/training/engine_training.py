"""Training under an engine: its arguments for the Trainer, its optimizer, the check that it is the one that runs."""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, patch_environment
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from gora.errors import GoraError, InputError
from gora.methods import METHODS
from gora.runtime.console import output
from gora.runtime.engine import Engine
from gora.runtime.world import World
from gora.training.offloaded import send_whole_buckets
from gora.training.skipping import Measured


def refuse_what_cannot_train(engine: Engine, device: torch.device, method: str) -> None:
    """End before anything is loaded where the engine would silently be another one, or lacks what the method needs.

    Raises:
        InputError: fully sharded training is asked for without a GPU, or the method needs whole gradients.
    """
    if METHODS[method].whole_gradients and engine.kind != "ddp":
        raise InputError(
            f"adapter.method: {method} works on whole gradients and weights, which {engine.name} shares out. "
            "Give distributed: ddp."
        )
    if engine.kind == "fsdp" and device.type != "cuda":
        raise InputError(
            "distributed: fsdp trains on GPUs only; on CPUs Accelerate would run plain data parallelism instead. "
            "Give ddp or zero3."
        )


def engine_arguments(engine: Engine, device: torch.device, *, all_used: bool) -> dict[str, Any]:
    """What `TrainingArguments` has to be told.

    Args:
        engine: what keeps the processes in step.
        device: what computes.
        all_used: whether every trained parameter is known to get a gradient.
    """
    if engine.kind == "deepspeed":
        # The Trainer fills in what is `auto`, in place.
        arguments = {"deepspeed": copy.deepcopy(engine.settings)}
        return arguments | (_deepspeed_on_cpus() if device.type == "cpu" else {})
    if engine.kind == "fsdp":
        return {"fsdp": True, "fsdp_config": copy.deepcopy(engine.settings)}
    # DeepSpeed never gets `use_cpu`, with which Accelerate would quietly run data parallelism instead.
    return {"use_cpu": device.type == "cpu", "ddp_find_unused_parameters": not all_used, "ddp_broadcast_buffers": False}


def _deepspeed_on_cpus() -> dict[str, Any]:
    """Without a GPU, Accelerate sees a single process unless it is told beforehand how several talk to each other.

    DeepSpeed would compile kernels of its own for that, for a minute, which only its inference calls.
    """
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    AcceleratorState._reset_state(reset_partial_state=True)
    with patch_environment(ACCELERATE_USE_DEEPSPEED="true"):
        PartialState(backend="gloo")
    return {"accelerator_config": {"use_configured_state": True}}


def make_optimizer(groups: list[dict[str, Any]], engine: Engine, world: World) -> torch.optim.Optimizer:
    """AdamW for these groups; DeepSpeed's own where optimizer states live in host memory and it can be built."""
    if engine.offloads and _builds(world):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True)  # type: ignore[no-any-return]
    fused = torch.cuda.is_available() and not engine.offloads and engine.kind != "fsdp"
    return torch.optim.AdamW(groups, fused=fused)


def check_engine(trainer: Trainer, engine: Engine, world: World) -> str:
    """See that the engine asked for is the one that runs.

    Returns:
        One line about it.

    Raises:
        GoraError: another one runs, with what was found.
    """
    found = trainer.accelerator.distributed_type
    if trainer.accelerator.num_processes != world.size:
        raise GoraError(f"Accelerate sees {trainer.accelerator.num_processes} processes instead of {world.size}.")
    if engine.kind == "deepspeed":
        running: Any = trainer.model_wrapped
        what = {
            "engine": found == DistributedType.DEEPSPEED and type(running).__name__ == "DeepSpeedEngine",
            "stage": found == DistributedType.DEEPSPEED and running.zero_optimization_stage() == engine.stage,
            "offload": found == DistributedType.DEEPSPEED and _offloads(running) == engine.offloads,
        }
        text = f"DeepSpeed ZeRO stage {engine.stage}" + (", optimizer states in host memory" if engine.offloads else "")
    elif engine.kind == "fsdp":
        what, text = {"engine": found == DistributedType.FSDP}, "fully sharded data parallelism"
    else:
        alone = world.size == 1
        expected = [DistributedType.NO] if alone else [DistributedType.MULTI_GPU, DistributedType.MULTI_CPU]
        what = {"engine": found in expected}
        if not alone:
            what["wrapper"] = isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel)
        text = "one process" if alone else "data parallelism"
    if wrong := [name for name, right in what.items() if not right]:
        raise GoraError(f"distributed: {engine.name} is asked for, but Accelerate runs {found} ({', '.join(wrong)}).")
    processes = f", {world.size} processes" if world.size > 1 else ""
    return f"{text}{processes}; optimizer {_innermost(trainer.optimizer)}"


def forget_engine() -> None:
    """Undo what a run under DeepSpeed leaves behind: what is loaded or trained next in this process would follow it."""
    unset_hf_deepspeed_config()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


def release_engine(trainer: Trainer) -> None:
    """Have DeepSpeed let go of the model: by itself it would keep both in memory to the end of the process."""
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        running: Any = trainer.model_wrapped
        running.destroy()
        if running.zero_optimization_stage() == 3:
            _forget_sharded_modules()


def _forget_sharded_modules() -> None:
    """Empty what ZeRO-3 keeps for all engines of a process: modules that are being run, of which the outermost stays,
    and, as the keys of a cache, modules and their coordinator."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    FWD_MODULE_STACK.clear()
    released: Any = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(released).nonlocals["func"].cache_clear()


@contextmanager
def reducing_once(running: Any) -> Iterator[None]:
    """A step of DeepSpeed: gradients of all passes stay where they are, and are reduced together at the end.

    By itself, ZeRO from stage 2 on reduces with every pass, and moves what it offloads to the host each time.

    Args:
        running: DeepSpeed's engine.
    """
    send_whole_buckets(running.optimizer)
    with running.coalesce_grad_reduction():
        yield
    running.set_gradient_accumulation_boundary(True)
    running.step()


def measure_step(trainer: Trainer, loss: Tensor, norm: Tensor | float | None, held: Sequence[Tensor]) -> Measured:
    """What this process knows of a step before the optimizer takes it, with one transfer to the host.

    Args:
        trainer: how training runs.
        loss: this process's part of the mean loss, a scalar.
        norm: norm of the gradient before it was clipped, as the Trainer has it.
        held: the gradients that the optimizer will use, as far as this process holds them.

    Raises:
        GoraError: DeepSpeed does not say what gradient it has used.
    """
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        # It keeps gradients to itself and has taken the step, unless it found NaN or infinity in the norm.
        running: Any = trainer.model_wrapped
        known = running.get_global_grad_norm()
        if known is None:
            raise GoraError("DeepSpeed does not compute the norm of gradients, by which NaN is noticed.")
        return Measured(loss=loss.item(), norm=float(known), taken=running.was_step_applied())
    whole = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(0.0 if norm is None else norm)
    used = torch.nn.utils.get_total_norm(held) if held else torch.zeros(())
    told = torch.stack([each.detach().to(loss.device, torch.float64) for each in (loss, whole, used)]).tolist()
    # A method may have changed the gradients after the norm was taken; where that was infinite, clipping made it NaN.
    return Measured(loss=told[0], norm=told[2] if math.isfinite(told[1]) and not math.isfinite(told[2]) else told[1])


def _offloads(running: Any) -> bool:
    section = running.zero_offload_optimizer()
    return section is not None and section.device not in (None, "none")


def _innermost(optimizer: Any) -> str:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return type(optimizer).__name__


def _builds(world: World) -> bool:
    """Whether DeepSpeed's CPU Adam can be built; one process of each host builds it, the others take what it left."""
    reason = ""
    for builds in (world.local_index == 0, world.local_index != 0):
        if builds:
            try:
                from deepspeed.ops.op_builder import CPUAdamBuilder

                with output.terminal.status("building DeepSpeed's CPU optimizer (about a minute, once)"):
                    CPUAdamBuilder().load(verbose=False)
            except Exception as error:  # a compiler can fail in any way
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        world.barrier()
    if world.any(bool(reason)):
        output.warn(f"DeepSpeed's CPU optimizer cannot be built, torch's AdamW takes its place ({reason}).")
        return False
    return True
