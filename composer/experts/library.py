"""The folders of LoRA files, and the names by which people find them.

A name that somebody types is looked up among the files found here; it is never made into a path.
"""

from __future__ import annotations

import difflib
import os
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from composer.errors import ComposerError
from composer.experts.card import Card
from composer.experts.hashes import tensor_hash_of
from composer.experts.header import read_header
from composer.experts.info import LoraInfo
from composer.experts.magic import REFUSED_SUFFIXES
from composer.experts.metadata import read_info
from composer.experts.names import expert_name
from composer.experts.sidecar import with_sidecars
from composer.experts.supported import check_supported
from composer.outside import is_unicode

GATES_FOLDER = "gates"
"""The folder in a LoRA folder that holds trained gates and no LoRAs."""

MIXLORA_FOLDER = "mixlora"
"""The folder in a LoRA folder that holds MixLoRAs and no plain LoRAs."""

_SUFFIXES = (".safetensors", *REFUSED_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A file, and the library's folder in which it was found."""

    folder: Path
    path: Path

    def names(self) -> tuple[str, str, str]:
        """From the shortest name to the fullest."""
        inside = self.path.relative_to(self.folder).with_suffix("")
        # A file that is called as all of its kind goes by its folder's name.
        if inside.name != expert_name(self.path) and inside.parent.name:
            inside = inside.parent
        return inside.name, inside.as_posix(), f"{self.folder.name}/{inside.as_posix()}"


class Library:
    """LoRA files in several folders and the folders within them.

    Scanning reads headers only, and of a file that has not changed not even that.
    """

    def __init__(self, folders: Iterable[str | Path]) -> None:
        self.folders = tuple(dict.fromkeys(Path(folder).expanduser() for folder in folders))
        self._cards: tuple[Card, ...] | None = None
        self._named: dict[str, list[Card]] = {}
        # Path → (modified, size) when it was read, and what was read.
        self._headers: dict[Path, tuple[tuple[int, int], LoraInfo, str | None]] = {}
        self._hashes: dict[Path, tuple[tuple[int, int], str]] = {}
        self._scanning = threading.RLock()
        self._reader: threading.Thread | None = None

    def scan(self) -> tuple[Card, ...]:
        """Look at the folders anew; cards sorted by name.

        A file that cannot be used gets a card with its error. Files of one name are told apart by
        as many of their folders' names as it takes.

        Raises:
            ComposerError: a folder is missing or cannot be listed.
        """
        with self._scanning:
            files = list(
                {file.path: file for root in self.folders for file in self._walk(root)}.values()
            )
            named: dict[str, list[Card]] = {}
            cards: list[Card] = []
            for file, name in zip(files, _tell_apart(files), strict=True):
                card = self._card(file.path, name)
                cards.append(card)
                for spelling in {_plain(spelling) for spelling in file.names()}:
                    named.setdefault(spelling, []).append(card)
            self._cards = tuple(sorted(cards, key=lambda card: _plain(card.name)))
            self._named = named
            return self._cards

    def cards(self) -> tuple[Card, ...]:
        """The cards of the last scan."""
        return self.scan() if self._cards is None else self._cards

    def find(self, name: str, *, rescan: bool = True) -> Card:
        """The card called `name`: a file's name, or `subfolder/name`; case does not matter.

        rescan: whether the folders are looked at again before giving up, where a file may have been
            added since the last scan.

        Raises:
            ComposerError: no usable file is called so, or several are; the message names those
                that come close.
        """
        found = self._called(name, self.cards())
        if not found and rescan:
            found = self._called(name, self.scan())
        if len(found) == 1:
            if found[0].error is not None:
                raise ComposerError(found[0].error)
            return found[0]
        if found:
            choices = ", ".join(repr(card.name) for card in found)
            raise ComposerError(f"LoRA {name!r}: several files have this name. Say {choices}.")
        raise ComposerError(f"LoRA {name!r}: there is no such LoRA. {self._suggest(name)}")

    def tensor_hash(self, card: Card) -> str:
        """The hash of a file's tensors, read once while the file does not change; empty if it is
        gone. What the metadata claims is not asked: trainers have written the same for all files.
        """
        found = self._known_hash(card)
        if found is not None:
            return found
        try:
            status = card.path.stat()
            found = tensor_hash_of(card.path)
        except OSError:
            return ""
        self._hashes[card.path] = ((status.st_mtime_ns, status.st_size), found)
        return found

    def with_hash(self, digits: str, *, wait: bool = True) -> tuple[Card, ...]:
        """The usable LoRAs of the last scan whose tensors' hash begins so, however called.

        wait: whether every file may be read for it, which takes minutes of large folders. False
            looks only among those read by now, and has a thread read the others.
        """
        usable = [card for card in self._cards or () if card.error is None]
        if not wait and any(self._known_hash(card) is None for card in usable):
            self._read_on(usable)
        hashes = map(self.tensor_hash if wait else self._known_hash, usable)
        return tuple(c for c, found in zip(usable, hashes, strict=True) if _begins(found, digits))

    def _known_hash(self, card: Card) -> str | None:
        """The hash if it has been read of the file as it is now; empty if the file is gone."""
        try:
            status = card.path.stat()
        except OSError:
            return ""
        known = self._hashes.get(card.path)
        same = known is not None and known[0] == (status.st_mtime_ns, status.st_size)
        return known[1] if known is not None and same else None

    def _read_on(self, cards: Iterable[Card]) -> None:
        """Read these files' hashes on a thread of their own."""

        def read() -> None:
            for card in cards:
                self.tensor_hash(card)

        with self._scanning:
            if self._reader is None or not self._reader.is_alive():
                self._reader = threading.Thread(target=read, name="LoRA hashes", daemon=True)
                self._reader.start()

    def _called(self, name: str, cards: Iterable[Card]) -> list[Card]:
        wanted = _plain(name.strip().removesuffix(".safetensors"))
        return [card for card in cards if _plain(card.name) == wanted] or self._named.get(
            wanted, []
        )

    def _suggest(self, name: str) -> str:
        usable = {_plain(card.name): card.name for card in self.cards() if card.error is None}
        close = difflib.get_close_matches(_plain(name), usable, n=3, cutoff=0.5)
        if close:
            return f"Did you mean {', '.join(repr(usable[match]) for match in close)}?"
        folders = ", ".join(map(str, self.folders)) or "none"
        return f"Put its .safetensors file into one of the LoRA folders ({folders})."

    def _walk(self, folder: Path) -> Iterator[_Found]:
        def refuse(error: OSError) -> None:
            raise ComposerError(
                f"{folder}: this LoRA folder cannot be read ({error.strerror}). Create it, or "
                "choose another folder."
            )

        for place, folders, files in os.walk(folder, onerror=refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if Path(place) == folder:
                folders[:] = [n for n in folders if n not in (GATES_FOLDER, MIXLORA_FOLDER)]
            links = [name for name in folders if self._leads_out(Path(place, name))]
            loras = [name for name in files if Path(name).suffix.lower() in _SUFFIXES]
            for name in sorted(links + loras):
                # a name that is no text can neither be shown nor typed
                if not name.startswith(".") and is_unicode(name):
                    yield _Found(folder=folder, path=Path(place, name))

    def _leads_out(self, path: Path) -> bool:
        target = path.resolve()
        return not any(target.is_relative_to(folder.resolve()) for folder in self.folders)

    def _card(self, path: Path, name: str) -> Card:
        try:
            if self._leads_out(path):
                raise ComposerError(
                    f"{path}: is a link that leads out of the LoRA folders. Copy its target here, "
                    "or add the target's folder as a LoRA folder."
                )
            status = path.stat()
        except (ComposerError, OSError, RuntimeError) as error:  # RuntimeError: a circle of links
            info = LoraInfo(title=name)
            return Card(name=name, path=path, info=info, size=0, error=str(error))
        info, error = self._read(path, (status.st_mtime_ns, status.st_size))
        return Card(
            name=name,
            path=path,
            info=with_sidecars(info, path),
            size=status.st_size,
            error=error,
        )

    def _read(self, path: Path, version: tuple[int, int]) -> tuple[LoraInfo, str | None]:
        known = self._headers.get(path)
        if known is not None and known[0] == version:
            return known[1:]
        info, error = LoraInfo(title=expert_name(path)), None
        try:
            header = read_header(path)
            info = read_info(header)
            check_supported(header)
        except ComposerError as problem:
            error = str(problem)
        self._headers[path] = (version, info, error)
        return info, error


def _begins(found: str | None, digits: str) -> bool:
    return found is not None and found.startswith(digits)


def _plain(name: str) -> str:
    """A name as it is compared: without case or space about it, in one spelling of accents."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def _tell_apart(files: Sequence[_Found]) -> list[str]:
    """The shortest names by which no two files are called alike."""
    levels = [0] * len(files)
    for _ in range(2):
        names = [file.names()[level] for file, level in zip(files, levels, strict=True)]
        count = Counter(map(_plain, names))
        levels = [
            level + (count[_plain(name)] > 1) for level, name in zip(levels, names, strict=True)
        ]
    names = [file.names()[level] for file, level in zip(files, levels, strict=True)]
    seen = Counter[str]()
    for index, name in enumerate(names):
        seen[_plain(name)] += 1
        if seen[_plain(name)] > 1:
            names[index] = f"{name} ({seen[_plain(name)]})"
    return names
