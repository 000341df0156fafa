"""Watching the sums of synthetic gradients: what stops a pass, in one process and in two, and what of them is noise."""

import threading

import numpy
import pytest
import torch

from gora.core.ranks import RankBounds, allocate
from gora.gradients.halves import Projection, above_noise, at_half, at_power, products, signal_share
from gora.gradients.progress import Progress
from gora.gradients.sharded import assign_owners
from gora.gradients.sums import DeviceSums
from gora.gradients.watch import Gathered, HalfWatch, SettlingWatch, signal_of

SHAPES = {"first": (48, 40), "second": (64, 96), "third": (40, 40)}
CPU = torch.device("cpu")
MOST = 64


class Thread:
    """One of several threads that talk to each other as processes do."""

    def __init__(self, index, together):
        self.index, self.size = index, len(together.places)
        self._together = together

    def gather(self, value):
        self._together.places[self.index] = value
        self._together.barrier.wait()
        every = list(self._together.places)
        self._together.barrier.wait()
        return every

    def sum_to(self, owner, tensor):
        total = sum(self.gather(tensor.clone()))
        if owner == self.index:
            tensor.copy_(total)


class Together:
    def __init__(self, size):
        self.places, self.barrier = [None] * size, threading.Barrier(size, timeout=60)


def weights():
    drawn = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=drawn) for name, shape in SHAPES.items()}


def gradient(kind, name, index):
    """Of one micro-batch: a signal of rank 3 that depends on the kind, and noise."""
    drawn = torch.Generator().manual_seed(len(name))
    rows, columns = SHAPES[name]
    signal = torch.randn(rows, 3, generator=drawn) @ torch.randn(3, columns, generator=drawn)
    other = torch.randn(rows, 3, generator=drawn) @ torch.randn(3, columns, generator=drawn)
    noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1000 * index + len(name)))
    turned = torch.cos(torch.tensor(index / 8)) * signal + torch.sin(torch.tensor(index / 8)) * other
    return {
        "stationary": signal + noise,
        "growing": (1 + index) * signal + noise,
        "turning": (1 + 0.3 * index) * turned,
        "noise": noise,
    }[kind]


def collect(kind, rule, processes=1, most=MOST):
    """How many micro-batches were run, and the share of signal; of every process."""
    found, together = [None] * processes, Together(processes)
    owners = assign_owners(SHAPES, processes)

    def work(number):
        link = Thread(number, together) if processes > 1 else None
        gathered = Gathered(keys={name: name for name in SHAPES}, owners=owners, link=link)
        projection = Projection(SHAPES, 0, CPU)
        halves = HalfWatch(projection, lambda rounds: at_power(rounds, processes, most))

        def ranks_of(importances):
            ranks = allocate(list(importances.values()), list(SHAPES.values()), 8, RankBounds(4, 32))
            return dict(zip(importances, ranks, strict=True))

        watch = SettlingWatch(halves, projection, gathered, weights().__getitem__, "sensitivity", rule, 0.1, ranks_of)
        progress, sums = Progress(), DeviceSums(SHAPES, CPU)
        while progress.cursor < most // processes and not progress.stopped:
            for name in SHAPES:
                sums.add_matrix(name, gradient(kind, name, progress.cursor * processes + number))
            progress.cursor += 1
            progress.stopped = watch.look(progress, sums)
        found[number] = progress.cursor * processes, signal_of(gathered, projection, progress, sums)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each == found[0] for each in found)
    return found[0]


@pytest.mark.parametrize("rule", ["importance", "start"])
def test_a_pass_stops_soon_on_stationary_gradients_alike_in_one_and_two_processes(rule):
    one, two = (collect("stationary", rule, processes)[0] for processes in (1, 2))
    assert 3 <= one <= 16
    assert 0 <= two - one <= 1


