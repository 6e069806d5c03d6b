"""Textual inversion (arXiv 2208.01618): vectors that stand for one word of a prompt.

A file of its own holds one word, which is called as the file is; a LoRA file may hold several
beside the LoRA, under their own names. As in A1111, a word stands for its vectors wherever it is
written, in any case; `embedding:word`, `<embedding:word>`, `<embed:word>` and `<word>` are other
programs' ways to write it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from composer.errors import ComposerError
from composer.experts.formats import find_embeddings
from composer.experts.hashes import file_hash, file_hash_of
from composer.experts.header import Header, parse_header, read_header
from composer.experts.library import EMBEDDINGS_FOLDER, Entry, Kind
from composer.experts.magic import REFUSED_SUFFIXES
from composer.experts.pickles import open_pickle
from composer.families import named
from composer.files import write_atomically

if TYPE_CHECKING:  # prompts are searched where PyTorch is not loaded yet
    from torch import Tensor

Sizes = Mapping[str, tuple[int, int]]
"""How many vectors and how wide, by the part of the model that reads them; "" where the file does
not say which one does."""

_DTYPES = ("F16", "BF16", "F32", "F64")
_ENDING = r"(?:\.(?:safetensors|pt|bin))?"
_ASKED = re.compile(
    r"<embed(?:ding)?:(?P<tag>[^<>]*)>|(?<!\w)embedding:(?P<word>[^\s,<>()\[\]|:]+)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """A word and its vectors.

    name: the word. path, sha256: of the file that holds it.
    vectors: (count, width), float32, by part as for `Sizes`; equally many for each.
    """

    name: str
    path: Path
    vectors: Mapping[str, Tensor]
    sha256: str = ""

    @property
    def count(self) -> int:
        """How many tokens of a prompt it takes."""
        return len(next(iter(self.vectors.values())))


# --- files


def read_sizes(path: Path) -> Sizes:
    """What a file says of its embedding; its header alone is read.

    Raises:
        ComposerError: it is a pickle, damaged, or holds no embedding.
    """
    if path.suffix.lower() in REFUSED_SUFFIXES:
        raise ComposerError(
            f"{path}: is a pickle by its name, which can run any program when it is opened, so "
            "embeddings are read from .safetensors alone. `composer convert` makes one of it, with "
            "PyTorch building tensors and nothing else."
        )
    header = read_header(path)
    return _sizes(header, _own_keys(header))


def read_embedding(path: Path, name: str) -> Embedding:
    """The embedding in a file of its own, by this name.

    Raises:
        ComposerError: as `read_sizes`, or a number of it is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    read_sizes(path)  # first: what is no such file is not read whole
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ComposerError(f"{path}: cannot be read ({error}). Check its rights.") from error
    # once more, for the file may have been replaced meanwhile
    header = parse_header(data, size=len(data), path=path)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise _broken(header, f"is refused by the safetensors library ({error})") from error
    vectors = _vectors(header, _own_keys(header), tensors)
    return Embedding(name=name, path=path, vectors=vectors, sha256=file_hash(data))


def convert_embedding(source: Path, output: Path) -> Path:
    """Write the embedding in a pickle, as A1111 (`.pt`) and diffusers (`.bin`) save them, to
    `output`, which is returned.

    Raises:
        ComposerError: it holds anything but tensors and plain values, or no embedding.
    """
    from safetensors.torch import save
    from torch import Tensor

    if output.suffix != ".safetensors":
        raise ComposerError(f"{output}: an embedding's name must end in .safetensors.")
    found: Any = open_pickle(source)
    if isinstance(found, dict):
        found = cast("dict[str, Any]", found).get("string_to_param", found)
    values = cast("dict[str, Any]", found) if isinstance(found, dict) else {"": found}
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    if len(tensors) == 1:  # under its token's name, or `*`
        tensors = {"emb_params": next(iter(tensors.values()))}
    data = save({key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()})
    header = replace(parse_header(data, size=len(data), path=output), path=source)
    _vectors(header, _own_keys(header), tensors)
    write_atomically(output, data)
    return output


def embeddings_within(
    header: Header, tensors: Mapping[str, Tensor], sha256: str
) -> tuple[Embedding, ...]:
    """Those that a LoRA file holds beside the LoRA.

    Raises:
        ComposerError: one of them is damaged.
    """
    keys: dict[str, list[str]] = {}
    for key, word in find_embeddings(header.tensors).items():
        keys.setdefault(word, []).append(key)
    return tuple(
        Embedding(
            name=word, path=header.path, vectors=_vectors(header, own, tensors), sha256=sha256
        )
        for word, own in keys.items()
    )


