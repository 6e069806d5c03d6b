"""What the page and the command line ask of the studio, and which LoRAs speak in the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from composer.diffusion.prompt import LoraTag, parse_prompt
from composer.diffusion.record import LoraRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import FUSIONS, Fusion

MAX_WEIGHT = 10.0


@dataclass(frozen=True, kw_only=True)
class LoraRow:
    """One LoRA that was chosen: its weight in the U-Net, and in the text encoder if it differs."""

    name: str
    on: bool = True
    unet: float = 1.0
    text_encoder: float | None = None

    def __post_init__(self) -> None:
        for part, weight in (("", self.unet), (" for the text encoder", self.text_encoder)):
            if weight is not None and not (math.isfinite(weight) and abs(weight) <= MAX_WEIGHT):
                raise ComposerError(
                    f"The weight of the LoRA {self.name!r}{part} is {weight}: give a number "
                    f"between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}; 0.5 to 1 is usual."
                )

    @property
    def weights(self) -> dict[str, float]:
        """By part of the model."""
        words = self.unet if self.text_encoder is None else self.text_encoder
        return {"unet": self.unet, "text_encoder": words}

    @property
    def speaks(self) -> bool:
        """Switched on, with some weight somewhere."""
        return self.on and any(self.weights.values())

    @classmethod
    def of(cls, lora: LoraTag | LoraRecord) -> LoraRow:
        """The row that a tag in a prompt, or a picture's record, stands for."""
        apart = None if lora.text_encoder == lora.unet else lora.text_encoder
        return cls(name=lora.name, unet=lora.unet, text_encoder=apart)


@dataclass(frozen=True, kw_only=True)
class ComposeRequest:
    """Pictures with several LoRAs: the rows, how they are fused, and how to sample.

    The prompt may hold tags, `<lora:name:weight>`: a tag rules over the row of the same name, and
    adds a row where there is none.
    """

    request: Request = field(default_factory=Request)
    rows: tuple[LoraRow, ...] = ()
    fusion: str = "weighted"

    def __post_init__(self) -> None:
        find_fusion(self.fusion)
        names = [row.name for row in self.rows]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ComposerError(f"The LoRA {twice!r} is chosen twice. Remove one of its rows.")

    def with_rows(self, rows: Iterable[LoraRow]) -> ComposeRequest:
        """The same request with these rows instead of those of their names, and besides."""
        rows = tuple(rows)
        ruled = {row.name for row in rows}
        return replace(self, rows=(*(row for row in self.rows if row.name not in ruled), *rows))

    def merged(self, full_name: Callable[[str], str]) -> ComposeRequest:
        """The same request with the prompt's tags turned into rows.

        full_name: what the library calls a LoRA that was named more shortly; it refuses a name
            that it does not know. Rows that are silent are not looked up.
        """
        parsed = parse_prompt(self.request.prompt)
        named = [replace(row, name=full_name(row.name)) if row.speaks else row for row in self.rows]
        tagged = [replace(LoraRow.of(tag), name=full_name(tag.name)) for tag in parsed.loras]
        untagged = replace(self.request, prompt=parsed.text)
        return replace(self, request=untagged, rows=tuple(named)).with_rows(tagged)


def speaking(rows: Iterable[LoraRow]) -> dict[str, dict[str, float]]:
    """The weights by part of the LoRAs that speak, in the order of their names.

    One order whatever the order of the rows, so that the same LoRAs give the same picture bit for
    bit: sums of floating-point numbers depend on it.
    """
    return {row.name: row.weights for row in sorted(rows, key=lambda r: r.name) if row.speaks}


def find_fusion(name: str) -> Fusion:
    """The fusion of that name."""
    if name not in FUSIONS:
        raise ComposerError(f"There is no fusion {name!r}. Choose one of: {', '.join(FUSIONS)}.")
    return FUSIONS[name]
