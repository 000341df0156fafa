"""Looks at the sums while they are collected: keeps those of the first half, and says when there are enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from gora.core.importance import Importance, importance_on_device
from gora.core.settling import importances_settled, start_settled
from gora.gradients.halves import Projection, above_noise, products, signal_share
from gora.gradients.progress import Progress
from gora.gradients.sharded import Link
from gora.gradients.sums import Sums

Settled = Literal["importance", "start"]
_LEAST_HALF = 2


class Watch(Protocol):
    """Is asked after every pass."""

    def due(self, rounds: int) -> bool:
        """Whether it has to look after so many rounds."""
        ...

    def look(self, progress: Progress, sums: Sums) -> str:
        """Note what is needed in the progress, and say why to stop; empty to continue."""
        ...


class NoWatch:
    """Looks at nothing."""

    def due(self, rounds: int) -> bool:
        """Never."""
        return False

    def look(self, progress: Progress, sums: Sums) -> str:
        """Continue."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """How the sums of all processes come together; every call is made by all of them, in the same order.

    Attributes:
        keys: each layer's key.
        owners: the process that answers for each key.
        link: the other processes; None where there is none.
        whole: whether each process sums everything by itself, instead of what it owns.
    """

    keys: Mapping[str, str]
    owners: Mapping[str, int]
    link: Link | None = None
    whole: bool = True

    def owns(self, key: str) -> bool:
        """Whether this process answers for a key."""
        return self.link is None or self.owners[key] == self.link.index

    def total(self, key: str, read: Callable[[str], Tensor]) -> Tensor | None:
        """What `read` gives of a key, summed over all processes; at its owner, None elsewhere."""
        if self.link is None:
            return read(key)
        if not self.whole:
            return read(key) if self.owns(key) else None
        summed = read(key).clone()
        self.link.sum_to(self.owners[key], summed)
        return summed if self.owns(key) else None

    def count(self, own: int) -> int:
        """A number of this process, summed over all."""
        return own if self.link is None else sum(self.link.gather(own))

    def summed(self, numbers: tuple[float, ...]) -> list[float]:
        """Numbers of this process, each summed over all."""
        every = [numbers] if self.link is None else self.link.gather(numbers)
        return [math.fsum(each) for each in zip(*every, strict=True)]

    def merged(self, found: dict[str, float]) -> dict[str, float]:
        """What every process has found, in the order of the layers."""
        parts = [found] if self.link is None else self.link.gather(found)
        every = {name: value for part in parts for name, value in part.items()}
        return {name: every[name] for name in self.keys if name in every}


class HalfWatch:
    """Keeps the projected sums of the first half.

    Args:
        projection: what is kept of a sum.
        due: whether they are kept after so many rounds.
    """

    def __init__(self, projection: Projection, due: Callable[[int], bool]) -> None:
        self._projection, self.due = projection, due

    def look(self, progress: Progress, sums: Sums) -> str:
        """See `Watch`."""
        if self.due(progress.cursor):
            progress.half = self._projection.of_all(sums)
            progress.half_counted = progress.counted
        return ""


class SettlingWatch:
    """Also says when importances, or ranks and first step, have settled. Processes have to go in step.

    Args:
        halves: keeps the first half.
        projection: the same that `halves` has.
        gathered: brings the sums of all processes together.
        weight_of: the weight of a layer, (out, in); it may have to be gathered from all processes.
        kind: the importance.
        rule: what has to settle.
        tolerance: see `gora.core.settling`.
        ranks_of: ranks from importances.
    """

    def __init__(
        self,
        halves: HalfWatch,
        projection: Projection,
        gathered: Gathered,
        weight_of: Callable[[str], Tensor],
        kind: Importance,
        rule: Settled,
        tolerance: float,
        ranks_of: Callable[[Mapping[str, float]], Mapping[str, int]],
    ) -> None:
        self._halves, self._projection, self._gathered, self._weight_of = halves, projection, gathered, weight_of
        self._kind, self._rule, self._tolerance, self._ranks_of = kind, rule, tolerance, ranks_of

    def due(self, rounds: int) -> bool:
        """Always."""
        return True

    def look(self, progress: Progress, sums: Sums) -> str:
        """See `Watch`."""
        reason = self._reason(progress, sums)
        return reason or self._halves.look(progress, sums)

    def _reason(self, progress: Progress, sums: Sums) -> str:
        sums.settle(now=True)
        counted = self._gathered.count(progress.counted)
        # A micro-batch that was left out changes nothing, which says nothing.
        if not counted or counted in progress.seen:
            return ""
        progress.seen[counted] = self._importances(sums, counted)
        moved = self._moved(progress, sums, counted)
        if self._rule == "importance":
            if importances_settled(progress.seen, self._tolerance, progress.cosine):
                return f"no importance changes by more than {self._tolerance:.0%} with another micro-batch"
        elif moved is not None and start_settled(*moved, self._tolerance):
            return f"ranks and first step are those of half as many micro-batches, to {self._tolerance:.0%}"
        return ""

    def _importances(self, sums: Sums, counted: int) -> dict[str, float]:
        found: dict[str, Tensor] = {}
        for name, key in self._gathered.keys.items():
            weight, total = self._weight_of(name), self._gathered.total(key, sums.read)
            if total is not None:
                found[name] = importance_on_device(weight, total / counted, self._kind)
        # One wait for all of them.
        values = torch.stack(list(found.values())).tolist() if found else []
        return self._gathered.merged(dict(zip(found, values, strict=True)))

    def _moved(
        self, progress: Progress, sums: Sums, counted: int
    ) -> tuple[Mapping[str, int], Mapping[str, int], float, float] | None:
        """Ranks now and at the half, cosine and ratio of the steps; None where there are not twice as many as then."""
        half_counted = self._gathered.count(progress.half_counted)
        if not half_counted or counted < 2 * half_counted or half_counted not in progress.seen:
            return None
        inner = norm = norm_before = 0.0
        for _, half, whole in both_halves(self._gathered, self._projection, progress, sums):
            inner += (half.double() * whole.double()).sum().item()
            norm += whole.double().square().sum().item()
            norm_before += half.double().square().sum().item()
        inner, norm, norm_before = self._gathered.summed((inner, norm, norm_before))
        if not (0 < norm < math.inf and 0 < norm_before < math.inf):
            return None
        progress.cosine = inner / math.sqrt(norm * norm_before)
        if self._rule == "importance" or half_counted < _LEAST_HALF:
            return None
        now, before = (self._ranks_of(progress.seen[each]) for each in (counted, half_counted))
        return now, before, progress.cosine, math.sqrt(norm / norm_before) * half_counted / counted


def both_halves(
    gathered: Gathered, projection: Projection, progress: Progress, sums: Sums
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Key, projected sum of the first half and of all, over all processes; of the keys that this process owns."""
    for key in dict.fromkeys(gathered.keys.values()):
        half = gathered.total(key, progress.half.__getitem__)
        whole = gathered.total(key, lambda each: projection(each, sums.read(each)))
        if half is not None and whole is not None:
            yield key, half, whole


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What two halves tell of the mean gradient of every layer; empty where they are not known.

    Attributes:
        share: which share of its norm is signal, see `signal_share`.
        above: the singular values above its noise, see `above_noise`.
    """

    share: Mapping[str, float] = field(default_factory=dict)
    above: Mapping[str, float] = field(default_factory=dict)


def signal_of(gathered: Gathered, projection: Projection, progress: Progress, sums: Sums) -> Signal:
    """Compare the kept half with the rest, over all processes."""
    half_counted, counted = gathered.count(progress.half_counted), gathered.count(progress.counted)
    # A pass that an earlier gora began, and this one has resumed behind its half, lacks it in some processes or all.
    lacking = gathered.count(int(set(progress.half) != set(sums.keys())))
    if lacking or not half_counted or counted <= half_counted:
        return Signal()
    found = {key: products(*sums_of) for key, *sums_of in both_halves(gathered, projection, progress, sums)}
    # Moved only now: one who waits for a layer of its own keeps all others waiting for the next.
    found = {key: each.cpu() for key, each in found.items()}
    share = {key: signal_share(each, half_counted, counted) for key, each in found.items()}
    above = {key: above_noise(each, half_counted, counted, projection.in_features(key)) for key, each in found.items()}
    shares, values = (
        gathered.merged({name: own[key] for name, key in gathered.keys.items() if key in own}) for own in (share, above)
    )
    return Signal(share=shares, above=values)