@pytest.mark.parametrize("rule", ["importance", "start"])
@pytest.mark.parametrize("kind", ["growing", "turning"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_pass_never_stops_on_drifting_gradients(rule, kind, processes):
    assert collect(kind, rule, processes)[0] == MOST


def test_nothing_but_noise_never_has_a_settled_start():
    """Importances settle all the same: that of noise falls slowly and alike in every layer."""
    assert collect("noise", "start")[0] == MOST
    assert collect("noise", "importance")[0] < MOST


@pytest.mark.parametrize("processes", [1, 2])
def test_the_share_of_signal_is_that_of_the_gradients_that_were_made(processes):
    counted, signal = collect("stationary", "start", processes)
    for name, (rows, columns) in SHAPES.items():
        power = 3 * rows * columns
        expected = (power / (power + rows * columns / counted)) ** 0.5
        assert signal.share[name] == pytest.approx(expected, abs=0.1)
    _, signal = collect("noise", "start", processes)
    assert all(share < 0.5 for share in signal.share.values())


def test_singular_values_above_the_noise_are_those_of_the_signal():
    """Of a matrix of rank 3 in noise as large as its smallest value; of noise alone hardly any."""
    drawn = torch.Generator().manual_seed(7)
    left, right = (torch.linalg.qr(torch.randn(size, 3, generator=drawn)).Q for size in (200, 400))
    signal = left @ torch.diag(torch.tensor([30.0, 20.0, 0.5])) @ right.T
    projection = Projection({"layer": (200, 400)}, 0, CPU)
    halves = [8 * signal + 8**0.5 * 0.1 * torch.randn(200, 400, generator=drawn) for _ in range(2)]
    kept, whole = projection("layer", halves[0]), projection("layer", halves[0] + halves[1])
    assert above_noise(products(kept, whole), 8, 16, 400) == pytest.approx(50, rel=0.15)
    noise = [projection("layer", torch.randn(200, 400, generator=drawn)) for _ in range(2)]
    total = torch.linalg.svdvals(noise[0] + noise[1]).sum() / 16
    assert above_noise(products(noise[0], noise[0] + noise[1]), 8, 16, 400) < 0.5 * total * (3 * 400 / 32) ** 0.5


def test_without_a_half_nothing_is_said_of_signal():
    gathered, projection = Gathered(keys={name: name for name in SHAPES}, owners={}), Projection(SHAPES, 0, CPU)
    sums, progress = DeviceSums(SHAPES, CPU), Progress(cursor=4)
    assert not signal_of(gathered, projection, progress, sums).share
    HalfWatch(projection, lambda rounds: True).look(progress, sums)
    progress.cursor += 1
    assert signal_of(gathered, projection, progress, sums).share == dict.fromkeys(SHAPES, 0.0)


def test_a_share_is_between_nothing_and_all():
    same = torch.randn(12, 8)
    assert signal_share(products(same, 2 * same), 1, 2) == pytest.approx(1)
    assert signal_share(products(same, 0 * same), 1, 2) == 0
    assert signal_share(products(same, 0.5 * same), 1, 2) == 0


def test_products_of_two_halves_say_what_the_halves_themselves_say():
    """Against the means themselves and their singular values, with an odd number of micro-batches."""
    drawn = torch.Generator().manual_seed(3)
    common = torch.randn(50, 4, generator=drawn) @ torch.randn(4, 8, generator=drawn)
    half, rest = (count * common + count**0.5 * torch.randn(50, 8, generator=drawn) for count in (3, 4))
    first, second, mean = (each.double().numpy() for each in (half / 3, rest / 4, (half + rest) / 7))
    inner = products(half, half + rest)
    assert signal_share(inner, 3, 7) == pytest.approx(((first * second).sum() / (mean**2).sum()) ** 0.5, rel=1e-5)
    noise = numpy.linalg.svd((first - second) * 12**0.5 / 7, compute_uv=False)
    values = numpy.linalg.svd(mean, compute_uv=False)
    assert 0 < (values > noise[0]).sum() < 8
    expected = values[values > noise[0]].sum() * (3 * 30 / 8) ** 0.5
    assert above_noise(inner, 3, 7, 30) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("total", [2, 3, 11, 12, 64])
def test_halves_are_kept_once_at_the_half_and_at_every_power_before_the_end(processes, total):
    rounds = range(1, -(-total // processes) + 1)
    halves = [done * processes for done in rounds if at_half(done, processes, total)]
    assert halves == [done * processes for done in rounds if total / 2 <= done * processes < total][:1]
    powers = [done * processes for done in rounds if at_power(done, processes, total)]
    assert all(done < total for done in powers)
    assert len({done.bit_length() for done in powers}) == len(powers)
