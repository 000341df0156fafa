"""What a run writes, in bytes, as functions of sizes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from gora.estimate.memory import FLOAT32


@dataclass(frozen=True, kw_only=True)
class DiskNeeds:
    """Bytes of what a run may write.

    Attributes:
        plan: A and B of every layer.
        checkpoints: as many as are kept, and one while it is written.
        adapter: what was trained.
        gradients: with `gora precompute --keep-gradients`, in bfloat16.
        merged: with `--merge`.
    """

    plan: int
    checkpoints: int
    adapter: int
    gradients: int
    merged: int

    @property
    def certain(self) -> int:
        """Of what every run of the recipe writes."""
        return self.plan + self.checkpoints + self.adapter

    @property
    def parts(self) -> dict[str, int]:
        """By name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def disk_needs(*, trained: int, targets: int, weights: int, has_plan: bool, checkpoints: int) -> DiskNeeds:
    """Estimate what a run writes.

    Args:
        trained: values that are trained; each is saved in float32.
        targets: values of the weights whose gradients are collected.
        weights: bytes of the base model in whole weights.
        has_plan: whether the method makes a plan.
        checkpoints: most that lie on disk at a time.
    """
    values = FLOAT32 * trained
    return DiskNeeds(
        plan=values if has_plan else 0,
        # Values and both moments.
        checkpoints=3 * values * checkpoints,
        adapter=values,
        gradients=2 * targets if has_plan else 0,
        merged=weights,
    )
