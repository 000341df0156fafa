"""The examples of a run on images: where each lies, and its pixels when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gora.data.augment import augmented
from gora.data.examples import Examples, Unit
from gora.data.labelled_images import digest_of, read_file
from gora.data.pictures import decode
from gora.data.rows import Unusable
from gora.data.store import Store
from gora.errors import GoraError
from gora.recipe.data_schema import Augment
from gora.runtime.workers import cores

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Pixels = Callable[["Image"], "Tensor"]
"""What is kept of a picture for the model, channels x height x width: see `ImageReader.stored`."""


class ImageExamples(Examples):
    """Images in a fixed order. Each counts as one where text counts tokens.

    Args:
        store: of `IMAGE_SCHEMA`.
        choices: names of the classes.
        pixels: the model's own preparation of a picture.
        augment: what training changes of them.
        seed: of what is changed.
        indices: see `Examples`.
        epoch: show them as this epoch of training does; None as they are.
    """

    unit: Unit = "images"

    def __init__(
        self,
        store: Store,
        *,
        choices: Sequence[str],
        pixels: Pixels,
        augment: Augment = "none",
        seed: int = 0,
        indices: np.ndarray | None = None,
        epoch: int | None = None,
    ) -> None:
        super().__init__(store, choices=choices, indices=indices)
        self._pixels, self._augment, self._seed, self._epoch = pixels, augment, seed, epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`pixel_values` of one image (channels x height x width), `labels`, a list of one number, and
        `input_ids`, the four numbers of its digest.

        Raises:
            GoraError: its file is not what it was when it was checked.
        """
        picture = self.picture(index)
        if self._epoch is not None:
            picture = augmented(picture, self._augment, seed=self._seed, epoch=self._epoch, row=self._stored(index))
        return {**super().__getitem__(index), "pixel_values": self._pixels(picture)}

    def take(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several images, decoded by threads: decoders let others compute meanwhile."""
        threads = min(cores(), len(indices))
        if threads < 2:
            return super().take(indices)
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.__getitem__, indices))

    def picture(self, index: int) -> Image:
        """One image, decoded and not changed; raises GoraError as above."""
        stored = self._stored(index)
        file = self._store.value("file", stored)
        try:
            data = self._store.value("data", stored) if file is None else read_file(Path(file))
            if file is not None and array("i", bytes.fromhex(digest_of(data))).tolist() != self._ids(stored):
                raise Unusable(f"{file} has changed since it was checked")
            return decode(data)
        except Unusable as fault:
            raise GoraError(
                f"{self.where(index)}: {fault}. Put it back, or check the images again: delete what is kept of them "
                "with `gora cache --prune`, and start over."
            ) from None

    @cached_property
    def lengths(self) -> Sequence[int]:
        """One each."""
        return array("i", [1]) * len(self)

    @property
    def largest_id(self) -> int:
        """There are no tokens."""
        return 0

    def in_epoch(self, epoch: int) -> ImageExamples:
        """The same images as an epoch of training shows them."""
        if self._augment == "none" or epoch == self._epoch:
            return self
        view = self._copy(self._indices, epoch)
        view.mixture = self.mixture
        return view

    def _with(self, indices: np.ndarray) -> ImageExamples:
        return self._copy(indices, self._epoch)

    def _copy(self, indices: np.ndarray | None, epoch: int | None) -> ImageExamples:
        return ImageExamples(
            self._store,
            choices=self.choices,
            pixels=self._pixels,
            augment=self._augment,
            seed=self._seed,
            indices=indices,
            epoch=epoch,
        )

    def _ids(self, stored: int) -> list[int]:
        batch, place = self._store.find(stored)
        ids: list[int] = batch.parts(place)[0].tolist()
        return ids