def _own_keys(header: Header) -> list[str]:
    """The tensors of the one embedding in a file: A1111's and kohya's `emb_params`, one for each
    text encoder of SDXL, or diffusers' one tensor under the name of its token."""
    keys = list(header.tensors)
    found = find_embeddings(keys)
    if keys and (len(keys) == 1 or (len(found) == len(keys) and all(map(_part, keys)))):
        return keys
    some = ", ".join(map(repr, keys[:3])) or "none"
    raise ComposerError(
        f"{header.path}: holds no embedding in a form that Composer knows (emb_params, clip_l and "
        f"clip_g, or one tensor by its token's name); its first tensors: {some}. LoRAs belong into "
        "the LoRA folder itself."
    )


def _part(key: str) -> str:
    """The part that reads a tensor, by the last of its name; empty where that says none."""
    return named("comfyui").get(key.rpartition(".")[2], "")


def _sizes(header: Header, keys: Iterable[str]) -> Sizes:
    sizes: dict[str, tuple[int, int]] = {}
    for key in keys:
        entry, part = header.tensors[key], _part(key)
        shape = entry.shape if len(entry.shape) == 2 else (1, *entry.shape)
        if len(shape) != 2 or not all(shape):
            raise _broken(header, f"has no vectors in {key!r}, whose shape is {list(entry.shape)}")
        if entry.dtype not in _DTYPES:
            raise _broken(header, f"stores {key!r} as {entry.dtype}; save it as F16, BF16 or F32")
        if part in sizes:
            raise _broken(header, f"has an embedding twice, also as {key!r}")
        sizes[part] = shape
    if len({count for count, _ in sizes.values()}) > 1:
        counts = " and ".join(str(count) for count, _ in sizes.values())
        raise _broken(header, f"has {counts} vectors for the text encoders, which must be as many")
    return sizes


def _vectors(
    header: Header, keys: Iterable[str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    keys = list(keys)
    sizes = _sizes(header, keys)
    vectors: dict[str, Tensor] = {}
    for key in keys:
        vectors[_part(key)] = tensors[key].float().reshape(sizes[_part(key)])
        if not vectors[_part(key)].isfinite().all():
            raise _broken(
                header, f"has NaN or infinite numbers in {key!r}: its training went wrong"
            )
    return vectors


def _broken(header: Header, reason: str) -> ComposerError:
    return ComposerError(f"{header.path}: {reason}. Download or train the embedding again.")


EMBEDDINGS = Kind(
    place=EMBEDDINGS_FOLDER,
    suffixes=(".safetensors", *REFUSED_SUFFIXES),
    read=read_sizes,
    hash=file_hash_of,
    unknown="Embedding {name}: there is no such embedding.",
    remedy="Put its .safetensors file into {folders}, or take it out of the prompt.",
)
EmbeddingCard = Entry[Sizes]


# --- prompts


def named_in(texts: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """Which of these words prompts hold."""
    names = tuple(names)
    found = (name for text in texts for _, name in split(_plain(text), names) if name)
    return tuple(dict.fromkeys(found))


def asked_in(texts: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """What prompts call an embedding and is none of these words."""
    names, found = tuple(names), list[str]()
    for text in texts:
        rest = " ".join(before for before, _ in split(_plain(text), names))
        found += [(match["word"] or match["tag"]).strip() for match in _ASKED.finditer(rest)]
    return tuple(dict.fromkeys(found))


def split(text: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """A text as stretches, each with the word after it, of these; empty after the last one."""
    names = tuple(names)
    spelled, place = {_key(name): name for name in names}, 0
    for match in _pattern(names).finditer(text) if names else ():
        name = spelled.get(_key(next(filter(None, match.groups()))))
        if name is not None:  # letters that are alike only to regular expressions are not
            yield text[place : match.start()], name
            place = match.end()
    yield text[place:], ""


def _plain(text: str) -> str:
    """A prompt without the signs before brackets that belong to the text."""
    return re.sub(r"\\(.)", r"\1", text)


def _key(name: str) -> str:
    return " ".join(name.casefold().split())


@lru_cache(maxsize=8)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the words in any way to write it, the longest first; whole words of letters and
    digits only."""
    words = [
        (r"(?<![^\W_])" if name[0].isalnum() else "")
        + r"\s+".join(map(re.escape, name.split()))
        + (r"(?![^\W_])" if name[-1].isalnum() else "")
        for name in sorted(names, key=len, reverse=True)
    ]
    any_of = "|".join(words)
    return re.compile(
        rf"<(?:embed(?:ding)?:)?\s*({any_of}){_ENDING}\s*>|(?<!\w)embedding:({any_of}){_ENDING}"
        rf"|({any_of})",
        re.IGNORECASE,
    )
