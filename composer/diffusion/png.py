"""Pictures that record how they were made: PNG with A1111's text and our own JSON.

Of other programs also JPEG and WebP, whose Exif holds what a PNG has as texts.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, PngImagePlugin

from composer.diffusion.other_programs import PARAMETERS, from_texts
from composer.diffusion.parameters import to_parameters
from composer.diffusion.record import PictureRecord
from composer.diffusion.request import MAX_SIDE
from composer.errors import ComposerError
from composer.files import write_atomically

COMPOSER = "composer"
READABLE = ("PNG", "JPEG", "WEBP")
"""The formats of pictures whose settings can be read."""
MAX_PIXELS = MAX_SIDE**2  # as many as Composer itself may paint
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    # of damaged Exif
    struct.error,
    KeyError,
    TypeError,
)
_EXIF, _USER_COMMENT = 0x8769, 0x9286
Source = str | os.PathLike[str] | BinaryIO
"""A path, or an open file; messages call the latter what `called` says."""
_NAMED = re.compile(r"(prompt|workflow|parameters):", re.IGNORECASE)


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


def read_png(path: Source, *, called: str = "") -> PictureRecord:
    """How the picture was made: from our JSON or, in another program's picture, from its texts.

    Those may stand in the Exif of a JPEG or WebP too. A picture that says nothing is an error.
    """
    return record_of(read_texts(path, called=called), called or str(path))


def read_texts(path: Source, *, called: str = "") -> dict[str, str]:
    """What a picture says in words, by the keys that a PNG of ours or of another program has.

    The pixels are read only where no text stands before them.
    """
    with open_png(path, READABLE, called=called) as image:
        texts = dict(_texts(image))
        if isinstance(image, PngImagePlugin.PngImageFile) and not texts:
            image.load()  # what stands behind the pixels is there now
            texts = dict(_texts(image))
    return texts


def record_of(texts: dict[str, str], called: str) -> PictureRecord:
    """How a picture was made that says this; ComposerError if that is nothing."""
    if COMPOSER in texts:
        return PictureRecord.from_json(texts[COMPOSER])
    record = from_texts(texts)
    if record is None:
        raise ComposerError(
            f"{called} does not say how it was made: it has no text of Composer, A1111, ComfyUI, "
            "InvokeAI, SwarmUI or Fooocus. Programs that edit or send pictures often remove it; "
            "use the file as it was saved."
        )
    return record


def _texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    """What a picture says in words, by the keys of a PNG's texts; others are left out."""
    info: dict[Any, Any] = dict(image.info)
    if isinstance(data := info.get("exif"), bytes):
        exif = Image.Exif()
        exif.load(data)
        # ComfyUI's key stands in the text, and the tag it is under says nothing
        for value in exif.values():
            if isinstance(value, str) and (named := _NAMED.match(value)):
                yield named[1].lower(), value[named.end() :].strip("\0 ")
        if comment := _comment(exif.get_ifd(_EXIF).get(_USER_COMMENT)):
            yield PARAMETERS, comment
    for key in (COMPOSER, PARAMETERS, "invokeai_metadata", "prompt", "workflow"):
        if isinstance(text := info.get(key), str) and text.strip():
            yield key, text


def _comment(value: object) -> str:
    """The text of Exif's UserComment, which names its encoding in its first eight bytes."""
    if isinstance(value, str):
        return value.strip("\0 ")
    if not isinstance(value, bytes):
        return ""
    encoding, data = value[:8], value[8:]
    if not encoding.startswith(b"UNICODE"):
        return (value if encoding.startswith(b"{") else data).decode(errors="replace").strip("\0 ")
    # Which byte comes first is not written; in most texts most letters have an empty one.
    first_empty = data[::2].count(0) >= data[1::2].count(0)
    return data.decode("utf-16-be" if first_empty else "utf-16-le", errors="replace").strip("\0 ")


@contextlib.contextmanager
def open_png(
    path: Source, formats: tuple[str, ...] = ("PNG",), *, called: str = ""
) -> Generator[Image.Image]:
    """A PNG from anywhere, its size checked before any pixel is read.

    formats: which others it may be.

    Raises:
        ComposerError: it is none, is damaged, or too large; also while its pixels are read.
    """
    called = called or str(path)
    try:
        image = Image.open(path, formats=formats)
    except _UNREADABLE as error:
        raise ComposerError(
            f"{called} cannot be read as a {' or '.join(formats)}. Use the file as it was saved."
        ) from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise ComposerError(
                f"{called} has {image.width}x{image.height} pixels; {MAX_PIXELS // 10**6} million "
                "are the most. Make it smaller."
            )
        try:
            yield image
        except ComposerError:
            raise
        except _UNREADABLE as error:
            raise ComposerError(
                f"{called} is damaged ({error}). Drop it on the page to get its settings back, and "
                "make it again."
            ) from error
