"""Put stand-ins in the place of modules, and the modules back; the base of the handles on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from torch import nn

Handle = TypeVar("Handle", bound="Attached")


@dataclass(frozen=True)
class Replacement:
    """A child of `parent` called `name`: `base` stood there, `stand_in` stands there now."""

    parent: nn.Module
    name: str
    base: nn.Module
    stand_in: nn.Module

    def do(self) -> None:
        setattr(self.parent, self.name, self.stand_in)

    def undo(self) -> None:
        setattr(self.parent, self.name, self.base)


def replace(
    models: Mapping[str, nn.Module], stand_ins: Mapping[nn.Module, nn.Module]
) -> list[Replacement]:
    """Put stand-ins in the place of their bases, under every name that a base goes by.

    stand_ins: by the module that stands there now.
    """
    replacements = [
        Replacement(parent, name, child, stand_ins[child])
        for model in models.values()
        for parent in model.modules()
        for name, child in parent._modules.items()  # pyright: ignore[reportPrivateUsage]
        if child is not None and child in stand_ins
    ]
    done: list[Replacement] = []
    try:
        for replacement in replacements:
            done.append(replacement)
            replacement.do()
    except BaseException:
        undo(done)
        raise
    return replacements


def undo(replacements: list[Replacement]) -> None:
    """Put the bases back, the last replaced first; the list is empty afterwards."""
    while replacements:
        replacements.pop().undo()


class Attached:
    """What was attached to models by replacing modules; a context manager that detaches at its
    end."""

    def __init__(self, replacements: list[Replacement]) -> None:
        self._replacements = replacements

    def detach(self) -> None:
        """Put the original modules back. The handle is of no more use; again is harmless."""
        undo(self._replacements)

    def __enter__(self: Handle) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()
