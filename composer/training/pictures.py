"""Training pictures and their captions: a folder becomes a list in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from composer.errors import ComposerError
from composer.outside import parse_object

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
MOST_PIXELS = 64_000_000
METADATA = "metadata.jsonl"
CAPTIONS = (".txt", ".caption")
"""Endings of a caption's file, in any case; where a picture has both, the first holds."""

# What people may take for read, and is not: pictures, captions, and lists of captions.
_OTHER_PICTURES = frozenset({".heic", ".heif", ".jp2", ".jxl", ".raw"})
_OTHER_CAPTIONS = frozenset({".cap", ".captions", ".json", ".tag", ".tags"})
_OTHER_LISTS = frozenset({"metadata.csv", "metadata.json", "metadata.parquet", "captions.json"})


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
    from the file of the same stem that ends as CAPTIONS say (kohya), else it is the trigger.

    Raises:
        ComposerError: the folder is missing or empty; a picture cannot be read, is too small or has
            no caption; pictures or captions lie there that would not be read.
    """
    files, paths = _files_in(folder)
    listed = _read_metadata(folder)
    if missing := sorted(listed.keys() - {path.name for path in paths}):
        raise ComposerError(
            f"{folder / METADATA} has a caption for {missing[0]}{_more(missing)}, which is not "
            "among the folder's pictures: put it there, or take the line out."
        )
    beside = {(path.stem, path.suffix.lower()): path for path in files}
    captions = [_caption(path, listed, beside) for path in paths]
    bare = [path for path, caption in zip(paths, captions, strict=True) if not caption]
    unread = [
        file.name
        for file in files
        if (file.name.lower() in _OTHER_LISTS and not listed)
        or (file.suffix.lower() in _OTHER_CAPTIONS and file.stem in {path.stem for path in bare})
    ]
    if bare and unread:
        raise ComposerError(
            f"{folder / unread[0]}{_more(unread)} would not be read: write captions into files "
            f"that end in {' or '.join(CAPTIONS)}, or into {METADATA}, or take it out."
        )
    if bare and not trigger:
        raise ComposerError(
            f"{bare[0]}{_more(bare)} has no caption: write one into"
            f" {bare[0].stem}.txt beside it or into {METADATA}, or give a trigger for all."
        )
    captions = [caption or trigger for caption in captions]
    return [
        TrainingPicture(image=read_picture(path, resolution), caption=caption, is_prior=is_prior)
        for path, caption in zip(paths, captions, strict=True)
    ]


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names, each of which can be read.

    Raises:
        ComposerError: the folder is missing or has none; one cannot be read.
    """
    paths = _files_in(folder)[1]
    for path in paths:
        read_picture(path)
    return paths


def _files_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """All files of a folder, and those that are pictures."""
    if not folder.is_dir():
        raise ComposerError(f"There is no folder {folder}: give the folder with the pictures.")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if other := [path.name for path in files if path.suffix.lower() in _OTHER_PICTURES]:
        raise ComposerError(
            f"{folder / other[0]}{_more(other)} is a picture of a kind that is not read: save it "
            "as PNG, or take it out of the folder."
        )
    if not paths:
        inner = sorted(path.name for path in files if path.is_dir())
        remedy = (
            f"give one of its folders ({', '.join(inner[:5])})"
            if inner
            else f"put pictures ({', '.join(sorted(SUFFIXES))}) into it"
        )
        raise ComposerError(f"The folder {folder} has no pictures: {remedy}.")
    return files, paths


def fingerprint(pictures: Sequence[TrainingPicture]) -> str:
    """A hash of all pictures, captions and weights in their order."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr((picture.caption, picture.weight, picture.is_prior)).encode())
        digest.update(picture.image.tobytes())
    return digest.hexdigest()


def read_picture(path: Path, resolution: int = 0) -> Image.Image:
    """The picture upright, in RGB, its centre squared to `resolution`, or all of it for 0; the size
    is checked in the header, before anything is decoded."""
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
            upright = ImageOps.exif_transpose(opened)
            return square(upright, resolution) if resolution else _opaque(upright)
    except OSError as error:
        raise ComposerError(
            f"{path} breaks off: save it again, or take it out of the folder."
        ) from error


def square(image: Image.Image, resolution: int) -> Image.Image:
    """The centre of the picture, `resolution` a side, in RGB; what is transparent becomes white."""
    image = _opaque(image)
    if image.size == (resolution, resolution):
        return image
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def _opaque(image: Image.Image) -> Image.Image:
    """In RGB; what is transparent becomes white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _more(names: Sequence[object]) -> str:
    """How many there are besides the first."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _caption(path: Path, listed: Mapping[str, str], beside: Mapping[tuple[str, str], Path]) -> str:
    """The picture's own caption; empty if it has none.

    beside: the folder's files by stem and ending in lower case.
    """
    if path.name in listed:
        return listed[path.name]
    for ending in CAPTIONS:
        if text := beside.get((path.stem, ending)):
            try:
                return " ".join(text.read_text(encoding="utf-8-sig").split())
            except UnicodeDecodeError as error:
                raise ComposerError(f"{text} is not UTF-8 text: save it as UTF-8.") from error
    return ""


def _read_metadata(folder: Path) -> dict[str, str]:
    """The captions by the pictures' names, which may be written as paths from the folder."""
    path = folder / METADATA
    if not path.is_file():
        return {}
    captions: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = parse_object(line)
            name = PurePosixPath(row["file_name"].replace("\\", "/")).as_posix()
            captions[name] = str(row["text"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ComposerError(
                f'{path}, line {number}: write {{"file_name": "name.png", "text": "caption"}}.'
            ) from error
    return captions
