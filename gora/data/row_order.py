"""Which rows the gradient pass sees."""

import torch


def draw_rows(rows: int, count: int, seed: int) -> list[int]:
    """Indices of `count` rows in random order; all rows come once before any comes again.

    Args:
        rows: how many there are.
        count: how many are wanted.
        seed: seed of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(rows, generator=generator).tolist()
    return order[:count]
