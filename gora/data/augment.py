"""What training changes of a picture, the same at every resume: drawn from seed, epoch and row alone."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from gora.recipe.data_schema import Augment

if TYPE_CHECKING:
    from PIL.Image import Image

_LEAST_AREA = 0.5
_ASPECT = 4 / 3


def augmented(picture: Image, kind: Augment, *, seed: int, epoch: int, row: int) -> Image:
    """A picture as one epoch shows it.

    Args:
        picture: decoded.
        kind: `data.augment`.
        seed: the run's.
        epoch: from 0.
        row: the number of the example.
    """
    if kind == "none":
        return picture
    # Seeded by text, which is hashed: neighbouring rows draw unrelated numbers.
    draw = random.Random(f"{seed} {epoch} {row}")
    if kind == "crop":
        picture = picture.crop(_part(picture.width, picture.height, draw))
    if draw.random() < 0.5:
        from PIL.Image import Transpose

        picture = picture.transpose(Transpose.FLIP_LEFT_RIGHT)
    return picture


def _part(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """A random part: its area at least half of the whole, its sides' ratio off by a third at most."""
    area = draw.uniform(_LEAST_AREA, 1.0)
    stretch = math.exp(draw.uniform(-0.5, 0.5) * math.log(_ASPECT))
    wide = max(1, min(width, round(width * math.sqrt(area) * stretch)))
    high = max(1, min(height, round(height * math.sqrt(area) / stretch)))
    left, top = draw.randint(0, width - wide), draw.randint(0, height - high)
    return left, top, left + wide, top + high
