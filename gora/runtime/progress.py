"""Progress of long work: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gora.runtime.console import Output

_SECONDS_BETWEEN_LINES = 10.0


class Meter:
    """Counts steps and tokens of one task.

    Args:
        output: where to show it.
        title: what is being done.
        total: how many steps there are.
        done: how many were done before (a resumed run).
        quiet: show nothing, for work that may be over at once.
        unit: what tokens are called.
    """

    def __init__(
        self, output: Output, title: str, total: int, done: int = 0, *, quiet: bool = False, unit: str = "tokens"
    ) -> None:
        self._unit = unit
        self._output, self._title, self._total, self._quiet = output, title, total, quiet
        self._steps, self._first, self._tokens = done, done, 0
        self._end: float | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=output.terminal,
            transient=True,
            disable=quiet or not output.terminal.is_terminal,
        )

    def __enter__(self) -> Meter:
        self._start = self._last_line = time.monotonic()
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=self._total, completed=self._steps, facts="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end = time.monotonic()
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Time since the start, up to the end if there was one."""
        return (self._end or time.monotonic()) - self._start

    @property
    def tokens_per_second(self) -> float:
        """Mean rate since the start."""
        return self._tokens / max(self.seconds, 1e-9)

    def advance(self, tokens: int = 0, facts: str = "", steps: int = 1) -> None:
        """Count steps of `tokens` tokens in all; `facts` is shown beside the count."""
        self._steps = min(self._steps + steps, self._total)
        self._tokens += tokens
        rate = f"{self.tokens_per_second:,.0f} {self._unit}/s" if self._tokens else ""
        facts = "  ".join(part for part in (facts, rate) if part)
        self._bar.update(self._task, completed=self._steps, facts=facts)
        now = time.monotonic()
        if self._quiet:
            return
        if self._bar.disable and (now - self._last_line > _SECONDS_BETWEEN_LINES or self._steps == self._total):
            self._last_line = now
            parts = (f"{self._title} {self._steps}/{self._total}", facts, f"{self.time_left} left")
            self._output.terminal.print("  ".join(part for part in parts if part), soft_wrap=True)

    @property
    def time_left(self) -> str:
        """What the rest takes at the mean rate so far, in words."""
        rate = (self._steps - self._first) / max(self.seconds, 1e-9)
        return clock((self._total - self._steps) / max(rate, 1e-9))


def clock(seconds: float) -> str:
    """Seconds as `8s`, `2m 05s` or `1h 02m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
