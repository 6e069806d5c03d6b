"""Pictures that say how they were made: PNG with A1111's text and our own JSON."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from composer.diffusion.parameters import from_parameters, to_parameters
from composer.diffusion.record import PictureRecord
from composer.errors import ComposerError
from composer.files import write_atomically

PARAMETERS = "parameters"
COMPOSER = "composer"


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

    The pixels are not read. A picture that says nothing is an error.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            texts: dict[Any, Any] = dict(image.info)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ComposerError(
            f"{path} cannot be read as a PNG. Use the file as it was saved."
        ) from error
    if isinstance(ours := texts.get(COMPOSER), str):
        return PictureRecord.from_json(ours)
    if isinstance(theirs := texts.get(PARAMETERS), str):
        return from_parameters(theirs)
    raise ComposerError(
        f"{path} does not say how it was made: it has no text {COMPOSER!r} or {PARAMETERS!r}. "
        "Programs that edit or send pictures often remove it; use the file as it was saved."
    )
