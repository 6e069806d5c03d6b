"""Training pictures and their captions: a folder becomes a list in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from composer.errors import ComposerError
from composer.outside import parse_object

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MOST_PIXELS = 64_000_000
METADATA = "metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainingPicture:
    """One picture with its caption. `weight` multiplies its loss; a prior picture shows what the
    model is to keep."""

    image: Image.Image
    caption: str
    weight: float = 1.0
    is_prior: bool = False


def read_folder(
    folder: Path, *, resolution: int, trigger: str = "", is_prior: bool = False
) -> list[TrainingPicture]:
    """All pictures of a folder in the order of their names, squared to `resolution` pixels.

    A caption comes from `metadata.jsonl` (Hugging Face's imagefolder: `file_name`, `text`), else
    from the text file of the same stem (kohya), else it is the trigger. Raises ComposerError for
    a missing or empty folder, a picture that cannot be read or is too small, a missing caption.
    """
    if not folder.is_dir():
        raise ComposerError(f"There is no folder {folder}: give the folder with the pictures.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
        remedy = (
            f"give one of its folders ({', '.join(inner[:5])})"
            if inner
            else f"put pictures ({', '.join(sorted(SUFFIXES))}) into it"
        )
        raise ComposerError(f"The folder {folder} has no pictures: {remedy}.")
    listed = _read_metadata(folder)
    captions = [_caption(path, listed, trigger) for path in paths]
    if bare := [path.name for path, caption in zip(paths, captions, strict=True) if not caption]:
        more = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        raise ComposerError(
            f"{folder / bare[0]}{more} has no caption: write one into"
            f" {Path(bare[0]).stem}.txt beside it or into {METADATA}, or give a trigger for all."
        )
    return [
        TrainingPicture(image=read_picture(path, resolution), caption=caption, is_prior=is_prior)
        for path, caption in zip(paths, captions, strict=True)
    ]


def fingerprint(pictures: Sequence[TrainingPicture]) -> str:
    """A hash of all pictures, captions and weights in their order."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr((picture.caption, picture.weight, picture.is_prior)).encode())
        digest.update(picture.image.tobytes())
    return digest.hexdigest()


def read_picture(path: Path, resolution: int) -> Image.Image:
    """The picture upright, in RGB, its centre squared to `resolution`; the size is checked in the
    header, before anything is decoded."""
    try:
        with Image.open(path) as header:
            width, height = header.size
            header.verify()
    except Exception as error:
        raise ComposerError(
            f"{path} cannot be read as a picture: save it again, or take it out of the folder."
        ) from error
    if width * height > MOST_PIXELS:
        raise ComposerError(
            f"{path} has {width}x{height} pixels, more than {MOST_PIXELS // 10**6} million:"
            " make it smaller."
        )
    if min(width, height) * 2 < resolution:
        raise ComposerError(
            f"{path} has only {width}x{height} pixels, too few to train at {resolution}: take a"
            f" picture of {resolution} or more a side, or lower the resolution."
        )
    try:
        with Image.open(path) as opened:
            return square(ImageOps.exif_transpose(opened), resolution)
    except OSError as error:
        raise ComposerError(
            f"{path} breaks off: save it again, or take it out of the folder."
        ) from error


def square(image: Image.Image, resolution: int) -> Image.Image:
    """The centre of the picture, `resolution` a side, in RGB; what is transparent becomes white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if image.size == (resolution, resolution):
        return image
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def _caption(path: Path, listed: dict[str, str], trigger: str) -> str:
    beside = path.with_suffix(".txt")
    if path.name in listed:
        return listed[path.name]
    if beside.is_file():
        try:
            return " ".join(beside.read_text(encoding="utf-8-sig").split()) or trigger
        except UnicodeDecodeError as error:
            raise ComposerError(f"{beside} is not UTF-8 text: save it as UTF-8.") from error
    return trigger


def _read_metadata(folder: Path) -> dict[str, str]:
    path = folder / METADATA
    if not path.is_file():
        return {}
    captions: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = parse_object(line)
            captions[row["file_name"]] = str(row["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ComposerError(
                f'{path}, line {number}: write {{"file_name": "name.png", "text": "caption"}}.'
            ) from error
    return captions
