"""What the user reads: on the terminal, and the same without colour in the run folder's log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from gora.disk import writing

_LOG_WIDTH = 140


class Output:
    """A terminal and, while a run folder is open, its log file."""

    def __init__(self, terminal: Console | None = None) -> None:
        self.terminal = terminal or _terminal()
        self._log: Console | None = None
        self._log_path = Path()
        self._muted = False
        self._warned: set[str] = set()
        self._collected: list[str] | None = None

    def mute(self) -> None:
        """Print and log nothing from now on: one of several processes speaks for all."""
        self.terminal, self._muted = _console(quiet=True), True

    def say(self, content: RenderableType = "") -> None:
        """Print a line, a table or any other renderable; text is printed as it is, without markup."""
        _print(self.terminal, content)
        self.log(content)

    def warn(self, text: str) -> None:
        """Print a line that asks for attention."""
        if self._collected is not None:
            self._collected.append(text)
            return
        self.terminal.print(f"warning: {text}", style="yellow", soft_wrap=True)
        self.log(f"warning: {text}")

    def warn_once(self, text: str) -> None:
        """Print such a line, unless it has been printed before."""
        if text not in self._warned:
            self._warned.add(text)
            self.warn(text)

    @contextmanager
    def collecting_warnings(self) -> Iterator[list[str]]:
        """Inside the block nothing is printed; the warnings are in the list."""
        terminal, self.terminal, self._collected = self.terminal, _console(quiet=True), []
        try:
            yield self._collected
        finally:
            self.terminal, self._collected = terminal, None

    def log(self, content: RenderableType) -> None:
        """Write to the log only."""
        if self._log is not None:
            with writing(self._log_path):
                _print(self._log, content)

    @contextmanager
    def logging_to(self, path: Path, command: str) -> Iterator[None]:
        """Add everything that is said inside the block to a log file."""
        if self._muted:
            yield
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", buffering=1) as stream:
            outer = self._log, self._log_path
            self._log, self._log_path = _console(file=stream, width=_LOG_WIDTH, no_color=True), path
            try:
                if outer[0] is None:
                    self.log(f"== {datetime.now().astimezone().isoformat(timespec='seconds')} {command}")
                yield
            finally:
                self._log, self._log_path = outer


def _console(**settings: Any) -> Console:
    """A console that prints text as it is: a path with brackets or colons is neither markup nor an emoji."""
    return Console(highlight=False, markup=False, emoji=False, **settings)


def _terminal() -> Console:
    terminal = _console()
    # A pipe has no width; tables that are cut to 80 columns there would only be harder to read.
    return terminal if terminal.is_terminal else _console(width=_LOG_WIDTH)


def _print(console: Console, content: RenderableType) -> None:
    if isinstance(content, str):
        console.print(content, soft_wrap=True)
    else:
        console.print(content)


output = Output()
