"""What the page and the command line ask of the studio, and which LoRAs speak in the end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from composer.diffusion.prompt import MAX_LORAS, LoraTag, parse_prompt
from composer.diffusion.record import LoraRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import FUSIONS, Fusion
from composer.studio.limits import ALWAYS, MAX_WEIGHT, Limits, Pin

GATES = "gates"  # what a picture's record calls the fusion by learned gates
MIXLORA = "mixlora"  # and a MixLoRA, with LoRAs added to it by their weights


@dataclass(frozen=True, kw_only=True)
class LoraRow:
    """One LoRA that was chosen: its weight in the U-Net, and in the text encoder if it differs.

    steps: from which part of the sampling to which it speaks, 0 to 1.
    depth: from which part of the U-Net's units to which, in the order it runs them, it speaks,
        0 to 1.
    strength: how many times what learned gates say of it counts; they alone heed it.
    """

    name: str
    on: bool = True
    unet: float = 1.0
    text_encoder: float | None = None
    steps: tuple[float, float] = ALWAYS
    depth: tuple[float, float] = ALWAYS
    strength: float = 1.0

    def __post_init__(self) -> None:
        for part, (start, end) in (("steps", self.steps), ("depth", self.depth)):
            if not 0.0 <= start < end <= 1.0:
                raise ComposerError(
                    f"The LoRA {self.name!r} is to speak from {start:g} to {end:g} of the {part}: "
                    "give a start and a later end, from 0 to 1."
                )
        for part, weight in (
            ("", self.unet),
            (" for the text encoder", self.text_encoder),
            (" under gates", self.strength),
        ):
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
        return cls(name=lora.name, unet=lora.unet, text_encoder=apart, strength=lora.unet)


@dataclass(frozen=True, kw_only=True)
class ComposeRequest:
    """Pictures with several LoRAs: the rows, how they are fused, and how to sample.

    The prompt may hold tags, `<lora:name:weight>`: a tag rules over the row of the same name, and
    adds a row where there is none.

    gates: the name of a gate file, whose gates then fuse its LoRAs in place of the fusion. Rows say
        which of them are switched off and how strong they are; one without a row is on.
    mixlora: the name of a MixLoRA. It stands in the model as if the model knew what it has learned;
        rows are LoRAs that are added to it by their weights, and there need be none.
    gate_map: whether what the gates say is kept beside each picture.
    pins: weights of units by hand, whatever the gates or the fusion say there; the later one holds
        where two are for one unit.
    """

    request: Request = field(default_factory=Request)
    rows: tuple[LoraRow, ...] = ()
    fusion: str = "weighted"
    gates: str = ""
    mixlora: str = ""
    gate_map: bool = False
    pins: tuple[Pin, ...] = ()

    def __post_init__(self) -> None:
        find_fusion(self.fusion)
        if self.mixlora and (self.gates or self.fusion != "weighted"):
            raise ComposerError(
                "A MixLoRA decides by its own routers, and LoRAs are added to it by their weights: "
                "leave out the gates or the other fusion, or the MixLoRA."
            )
        if len(self.rows) > MAX_LORAS:
            raise ComposerError(
                f"{len(self.rows)} LoRAs are chosen; {MAX_LORAS} are the most. Take some of them "
                "out."
            )
        count = Counter(row.name for row in self.rows)
        if twice := next((name for name, times in count.items() if times > 1), None):
            raise ComposerError(f"The LoRA {twice!r} is chosen twice. Remove one of its rows.")

    @property
    def speaking(self) -> dict[str, dict[str, float]]:
        """The weights by part of the LoRAs that speak, also where pins alone let them, in the order
        of their names.

        One order whatever the order of the rows, so that the same LoRAs give the same picture bit
        for bit: sums of floating-point numbers depend on it.
        """
        pinned = {name for pin in self.pins for name, weight in pin.weights.items() if weight}
        rows = [row for row in self.rows if row.speaks or (row.on and row.name in pinned)]
        return {row.name: row.weights for row in sorted(rows, key=lambda row: row.name)}

    @property
    def limits(self) -> Limits:
        """Where and when the LoRAs speak."""
        return Limits.of(self.rows, self.pins)

    def with_rows(self, rows: Iterable[LoraRow]) -> ComposeRequest:
        """The same request with these rows instead of those of their names, and besides."""
        rows = tuple(rows)
        ruled = {row.name for row in rows}
        return replace(self, rows=(*(row for row in self.rows if row.name not in ruled), *rows))

    def merged(self, full_name: Callable[[str], str]) -> ComposeRequest:
        """The same request with the prompt's tags turned into rows.

        full_name: what the library calls a LoRA that was named more shortly; it refuses a name
            that it does not know. Rows that are silent are not looked up, unless gates are asked to
            leave them out, or pins may let them speak.
        """
        parsed = parse_prompt(self.request.prompt)
        named = [
            replace(row, name=full_name(row.name)) if row.speaks or self.gates or self.pins else row
            for row in self.rows
        ]
        limited = {row.name: {"steps": row.steps, "depth": row.depth} for row in named}
        tagged: list[LoraRow] = []
        for tag in parsed.loras:
            name = full_name(tag.name)
            tagged.append(replace(LoraRow.of(tag), name=name, **limited.get(name, {})))
        untagged = replace(self.request, prompt=parsed.text)
        pins = tuple(
            Pin(pin.units, {full_name(name): weight for name, weight in pin.weights.items()})
            for pin in self.pins
        )
        asked = replace(self, request=untagged, rows=tuple(named), pins=pins)
        return asked.with_rows(tagged)

    def without_gates(self) -> ComposeRequest:
        """The same LoRAs fused by the request's fusion alone, and no unit pinned: those of gates
        may be called otherwise."""
        return replace(self, gates="", mixlora="", gate_map=False, pins=())


def find_fusion(name: object) -> Fusion:
    """The fusion of that name."""
    if not isinstance(name, str) or name not in FUSIONS:  # pages and pictures may hold anything
        raise ComposerError(f"There is no fusion {name!r}. Choose one of: {', '.join(FUSIONS)}.")
    return FUSIONS[name]
