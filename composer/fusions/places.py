"""Where in a picture a LoRA acts, as the user drew it."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from composer.errors import ComposerError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

SIDE = 32
_BYTES = SIDE * SIDE // 8
_ALIKE = 1.02  # how far the shape of a drawing may be from the picture's


@dataclass(frozen=True)
class Place:
    """Part of a picture: SIDE x SIDE cells over the whole of it, each of them in it or not.

    bits: a bit for each cell, row by row; the first is the highest of the first byte.
    shape: width and height of the drawing that it was read from, in pixels; None where it has none.
    """

    bits: bytes
    shape: tuple[int, int] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.bits) != _BYTES:
            raise ComposerError(
                f"A place has {SIDE} x {SIDE} cells, {_BYTES} bytes, and this one has "
                f"{len(self.bits)} bytes."
            )
        if not any(self.bits):
            raise ComposerError(
                "A place is empty: nothing of the picture is in it. Draw where the LoRA is to act, "
                "or switch the LoRA off."
            )

    @classmethod
    def read(cls, text: str) -> Place:
        """Of its text, 172 characters of base64.

        Raises:
            ComposerError: it is no such text.
        """
        try:
            bits = base64.b64decode(text[: 2 * _BYTES], validate=True)
        except (binascii.Error, ValueError):
            raise ComposerError(f"The place {text[:20]!r} … is not understood.") from None
        return cls(bits)

    @classmethod
    def rectangle(cls, left: float, top: float, right: float, bottom: float) -> Place:
        """Between these parts of the width and of the height, 0 to 1.

        Raises:
            ComposerError: they are not in order, or hold no cell.
        """
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ComposerError(
                f"The place {left:g}:{top:g}:{right:g}:{bottom:g} is not understood: write "
                "LEFT:TOP:RIGHT:BOTTOM as parts of the picture, 0:0:0.5:1 for its left half."
            )
        middles = [(number + 0.5) / SIDE for number in range(SIDE)]
        return cls.of_cells(
            [left <= x < right and top <= y < bottom for y in middles for x in middles]
        )

    @classmethod
    def of_cells(cls, cells: list[bool], shape: tuple[int, int] | None = None) -> Place:
        """Of whether each cell is in it, row by row."""
        number = int("".join("1" if cell else "0" for cell in cells), 2)
        return cls(number.to_bytes(len(cells) // 8, "big"), shape)

    @classmethod
    def drawn(cls, image: Image.Image) -> Place:
        """Where a picture is light."""
        from PIL import Image as Images

        small = image.convert("L").resize((SIDE, SIDE), Images.Resampling.BOX)
        return cls.of_cells([value >= 128 for value in small.tobytes()], image.size)

    def __str__(self) -> str:
        return base64.b64encode(self.bits).decode()

    def check_shape(self, name: str, width: int, height: int) -> None:
        """Refuse a drawing of another shape than the picture's.

        Raises:
            ComposerError: the sizes of both.
        """
        if self.shape is None:
            return
        wide, high = self.shape
        if not 1 / _ALIKE <= (wide * height) / (high * width) <= _ALIKE:
            raise ComposerError(
                f"The place of the LoRA {name!r} was drawn on {wide} x {high} pixels, and the "
                f"picture has {width} x {height}. Draw it in the picture's shape."
            )

    def cells(self) -> Tensor:
        """(SIDE, SIDE), 1 in it and 0 outside."""
        import torch

        bits = f"{int.from_bytes(self.bits, 'big'):0{8 * _BYTES}b}"
        return torch.tensor([float(bit) for bit in bits]).reshape(SIDE, SIDE)
