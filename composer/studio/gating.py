"""Gates in a request: which LoRAs they are for, and who is switched off when and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from composer.errors import ComposerError
from composer.studio.limits import ALWAYS, Limits, Pin
from composer.studio.requests import GATES, ComposeRequest, LoraRow

if TYPE_CHECKING:
    from composer.experts.card import Card
    from composer.experts.library import Library
    from composer.fusions.gate_library import GateCard
    from composer.studio.placing import Placing


@dataclass(frozen=True, kw_only=True)
class Gating:
    """Gates as one picture uses them.

    loras: the LoRA of each expert, by its name in the gate file, which may be another than the
        library's.
    rows: what was said of each expert, by the same names.
    limits: where and when each speaks, by the same names.
    hash: of the gate file.
    """

    card: GateCard
    loras: Mapping[str, Card]
    rows: Mapping[str, LoraRow]
    hash: str
    limits: Limits = field(default_factory=Limits)

    @property
    def switches(self) -> dict[str, bool]:
        """Which experts are on."""
        return {name: row.speaks and row.strength != 0 for name, row in self.rows.items()}

    @property
    def strengths(self) -> dict[str, float]:
        """Of the experts that are to be louder or softer than their gates say: how many times."""
        return {name: r.strength for name, r in self.rows.items() if r.strength != 1 and r.strength}

    def told(self) -> dict[str, Any]:
        """For the picture's record."""
        told: dict[str, Any] = {
            "name": GATES,
            "gates": self.card.name,
            "hash": self.hash,
            "switches": self.switches,
            **self.limits.told(),
        }
        if strengths := self.strengths:
            told["strengths"] = strengths
        return told


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request, and the files that its names mean: LoRAs that speak, perhaps over a MixLoRA, or
    gates and theirs."""

    asked: ComposeRequest
    cards: Mapping[str, Card] = field(default_factory=dict[str, "Card"])
    gating: Gating | None = None
    placing: Placing | None = None


@dataclass(frozen=True, kw_only=True)
class GateOffer:
    """Gates that fit the model and the LoRAs at hand; `loras` by the names they have now."""

    name: str
    loras: tuple[str, ...]


def offers(
    cards: Iterable[GateCard], library: Library, model: str, model_hash: str
) -> tuple[tuple[GateOffer, ...], tuple[str, ...]]:
    """The gates that can be used, and a line for each file that cannot."""
    found: list[GateOffer] = []
    problems: list[str] = []
    for card in cards:
        try:
            if card.facts is None:
                raise ComposerError(card.error)
            card.facts.check_model(model, model_hash)
            loras = find_loras(card, library, wait=False)  # a page waits for the answer
        except ComposerError as error:
            problems.append(str(error) if card.facts is None else f"{card.path}: {error}")
        else:
            names = tuple(lora.name for lora in loras.values())
            found.append(GateOffer(name=card.name, loras=names))
    return tuple(found), tuple(problems)


def plan_gating(
    card: GateCard,
    file_hash: str,
    rows: Iterable[LoraRow],
    library: Library,
    pins: Iterable[Pin] = (),
) -> Gating:
    """Find the LoRAs of a gate file, by their hashes if their files were renamed.

    Raises:
        ComposerError: one is missing or is another file, or a row or a pin is for none of them.
    """
    loras = find_loras(card, library)
    names = {lora.name: name for name, lora in loras.items()}
    found: dict[str, LoraRow] = {}
    rows = tuple(rows)
    for row in rows:
        if row.name in names:
            found[names[row.name]] = row
        elif row.speaks:
            known = ", ".join(lora.name for lora in loras.values())
            raise ComposerError(
                f"The gates {card.name!r} do not know the LoRA {row.name!r}; they are for {known}. "
                "Take it out, train gates that know it, or choose the weighted sum."
            )
    limits = Limits.of((row for row in rows if row.name in names), pins)
    limits = limits.among(names, names)
    return Gating(
        card=card,
        loras=loras,
        rows={name: found.get(name) or LoraRow(name=lora.name) for name, lora in loras.items()},
        hash=file_hash,
        limits=limits.renamed(names),
    )


def find_loras(card: GateCard, library: Library, *, wait: bool = True) -> dict[str, Card]:
    """The LoRA of each expert of a gate file, by its name there.

    Raises:
        ComposerError: which one is missing, or is another file than it was.
    """
    wanted = {expert.name: expert.tensor_hash for expert in card.experts}
    loras, hashes = match_loras(wanted, library, wait=wait)
    if card.facts is not None:
        card.facts.check_experts(hashes)
    return loras


def match_loras(
    tensor_hashes: Mapping[str, str], library: Library, *, wait: bool = True
) -> tuple[dict[str, Card], dict[str, str]]:
    """LoRAs that go by these names, or have these tensors if their files were renamed.

    tensor_hashes: by name. What is returned has the same names: the LoRA, and the hash of its
    tensors, which is another where only the name is the same; one that is missing is in neither.
    wait: False neither scans the folders nor reads all files for one that is missing; see
        `Library.with_hash`.
    """
    loras: dict[str, Card] = {}
    hashes: dict[str, str] = {}
    for name, wanted in tensor_hashes.items():
        try:
            lora = library.find(name, rescan=wait)
            hashes[name], loras[name] = library.tensor_hash(lora), lora
        except ComposerError:
            pass  # perhaps under another name
        if hashes.get(name) != wanted:
            taken = [lora.name for lora in loras.values()]
            same = [c for c in library.with_hash(wanted, wait=wait) if c.name not in taken]
            if same:
                hashes[name], loras[name] = wanted, same[0]
    return loras, hashes


def recalled_choice(
    card: GateCard, fusion: Mapping[str, Any], speaking: Sequence[str], library: Library
) -> tuple[tuple[LoraRow, ...], tuple[Pin, ...]]:
    """The rows and pins of a picture that was made with these gates, by the LoRAs' names of now.

    fusion: of the picture's record; without switches there, those that spoke are on.
    """
    try:
        names = {name: lora.name for name, lora in find_loras(card, library).items()}
    except ComposerError:  # the note on the missing LoRA is the recaller's
        names = {}
    switches, strengths = _mapping(fusion.get("switches")), _mapping(fusion.get("strengths"))
    limits = Limits.recorded(fusion).renamed(names)
    rows: list[LoraRow] = []
    for expert in card.experts:
        name = names.get(expert.name, expert.name)
        rows.append(
            LoraRow(
                name=name,
                on=bool(switches.get(expert.name, name in speaking)),
                steps=limits.steps.get(name, ALWAYS),
                depth=limits.depth.get(name, ALWAYS),
                strength=_strength(strengths.get(expert.name, 1.0)),
            )
        )
    return tuple(rows), limits.pins


def _mapping(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


def _strength(value: object) -> float:
    """Records come out of pictures, which anybody may have written."""
    try:
        return LoraRow(name="", strength=float(cast(Any, value))).strength
    except (OverflowError, TypeError, ValueError):
        return 1.0
