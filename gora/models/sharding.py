"""Base weights shared out over processes, block by block: each holds a part and gathers a block when its turn comes."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer


def gather(tensor: Tensor) -> Tensor:
    """A parameter of which this process may hold a share only; all processes have to ask for it at the same time."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id"):
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        with GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def shard_weights(model: nn.Module, device: torch.device) -> None:
    """Share out a frozen model's weights over all processes of the default group (FSDP2), in place.

    Args:
        model: on any device; what stays of it here moves to `device`.
        device: what computes.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
