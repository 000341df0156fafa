"""pass@k: the chance that one of k answers is right, from n answers of which c are (Chen et al., arXiv 2107.03374)."""

from collections.abc import Sequence
from fractions import Fraction
from math import comb


def pass_at_k(answers: int, right: int, k: int) -> Fraction:
    """The share of all choices of k answers that hold a right one (equation 1): 1 - C(n - c, k) / C(n, k).

    It has no bias, unlike 1 - (1 - c/n)^k, and as a fraction no rounding either.

    Args:
        answers: n, how many there are.
        right: c, how many of them are right.
        k: how many are chosen.

    Raises:
        ValueError: not 0 <= right <= answers, or not 1 <= k <= answers.
    """
    if not (0 <= right <= answers and 1 <= k <= answers):
        raise ValueError(f"no pass@{k} of {right} right answers among {answers}")
    return 1 - Fraction(comb(answers - right, k), comb(answers, k))


def mean_pass_at_k(answers: int, right: Sequence[int], k: int) -> float:
    """The mean of `pass_at_k` over questions, with as many answers to each and `right[i]` right ones to question i."""
    return float(sum((pass_at_k(answers, count, k) for count in right), Fraction()) / len(right))
