"""Files of one kind in LoRA folders, and the names by which people find them.

A name that somebody types is looked up among the files found here; it is never made into a path.
"""

from __future__ import annotations

import difflib
import os
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from composer.errors import ComposerError
from composer.experts.names import expert_name
from composer.files import clean
from composer.outside import is_unicode

GATES_FOLDER, MIXLORA_FOLDER, WEIGHTS_FOLDER = "gates", "mixlora", "weights"
EMBEDDINGS_FOLDER = "embeddings"
"""The folders in a LoRA folder that hold trained gates, MixLoRAs, tuned weights and embeddings."""

Info = TypeVar("Info")
Stamp = tuple[int, int]  # time of change and size


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Info]):
    """A kind of file.

    place: the folder in a LoRA folder that holds its files, beside one another; empty for the LoRA
        folder itself and all folders in it but those of `skipped`, which must be there.
    suffixes: of the files' names.
    read: what a file says of itself, without reading all of it; ComposerError if it cannot be used.
    hash: of one file, read whole. other_hash: another that programs know such files by.
    unknown: what to say of a `{name}` that no file has; remedy: what to do then, in `{folders}`.
    blank: what stands for what a file says that cannot be used.
    beside: adds what lies beside a file, and may change while the file does not.
    by_name: whether files are sorted by name, and not in the order of the folders.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path], Info]
    hash: Callable[[Path], str]
    other_hash: Callable[[Path], str] | None = None
    unknown: str
    remedy: str
    place: str = ""
    skipped: tuple[str, ...] = ()
    blank: Callable[[Path], Info | None] = lambda _: None
    beside: Callable[[Info, Path], Info] = lambda info, _: info
    by_name: bool = True


@dataclass(frozen=True, kw_only=True)
class Entry(Generic[Info]):
    """One file of a library, which was not read whole.

    name: unique in the library.
    facts: what it says of itself. error: why it cannot be used; None if it seems sound.
    """

    name: str
    path: Path
    size: int = 0
    facts: Info | None = None
    error: str | None = None

    @property
    def info(self) -> Info:
        """What the file says of itself.

        Raises:
            ComposerError: it cannot be used, and so says nothing.
        """
        if self.facts is None:
            raise ComposerError(self.error)
        return self.facts


@dataclass
class _Known(Generic[Info]):
    """What was read of a file when it had this stamp; its hash only when somebody asked for it."""

    stamp: Stamp
    facts: Info | None
    error: str | None
    hash: str | None = None
    other_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A file, or a folder that cannot be read; the LoRA folder and the place in which it is."""

    home: Path
    root: Path
    path: Path
    error: str | None = None

    def names(self) -> tuple[str, str, str]:
        """From the shortest name to the fullest."""
        inside = self.path.relative_to(self.root).with_suffix("")
        # A file that is called as all of its kind goes by its folder's name.
        if inside.name != expert_name(self.path) and inside.parent.name:
            inside = inside.parent
        return inside.name, inside.as_posix(), f"{self.home.name}/{inside.as_posix()}"


