"""When more micro-batches would hardly change what is decided from their gradients."""

import math
from collections.abc import Mapping

Seen = Mapping[int, Mapping[str, float]]
_LEAST = 3
# The mean of k independent numbers of mean zero is so much smaller than that of k / 2, and has this cosine with it.
_AVERAGED = 1 / math.sqrt(2)


def importances_settled(seen: Seen, tolerance: float, cosine: float = 1.0) -> bool:
    """Whether every importance has settled: the paper's rule, with a guard against drift.

    Since the look before, each has changed by less than the tolerance for every micro-batch in between, relatively; the
    first look that counts is the third micro-batch. A slow drift passes that as well, because a micro-batch moves the
    mean of k by 1/k: so at no look since half as many micro-batches may one have been lower than now by more than the
    tolerance, or higher by more than what averaging takes off where there is nothing but noise; and the step may not
    have turned by more than noise turns it.

    Args:
        seen: importance of every layer by the number of micro-batches in the mean.
        tolerance: relative change.
        cosine: between the mean gradients of all and of half of the micro-batches, at the last power of two.
    """
    counts = sorted(seen)
    count = counts[-1]
    half = max((each for each in counts if each <= count / 2), default=None)
    if count < _LEAST or half is None or not cosine >= _AVERAGED * (1 - tolerance):
        return False
    before = counts[-2]
    allowed = tolerance * (count - before)
    now, since = seen[count], [seen[each] for each in counts if half <= each < count]
    return all(
        _near(value, seen[before][name], allowed) and all(_no_drift(value, each[name], tolerance) for each in since)
        for name, value in now.items()
    )


def start_settled(
    ranks: Mapping[str, int], ranks_before: Mapping[str, int], cosine: float, ratio: float, tolerance: float
) -> bool:
    """Whether ranks and first step are those of half as many micro-batches.

    Args:
        ranks: of every layer, now.
        ranks_before: at half as many.
        cosine: between the steps of all layers, now and then.
        ratio: of their sizes, now over then.
        tolerance: how much a rank may have changed, relatively, if by more than one; and how far the cosine may be
            from 1.
    """
    kept = all(abs(rank - ranks_before[name]) <= max(1, tolerance * rank) for name, rank in ranks.items())
    return kept and cosine >= 1 - tolerance and _no_drift(ratio, 1.0, tolerance)


def _near(now: float, before: float, allowed: float) -> bool:
    return now == before or abs(now - before) < allowed * before


def _no_drift(now: float, before: float, tolerance: float) -> bool:
    return now == before or _AVERAGED * (1 - tolerance) <= (now / before if before else math.inf) <= 1 + tolerance
