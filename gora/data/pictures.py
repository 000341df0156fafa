"""Decoding: bytes of a file become an RGB picture, upright and without transparency, or a reason why not."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from gora.data.rows import Unusable

if TYPE_CHECKING:
    from PIL.Image import Image

_WHITE = (255, 255, 255)


def decode(data: bytes) -> Image:
    """An RGB picture.

    Turned as its EXIF orientation says; grey becomes three equal channels, 16 bits become 8, what is transparent lies
    on white, and of an animation the first frame is taken.

    Args:
        data: the content of an image file.

    Raises:
        Unusable: it is not an image that Pillow can decode as a whole, or far too large.
    """
    import PIL.Image
    from PIL import ImageOps

    if not data:
        raise Unusable("the image is empty")
    try:
        with warnings.catch_warnings():
            # A file of a few bytes may claim to be a picture that no memory holds.
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(data)) as opened:
                opened.load()
                return _rgb(ImageOps.exif_transpose(opened))
    except PIL.UnidentifiedImageError:
        raise Unusable("not an image of a format that Pillow knows") from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise Unusable(f"the image is too large ({str(error).split(',')[0]})") from None
    except Exception as error:  # decoders raise whatever they like on broken files
        raise Unusable(f"the image cannot be decoded ({str(error) or type(error).__name__})") from None


def _rgb(picture: Image) -> Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        import PIL.Image

        layered = picture.convert("RGBA")
        ground = PIL.Image.new("RGB", layered.size, _WHITE)
        ground.paste(layered, mask=layered.getchannel("A"))
        return ground
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _eight_bits(picture: Image) -> Image:
    """Pillow would cut values above 255 off; 16 bits are scaled, as viewers show them."""
    import numpy as np
    import PIL.Image

    values = np.asarray(picture)
    scale = 257.0 if values.size and values.max() > 255 else 1.0
    return PIL.Image.fromarray((values / scale).clip(0, 255).astype(np.uint8))