class Library(Generic[Info]):
    """The files of one kind in several LoRA folders. Safe to use from several threads.

    Scanning reads headers only, and of a file that has not changed not even that.
    """

    def __init__(self, folders: Iterable[str | Path], kind: Kind[Info]) -> None:
        self.folders = tuple(dict.fromkeys(Path(folder).expanduser() for folder in folders))
        self.kind = kind
        self._lent: dict[Path, _Found] = {}
        # The entries, and by each spelling of a name those that are called so.
        self._seen: tuple[tuple[Entry[Info], ...], dict[str, list[Entry[Info]]]] | None = None
        self._known: dict[Path, _Known[Info]] = {}
        self._scanning = threading.RLock()
        self._reader: threading.Thread | None = None

    def scan(self) -> tuple[Entry[Info], ...]:
        """Look at the folders anew.

        A file that cannot be used has an entry with its error. Files of one name are told apart by
        as many of their folders' names as it takes.

        Raises:
            ComposerError: a LoRA folder that must be there is missing or cannot be listed.
        """
        with self._scanning:
            homes = [folder.resolve() for folder in self.folders]
            walked = {file.path: file for file in self._walk(homes)}
            targets = {_target(path) for path in walked}
            lent = {path: file for path, file in self._lent.items() if path not in targets}
            read = [
                (file, known)
                for file in (*lent.values(), *walked.values())
                if (known := self._look(file, homes)) is not None
            ]
            self._known = {file.path: known for file, known in read}
            entries: list[Entry[Info]] = []
            called: dict[str, list[Entry[Info]]] = {}
            for (file, known), name in zip(read, _tell_apart([f for f, _ in read]), strict=True):
                facts = known.facts if known.error is None else self.kind.blank(file.path)
                entry = Entry(
                    name=name,
                    path=file.path,
                    size=known.stamp[1],
                    facts=None if facts is None else self.kind.beside(facts, file.path),
                    error=known.error,
                )
                entries.append(entry)
                for spelling in {_plain(spelling) for spelling in file.names()}:
                    called.setdefault(spelling, []).append(entry)
            if self.kind.by_name:
                entries.sort(key=lambda entry: _plain(entry.name))
            self._seen = tuple(entries), called
            return self._seen[0]

    def cards(self) -> tuple[Entry[Info], ...]:
        """The entries of the last scan."""
        return self.scan() if self._seen is None else self._seen[0]

    @property
    def seen(self) -> tuple[Entry[Info], ...]:
        """The same, but none before the first scan."""
        return () if self._seen is None else self._seen[0]

    def find(self, name: str, *, rescan: bool = True) -> Entry[Info]:
        """The entry called `name`: a file's name, or `subfolder/name`; case does not matter.

        rescan: whether the folders are looked at again before giving up, where a file may have been
            added since the last scan.

        Raises:
            ComposerError: no usable file is called so, or several are; the message names those
                that come close.
        """
        self.cards()
        found = self._called(name)
        if not found and rescan:
            self.scan()
            found = self._called(name)
        if len(found) == 1:
            if found[0].error is not None:
                raise ComposerError(found[0].error)
            return found[0]
        unknown, _, nothing = self.kind.unknown.format(name=repr(name)).partition(": ")
        if found:
            choices = ", ".join(repr(entry.name) for entry in found)
            raise ComposerError(f"{unknown}: several files have this name. Say {choices}.")
        raise ComposerError(f"{unknown}: {nothing} {self._suggest(name)}")

    def lend(self, path: Path) -> Entry[Info]:
        """Add one file from anywhere, for whoever may name paths.

        Raises:
            ComposerError: it is of another kind, or cannot be used.
        """
        path = path.resolve()
        self._lent[path] = _Found(home=path.parent.parent, root=path.parent, path=path)
        (entry,) = [entry for entry in self.scan() if _target(entry.path) == path]
        if entry.error is not None:
            raise ComposerError(entry.error)
        return entry

    def hash(self, entry: Entry[Info]) -> str:
        """The hash of a file, read once while the file does not change; empty if it is gone."""
        try:
            known = self._read(entry.path)
            if known.hash is None:
                known.hash = self.kind.hash(entry.path)
        except OSError:
            return ""
        return known.hash

    def is_known_by(self, entry: Entry[Info], digits: str) -> bool:
        """Whether one of the file's hashes begins so; the other one is read only where the first
        does not."""
        if self.hash(entry).startswith(digits):
            return True
        try:
            known = self._read(entry.path)
            if known.other_hash is None and self.kind.other_hash is not None:
                known.other_hash = self.kind.other_hash(entry.path)
        except OSError:
            return False
        return (known.other_hash or "").startswith(digits)

    def known_by(self, digits: str) -> tuple[Entry[Info], ...]:
        """The usable files of the last scan of which either hash begins so; all may be read."""
        usable = (entry for entry in self.seen if digits and entry.error is None)
        return tuple(entry for entry in usable if self.is_known_by(entry, digits))

    def with_hash(self, digits: str, *, wait: bool = True) -> tuple[Entry[Info], ...]:
        """The usable files of the last scan whose hash begins so, however called.

        wait: whether every file may be read for it, which takes minutes of large folders. False
            looks only among those read by now, and has a thread read the others.
        """
        usable = [entry for entry in self.seen if digits and entry.error is None]
        if not wait and any(self._known_hash(entry) is None for entry in usable):
            self._read_on(usable)
        hashes = map(self.hash if wait else self._known_hash, usable)
        found = zip(usable, hashes, strict=True)
        return tuple(entry for entry, whole in found if (whole or "").startswith(digits))

    def clean(self) -> None:
        """Delete what was being written when an earlier process was killed."""
        for folder in self.folders:
            clean(folder / self.kind.place)

    def _known_hash(self, entry: Entry[Info]) -> str | None:
        """The hash if it has been read of the file as it is now; empty if the file is gone."""
        try:
            stamp = _stamp(entry.path)
        except OSError:
            return ""
        known = self._known.get(entry.path)
        return known.hash if known is not None and known.stamp == stamp else None

    def _read_on(self, entries: Iterable[Entry[Info]]) -> None:
        """Read these files' hashes on a thread of their own."""

        def read() -> None:
            for entry in entries:
                self.hash(entry)

        with self._scanning:
            if self._reader is None or not self._reader.is_alive():
                self._reader = threading.Thread(target=read, name="hashes of files", daemon=True)
                self._reader.start()

    def _called(self, name: str) -> list[Entry[Info]]:
        assert self._seen is not None
        wanted, (entries, called) = _plain(name.strip().removesuffix(".safetensors")), self._seen
        exact = [entry for entry in entries if _plain(entry.name) == wanted]
        return exact or called.get(wanted, [])

    def _suggest(self, name: str) -> str:
        usable = {_plain(entry.name): entry.name for entry in self.cards() if entry.error is None}
        close = difflib.get_close_matches(_plain(name), usable, n=3, cutoff=0.5)
        if close:
            return f"Did you mean {', '.join(repr(usable[match]) for match in close)}?"
        folders = ", ".join(str(folder / self.kind.place) for folder in self.folders) or "none"
        return self.kind.remedy.format(folders=folders)

    def _walk(self, homes: Sequence[Path]) -> Iterator[_Found]:
        kind = self.kind
        for home in self.folders:
            root, refused = home / kind.place, list[OSError]()
            for place, folders, files in os.walk(root, onerror=refused.append):
                here, there = Path(place), folders.copy()
                skipped = kind.skipped if here == root else ()
                folders[:] = sorted(
                    n for n in there if not (kind.place or n.startswith(".") or n in skipped)
                )
                named = files if not kind.place else files + there
                names = [name for name in named if Path(name).suffix.lower() in kind.suffixes]
                links = [name for name in folders if _leads_out(here / name, homes)]
                for name in sorted({*names, *links}):
                    # a name that is no text can neither be shown nor typed
                    if not name.startswith(".") and is_unicode(name):
                        yield _Found(home=home, root=root, path=here / name)
            for error in refused:
                path = Path(error.filename)
                if path == root and not kind.place:
                    raise ComposerError(
                        f"{home}: this LoRA folder cannot be read ({error.strerror}). Create it, "
                        "or choose another folder."
                    )
                if not isinstance(error, FileNotFoundError):  # it is there
                    problem = (
                        f"{path}: cannot be read ({error.strerror}). Check the folder's rights."
                    )
                    yield _Found(home=home, root=home, path=path, error=problem)

    def _look(self, file: _Found, homes: Sequence[Path]) -> _Known[Info] | None:
        """What a file says of itself; None if it is no longer there."""
        path, problem = file.path, file.error
        try:
            if problem is None and path not in self._lent and _leads_out(path, homes):
                problem = (
                    f"{path}: is a link that leads out of the LoRA folders. Copy its target here, "
                    "or add the target's folder as a LoRA folder."
                )
            if problem is None:
                return self._read(path)
        except (OSError, RuntimeError):  # RuntimeError: a circle of links
            if not os.path.lexists(path) and path not in self._lent:
                return None
            problem = f"{path}: cannot be read. Put the file back, or remove the link."
        return _Known((0, 0), None, problem)

    def _read(self, path: Path) -> _Known[Info]:
        stamp = _stamp(path)
        known = self._known.get(path)
        if known is not None and known.stamp == stamp:
            return known
        facts, problem = None, None
        try:
            facts = self.kind.read(path)
        except ComposerError as error:
            problem = str(error)
        known = self._known[path] = _Known(stamp, facts, problem)
        return known


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _target(path: Path) -> Path:
    """Where a path leads; itself in a circle of links."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _leads_out(path: Path, homes: Iterable[Path]) -> bool:
    target = path.resolve()
    return not any(target.is_relative_to(home) for home in homes)


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
