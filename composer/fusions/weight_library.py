"""The tuned weights at hand: those in the folder `weights/` of each LoRA folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from composer.errors import ComposerError
from composer.fusions.tuned_weights import TunedWeights, read_tuned_weights

WEIGHTS_FOLDER = "weights"
"""The folder in a LoRA folder that holds tuned weights."""

Stamp = tuple[int, int]  # time of change and size


class WeightLibrary:
    """Tuned weights in LoRA folders. The folders are looked at anew each time; a file that has not
    changed is not read again.

    folders: LoRA folders; their folder `weights/` is looked into, where there is one.
    """

    def __init__(self, folders: Iterable[str | Path]) -> None:
        self.folders = tuple(dict.fromkeys(Path(folder).expanduser() for folder in folders))
        self._known: dict[Path, tuple[Stamp, TunedWeights | ComposerError]] = {}

    def all(self) -> tuple[tuple[TunedWeights, ...], tuple[str, ...]]:
        """Those that can be used, in the order of folders and file names, and what is wrong with
        the others."""
        found: list[TunedWeights] = []
        problems: list[str] = []
        for path in self._walk():
            read = self._read(path)
            if isinstance(read, TunedWeights):
                found.append(read)
            else:
                problems.append(str(read))
        return tuple(found), tuple(problems)

    def _walk(self) -> Iterator[Path]:
        for folder in self.folders:
            try:
                paths = sorted((folder / WEIGHTS_FOLDER).glob("*.json"))
            except OSError:
                continue  # none there
            yield from (path for path in paths if not path.name.startswith("."))

    def _read(self, path: Path) -> TunedWeights | ComposerError:
        try:
            home = path.parent.parent.resolve()
            if not path.resolve().is_relative_to(home) or not path.is_file():
                return ComposerError(
                    f"{path}: is no file of the LoRA folder itself. Copy its target here."
                )
            status = path.stat()
        except (OSError, RuntimeError):  # RuntimeError: a circle of links
            return ComposerError(f"{path}: cannot be read. Put the file back, or remove the link.")
        stamp = status.st_mtime_ns, status.st_size
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            try:
                read: TunedWeights | ComposerError = read_tuned_weights(path)
            except ComposerError as error:
                read = error
            known = self._known[path] = (stamp, read)
        return known[1]
