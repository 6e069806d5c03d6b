"""Learned gates as a way of fusing, and the LoRAs that a gate file is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from composer.errors import ComposerError
from composer.fusions.recipe import Offer, Plan, Recipe, own_file, strengths, switch
from composer.fusions.rows import ALWAYS, LoraRow, Pin, check_pins, recorded_spans

if TYPE_CHECKING:
    from composer.experts import Expert
    from composer.experts.card import Card
    from composer.experts.info import LoraInfo
    from composer.experts.library import Library
    from composer.fusions.libraries import GateCard, Libraries
    from composer.fusions.recipe import Bench


@dataclass(frozen=True, kw_only=True)
class Gates(Recipe):
    """Learned gates (MoLE) over the LoRAs that they were trained with."""

    kind = "gates"
    title = "Learned gates"
    description = "Gates that were trained for these LoRAs share them out."
    brief = "trained for just these LoRAs"
    source = "gates"
    called = "Gates"
    missing = ("The gates", "are", "have", "The weighted sum is used instead.")
    none = "none know just these LoRAs yet."
    page = "Train gates"
    gated = True
    numbers = ("strength",)

    def offer(self, card: GateCard, loras: Library[LoraInfo]) -> Offer:
        """For just the LoRAs that they were trained with."""
        found = find_loras(card, loras, wait=False).values()  # a page waits for the answer
        return Offer(
            recipe=self,
            loras=tuple(lora.name for lora in found),
            titles=tuple(lora.info.title or lora.name for lora in found),
            description=self.description,
        )

    def plan(self, rows: Iterable[LoraRow], pins: Iterable[Pin], libraries: Libraries) -> Plan:
        """All LoRAs of the gate file, by their hashes if their files were renamed; those without a
        row are on.

        Raises:
            ComposerError: one is missing or is another file, or a row or a pin is for none of them.
        """
        own = own_file(self, libraries)
        card: GateCard = own["source"]
        loras = find_loras(card, libraries.loras)
        names = {lora.name: name for name, lora in loras.items()}
        found: dict[str, LoraRow] = {}
        for row in rows:
            if row.name in names:
                found[names[row.name]] = replace(row, text_encoder=None)
            elif row.active:
                known = ", ".join(names)
                raise ComposerError(
                    f"The gates {card.name!r} do not know the LoRA {row.name!r}; they are for "
                    f"{known}. Take it out, train gates that know it, or choose the weighted sum."
                )
        pins = tuple(pins)
        check_pins(pins, list(names))
        return Plan(
            recipe=self,
            rows={name: found.get(name) or LoraRow(name=loras[name].name) for name in loras},
            paths={name: lora.path for name, lora in loras.items()},
            pins=tuple(pin.renamed(names) for pin in pins),
            **own,
        )

    def attach(self, plan: Plan, bench: Bench) -> dict[str, Expert]:
        """Put the gates into the mixture; a switch is a mask in a buffer, so nothing is read or
        attached anew for it."""
        from composer.fusions.gate_file import read_gates

        assert plan.source is not None
        file = bench.open(plan.source, read_gates)
        experts = {name: bench.read(name, plan.paths[name]) for name in sorted(plan.rows)}
        file.check_experts({name: expert.tensor_hash for name, expert in experts.items()})
        bench.place(None)
        mixture = bench.attach(file.granularity, experts)
        assert mixture is not None  # there is at least one expert
        if bench.fitted is not file:
            bench.fitted = None
            # where there is no gate every expert has its full weight, as it had in the training
            mixture.set_weights(dict.fromkeys(experts, 1.0))
            file.fit(mixture)
            bench.fitted = file
        switch(mixture, plan)
        return {name: experts[name] for name in self.active(plan)}

    def active(self, plan: Plan) -> tuple[str, ...]:
        """Those that are on."""
        return tuple(name for name, row in plan.rows.items() if row.active)

    def loras(self, plan: Plan) -> tuple[str, ...]:
        """In the order of the gate file."""
        return tuple(plan.rows[name].name for name in self.active(plan))

    def number(self, row: LoraRow) -> str:
        """A strength says nothing where it is 1."""
        return "" if row.weight == 1 else f"× {row.weight:g}"

    def off(self, fusion: Mapping[str, Any]) -> tuple[str, ...]:
        """Those that gates know and that were off."""
        return tuple(str(n) for n, on in _mapping(fusion.get("switches")).items() if not on)

    def to_record(self, plan: Plan) -> dict[str, Any]:
        """With the switches and strengths, by the names of the gate file."""
        assert plan.source is not None
        record: dict[str, Any] = {
            "name": self.kind,
            self.source: plan.source.name,
            "hash": plan.hash,
            "switches": {name: row.active for name, row in plan.rows.items()},
            **plan.spans,
        }
        if changed := strengths(plan):
            record["strengths"] = changed
        return record

    def recalled(
        self,
        fusion: Mapping[str, Any],
        rows: Sequence[LoraRow],
        pins: Sequence[Pin],
        names: Mapping[str, str],
        libraries: Libraries,
    ) -> tuple[tuple[LoraRow, ...], tuple[Pin, ...]]:
        """A row for each LoRA of the gates; without switches in the record, those that were
        recorded are on."""
        card: GateCard = libraries.of(self).find(self.file, rescan=False)
        try:
            now = {name: lora.name for name, lora in find_loras(card, libraries.loras).items()}
        except ComposerError:  # the note on the missing LoRA is the recaller's
            now = {}
        switches, given = _mapping(fusion.get("switches")), _mapping(fusion.get("strengths"))
        spans, recorded = recorded_spans(fusion), {row.name for row in rows}
        found: list[LoraRow] = []
        for expert in card.info.experts:
            name = now.get(expert.name, expert.name)
            limits = spans.get(expert.name, {})
            found.append(
                LoraRow(
                    name=name,
                    on=bool(switches.get(expert.name, name in recorded)),
                    weight=_strength(given.get(expert.name, 1.0)),
                    steps=limits.get("steps", ALWAYS),
                    depth=limits.get("depth", ALWAYS),
                )
            )
        known = {row.name for row in found}
        tools = [row for row in rows if row.name not in known and _is_tool(row.name, libraries)]
        return (*found, *tools), tuple(pin.renamed(now) for pin in pins)


def _is_tool(name: str, libraries: Libraries) -> bool:
    """Whether it is a LoRA for few steps, which no gates know."""
    try:
        return libraries.lora(name).info.tool is not None
    except ComposerError:
        return False


def find_loras(card: GateCard, library: Library[LoraInfo], *, wait: bool = True) -> dict[str, Card]:
    """The LoRA of each expert of a gate file, by its name there.

    wait: as for `match_loras`.

    Raises:
        ComposerError: which one is missing, or is another file than it was.
    """
    wanted = {expert.name: expert.tensor_hash for expert in card.info.experts}
    loras, hashes = match_loras(wanted, library, wait=wait)
    card.info.check_experts(hashes)
    return loras


def match_loras(
    tensor_hashes: Mapping[str, str], library: Library[LoraInfo], *, wait: bool = True
) -> tuple[dict[str, Card], dict[str, str]]:
    """LoRAs that go by these names, or have these tensors if their files were renamed.

    tensor_hashes: by name. What is returned has the same names: the LoRA, and the hash of its
    tensors, which is another where only the name is the same; one that is missing is in neither.
    """
    loras: dict[str, Card] = {}
    hashes: dict[str, str] = {}
    for name, wanted in tensor_hashes.items():
        try:
            lora = library.find(name, rescan=wait)
            hashes[name], loras[name] = library.hash(lora), lora
        except ComposerError:
            pass  # perhaps under another name
        if hashes.get(name) != wanted:
            taken = [lora.name for lora in loras.values()]
            same = [c for c in library.with_hash(wanted, wait=wait) if c.name not in taken]
            if same:
                hashes[name], loras[name] = wanted, same[0]
    return loras, hashes


def _strength(value: object) -> float:
    """Records come out of pictures, which anybody may have written."""
    try:
        return LoraRow(name="", weight=float(cast(Any, value))).weight
    except (OverflowError, TypeError, ValueError):
        return 1.0


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
