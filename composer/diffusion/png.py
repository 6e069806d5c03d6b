"""Pictures that record how they were made: PNG with A1111's text and our own JSON."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from composer.diffusion.parameters import from_parameters, to_parameters
from composer.diffusion.record import PictureRecord
from composer.diffusion.request import MAX_SIDE
from composer.errors import ComposerError
from composer.files import write_atomically

PARAMETERS = "parameters"
COMPOSER = "composer"
MAX_PIXELS = MAX_SIDE**2  # as many as Composer itself may paint
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def write_png(path: str | os.PathLike[str], image: Image.Image, record: PictureRecord) -> Path:
    """Write ``image`` with ``record`` to ``path``; at any moment the file is whole or not there."""
    target = Path(path)
    texts = PngImagePlugin.PngInfo()
    texts.add_text(PARAMETERS, to_parameters(record))
    texts.add_text(COMPOSER, record.to_json())
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", pnginfo=texts)
    write_atomically(target, encoded.getvalue())
    return target


def read_png(path: str | os.PathLike[str]) -> PictureRecord:
    """How the picture was made: from our JSON or, in another program's picture, from A1111's text.

    The pixels are read only where no text stands before them. A picture that says nothing is an
    error.
    """
    with open_png(path) as image:
        texts: dict[Any, Any] = dict(image.info)
        if not texts.keys() & {COMPOSER, PARAMETERS}:
            image.load()
            texts = dict(image.text)
    if isinstance(ours := texts.get(COMPOSER), str):
        return PictureRecord.from_json(ours)
    if isinstance(theirs := texts.get(PARAMETERS), str):
        return from_parameters(theirs)
    raise ComposerError(
        f"{path} does not say how it was made: it has no text {COMPOSER!r} or {PARAMETERS!r}. "
        "Programs that edit or send pictures often remove it; use the file as it was saved."
    )


@contextlib.contextmanager
def open_png(path: str | os.PathLike[str]) -> Generator[PngImagePlugin.PngImageFile]:
    """A PNG from anywhere, its size checked before any pixel is read.

    Raises:
        ComposerError: it is no PNG, is damaged, or too large; also while its pixels are read.
    """
    try:
        image = Image.open(path, formats=["PNG"])
    except _UNREADABLE as error:
        raise ComposerError(
            f"{path} cannot be read as a PNG. Use the file as it was saved."
        ) from error
    with image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        if image.width * image.height > MAX_PIXELS:
            raise ComposerError(
                f"{path} has {image.width}x{image.height} pixels; {MAX_PIXELS // 10**6} million are"
                " the most. Make it smaller."
            )
        try:
            yield image
        except ComposerError:
            raise
        except _UNREADABLE as error:
            raise ComposerError(
                f"{path} is damaged ({error}). Drop it on the page to get its settings back, and "
                "make it again."
            ) from error
