"""The order in which rows are seen: in the epochs of training, and in the gradient pass."""

from itertools import count as counting

import torch

from gora.data.examples import Examples


def epoch_order(rows: Examples, seed: int, epoch: int) -> list[int]:
    """Indices of the rows of an epoch in its order."""
    return _chosen(rows, epoch, torch.Generator().manual_seed(seed + epoch))


def draw_rows(rows: Examples, count: int, seed: int) -> list[int]:
    """Indices of `count` rows for the gradient pass, in random order; all of an epoch come before those of the next.

    Args:
        rows: what is drawn from.
        count: how many are wanted.
        seed: seed of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    epochs = counting()
    while len(order) < count:
        order += _chosen(rows, next(epochs), generator)
    return order[:count]


def _chosen(rows: Examples, epoch: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(rows.per_epoch, generator=generator)
    members = rows.members(epoch)
    chosen: list[int] = order.tolist() if members is None else members[order.numpy()].tolist()
    return chosen
