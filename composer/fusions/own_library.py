"""Files of one of Composer's own kinds, by name: those in one folder of each LoRA folder."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from composer.errors import ComposerError
from composer.experts.hashes import file_hash
from composer.outside import is_unicode

Stamp = tuple[int, int]  # time of change and size
Facts = TypeVar("Facts")


@dataclass(frozen=True, kw_only=True)
class OwnCard(Generic[Facts]):
    """One file, without its tensors. `error` says why it cannot be used; None if it seems sound.

    `name` is unique in the library; `facts` are None where there is an error.
    """

    name: str
    path: Path
    facts: Facts | None = None
    error: str | None = None


Card = TypeVar("Card", bound="OwnCard[Any]")


class OwnLibrary(Generic[Card]):
    """Files by name. The folders are looked at anew each time, for trainings write into them;
    headers alone are read, and of a file that has not changed not even that.

    folders: LoRA folders; their folder `place` is looked into, where there is one.
    card: makes a card. read: what a file says of itself.
    unknown: what to say of a `{name}` that no file has; remedy: what to do then.
    """

    def __init__(
        self,
        folders: Iterable[str | Path],
        *,
        place: str,
        card: Callable[..., Card],
        read: Callable[[Path], Any],
        unknown: str,
        remedy: str,
    ) -> None:
        self.folders = tuple(dict.fromkeys(Path(folder).expanduser() for folder in folders))
        self._place, self._make, self._read = place, card, read
        self._unknown, self._remedy = unknown, remedy
        self._lent: dict[Path, None] = {}
        self._known: dict[Path, tuple[Stamp, Any, str | None]] = {}
        self._hashes: dict[Path, tuple[Stamp, str]] = {}

    def cards(self) -> tuple[Card, ...]:
        """The files, sorted by name. A broken one has a card with its error.

        Files of one name are told apart by their LoRA folders' names.
        """
        paths = list({path.resolve(): path for path in (*self._lent, *self._walk())}.values())
        plain = Counter(path.stem.casefold() for path in paths)
        named: dict[str, Path] = {}
        for path in paths:
            alone = plain[path.stem.casefold()] == 1
            name = path.stem if alone else f"{_home(path).name}/{path.stem}"
            while name in named:
                name += "'"
            named[name] = path
        return tuple(self._card(name, named[name]) for name in sorted(named))

    def lend(self, path: Path) -> Card:
        """Add one file from anywhere, for whoever may name paths.

        Raises:
            ComposerError: it is of another kind, or cannot be used.
        """
        self._lent[path.resolve()] = None
        (card,) = [card for card in self.cards() if card.path.resolve() == path.resolve()]
        if card.error is not None:
            raise ComposerError(card.error)
        return card

    def find(self, name: str) -> Card:
        """The file of that name; case does not matter.

        Raises:
            ComposerError: there is none, or it cannot be used; the message names close ones.
        """
        wanted = name.strip().removesuffix(".safetensors").casefold()
        cards = self.cards()
        for card in cards:
            if card.name.casefold() == wanted:
                if card.error is not None:
                    raise ComposerError(card.error)
                return card
        usable = {card.name.casefold(): card.name for card in cards if card.error is None}
        close = difflib.get_close_matches(wanted, usable, n=3, cutoff=0.5)
        if close:
            advice = f"Did you mean {', '.join(repr(usable[match]) for match in close)}?"
        else:
            folders = ", ".join(str(folder / self._place) for folder in self.folders) or "none"
            advice = f"{self._remedy} {folders}."
        raise ComposerError(f"{self._unknown.format(name=repr(name))} {advice}")

    def hash(self, card: Card) -> str:
        """The hash of the whole file, for its words matter as much as its tensors; empty if it is
        gone."""
        try:
            stamp = _stamp(card.path)
            known = self._hashes.get(card.path)
            if known is None or known[0] != stamp:
                known = self._hashes[card.path] = (stamp, file_hash(card.path.read_bytes()))
        except OSError:
            return ""
        return known[1]

    def with_hash(self, digits: str) -> tuple[Card, ...]:
        """The usable files whose hash begins so, however called."""
        return tuple(
            card
            for card in self.cards()
            if card.error is None and digits and self.hash(card).startswith(digits)
        )

    def _walk(self) -> Iterator[Path]:
        for folder in self.folders:
            try:
                paths = sorted((folder / self._place).iterdir())
            except OSError:
                continue  # nothing there
            for path in paths:
                hidden = path.name.startswith(".") or not is_unicode(path.name)
                if path.suffix.lower() == ".safetensors" and not hidden:
                    yield path

    def _card(self, name: str, path: Path) -> Card:
        try:
            if path not in self._lent and not path.resolve().is_relative_to(_home(path).resolve()):
                raise ComposerError(
                    f"{path}: is a link that leads out of the LoRA folder. Copy its target here."
                )
            stamp = _stamp(path)
        except ComposerError as error:
            return self._make(name=name, path=path, error=str(error))
        except (OSError, RuntimeError):  # RuntimeError: a circle of links
            told = f"{path}: cannot be read. Put the file back, or remove the link."
            return self._make(name=name, path=path, error=told)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            facts, problem = None, None
            try:
                facts = self._read(path)
            except ComposerError as error:
                problem = str(error)
            known = self._known[path] = (stamp, facts, problem)
        return self._make(name=name, path=path, facts=known[1], error=known[2])


def _home(path: Path) -> Path:
    """The LoRA folder of a file."""
    return path.parent.parent


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
