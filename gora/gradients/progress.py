"""How far a collection has come: what is saved beside the sums."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Progress:
    """How far a collection has come.

    Attributes:
        cursor: how many rounds have been made.
        left_out: micro-batches that hold NaN or infinity, with the reason.
        idle: rounds in which there was no micro-batch for this process.
        seen: importance of every layer by the number of micro-batches of all processes, where it is watched.
        half: projected sums of about the first half of the rounds, see `gora.gradients.halves`.
        half_counted: how many micro-batches of this process are in them.
        cosine: between the mean gradients of all and of that half, when there were last twice as many.
        stopped: why the collection ended before its last round; empty where it did not.
    """

    cursor: int = 0
    left_out: dict[int, str] = field(default_factory=dict)
    idle: int = 0
    seen: dict[int, dict[str, float]] = field(default_factory=dict)
    half: dict[str, Tensor] = field(default_factory=dict)
    half_counted: int = 0
    cosine: float = 1.0
    stopped: str = ""

    @property
    def counted(self) -> int:
        """How many micro-batches of this process were looked at and not left out."""
        return self.cursor - self.idle - len(self.left_out)
