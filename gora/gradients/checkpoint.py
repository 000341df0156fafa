"""Keeps an unfinished collection on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from gora import manifest
from gora.disk import size_of
from gora.errors import InputError
from gora.gradients.progress import Progress
from gora.gradients.storage import read_document, read_shards, write_shards
from gora.gradients.sums import Sums

_CPU = torch.device("cpu")
_SECONDS_BETWEEN = 180.0
# Saving may take a twentieth of the time at most, however large the sums are.
_TIMES_AS_LONG = 20.0
_HALF = "half:"
"""In front of the key of what is kept of the first half; no layer is called so."""


class NoCheckpoint:
    """Saves nothing: an interrupted collection starts over."""

    def due(self) -> bool:
        """Never."""
        return False

    def save(self, sums: Sums, progress: Progress) -> None:
        """Nothing is kept."""

    def restore(self, sums: Sums) -> Progress:
        """Sums of zero."""
        sums.clear()
        return Progress()


class PassCheckpoint:
    """Saves the sums every few minutes, and when a stop is asked for.

    Args:
        folder: where the sums lie while the collection is unfinished.
        identity: what the collection is of; sums of another one are refused.
        stop: the signal that asks to stop, or None.
        interrupt: raises the end of the collection, told of the signal and of how many micro-batches are saved.
        device: where what is kept of the first half goes.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        stop: Callable[[], int | None],
        interrupt: Callable[[int, int], None],
        device: torch.device = _CPU,
    ) -> None:
        self._device = device
        self._folder, self._identity = folder, identity
        self._stop, self._interrupt = stop, interrupt
        self._pause = _SECONDS_BETWEEN
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether minutes have passed, or a stop is asked for."""
        return self._stop() is not None or time.monotonic() - self._last > self._pause

    def save(self, sums: Sums, progress: Progress) -> None:
        """Publish sums and progress; then end the collection if a stop is asked for."""
        start = time.monotonic()
        said = {"cursor": progress.cursor, "left_out": progress.left_out, "idle": progress.idle}
        watched = {"seen": progress.seen, "half_counted": progress.half_counted, "cosine": progress.cosine}
        document = {"identity": self._identity, "progress": said | watched}
        halves = ((f"{_HALF}{key}", half) for key, half in progress.half.items())
        saved = chain(((key, sums.read(key)) for key in sums.keys()), halves)  # noqa: SIM118
        # The next one takes as much as the one before, which stays until then.
        write_shards(self._folder, saved, document, needed=size_of(self._folder) or None)
        self._last = time.monotonic()
        self._pause = max(_SECONDS_BETWEEN, _TIMES_AS_LONG * (self._last - start))
        number = self._stop()
        if number is not None:
            self._interrupt(number, progress.cursor)

    def restore(self, sums: Sums) -> Progress:
        """Bring back what was saved last.

        Raises:
            InputError: what was saved is of another collection, naming what differs, or cannot be read.
        """
        sums.clear()
        if not self._folder.exists():
            return Progress()
        manifest.verify(self._folder, "Start the gradient pass over with --overwrite.")
        document = read_document(self._folder)
        self._refuse_stranger(document.get("identity"))
        progress = self._progress(document)
        for key, tensor in read_shards(self._folder):
            if key.startswith(_HALF):
                progress.half[key.removeprefix(_HALF)] = tensor.to(self._device)
            else:
                sums.write(key, tensor)
        return progress

    def saved_rounds(self) -> int:
        """How many rounds are in the sums that were saved last."""
        return self._progress(read_document(self._folder)).cursor if self._folder.exists() else 0

    def _progress(self, document: dict[str, Any]) -> Progress:
        try:
            saved = document["progress"]
            left_out = {int(index): str(reason) for index, reason in saved["left_out"].items()}
            # An earlier gora has saved no more than these three.
            seen = {int(count): dict(found) for count, found in saved.get("seen", {}).items()}
            half_counted = int(saved.get("half_counted", 0))
            return Progress(
                cursor=int(saved["cursor"]),
                left_out=left_out,
                idle=int(saved["idle"]),
                seen=seen,
                half_counted=half_counted,
                cosine=float(saved.get("cosine", 1.0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{self._folder} does not say how far the gradient pass had come ({error!r}). Start it over with "
                "--overwrite."
            ) from None

    def _refuse_stranger(self, saved: Any) -> None:
        if saved != self._identity:
            before = saved if isinstance(saved, dict) else {}
            differing = [
                f"{key}: {before.get(key)!r} when it began, {value!r} now"
                for key, value in self._identity.items()
                if before.get(key) != value
            ]
            raise InputError(
                f"{self._folder} holds the gradients of another run. Give the same settings, or --overwrite.", differing
            )
