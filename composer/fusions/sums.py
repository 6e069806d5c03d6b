"""Sums of LoRAs with constant weights, and what stands beside or below one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from composer.errors import ComposerError
from composer.experts.triggers import without_words
from composer.fusions.recipe import Offer, Plan, Recipe, Weight, own_file, switch
from composer.fusions.rows import LoraRow, Pin, check_pins
from composer.settings import setting

if TYPE_CHECKING:
    from composer.experts import Expert
    from composer.experts.info import LoraInfo
    from composer.experts.library import Library
    from composer.fusions.libraries import Libraries, MixLoraCard
    from composer.fusions.recipe import Bench
    from composer.mixture import Granularity, Mixture

MIXLORA = "https://arxiv.org/abs/2404.15159"


@dataclass(frozen=True, kw_only=True)
class Sum(Recipe):
    """W + sum_i w_i dW_i (MoLE, equation 1, with weights): the user's weights as they are."""

    kind = "weighted"
    title = "Weighted sum"
    description = "Each LoRA is added with its own weight, exactly as other programs do it."
    brief = "each in full, added up"
    by_blocks = True

    @classmethod
    def evenly(cls, count: int) -> tuple[str, str] | None:
        """Each in full."""
        return "Weights of 1", cls.brief

    def weigh(self, weights: Mapping[str, Weight]) -> dict[str, Weight]:
        """From the weights that a user gives to those of a constant gate, by expert."""
        return dict(weights)

    def plan(self, rows: Iterable[LoraRow], pins: Iterable[Pin], libraries: Libraries) -> Plan:
        """The LoRAs that are active, or to which a pin gives some weight."""
        rows, pins = tuple(rows), tuple(pins)
        check_pins(pins, [row.name for row in rows])
        pinned = {name for pin in pins for name, weight in pin.weights.items() if weight}
        chosen = {r.name: r for r in rows if r.active or (r.on and r.name in pinned)}
        self.check_count(tuple(chosen))
        return Plan(
            recipe=self,
            rows=chosen,
            paths={name: libraries.lora(name).path for name in chosen},
            pins=tuple(pin.among(sorted(chosen)) for pin in pins) if chosen else (),
        )

    def attach(self, plan: Plan, bench: Bench) -> dict[str, Expert]:
        """Constant weights, one order of the LoRAs whatever the order of the rows, so that the same
        LoRAs give the same picture bit for bit: sums of floating-point numbers depend on it."""
        experts = {name: bench.read(name, plan.paths[name]) for name in sorted(plan.rows)}
        bench.place(cast("MixLoraCard | None", plan.source))
        mixture = bench.attach(self.granularity(plan), experts)
        if mixture is not None:
            bench.fitted = None
            weights = self.weigh({name: plan.rows[name].weights for name in experts})
            weights = self.weigh_experts(weights, experts, bench)
            mixture.set_weights(
                {
                    name: {part: _of_part(weight, part) for part in mixture.models}
                    for name, weight in weights.items()
                }
            )
            self.set_gates(mixture, weights)
            switch(mixture, plan)
        return {name: experts[name] for name in plan.rows}

    def weigh_experts(
        self, weights: dict[str, Weight], experts: Mapping[str, Expert], bench: Bench
    ) -> dict[str, Weight]:
        """The weights, where they depend on what the experts hold."""
        return weights

    def granularity(self, plan: Plan) -> Granularity:
        """The units that the weights need."""
        return "block" if plan.by_unit else "network"

    def set_gates(self, mixture: Mixture, weights: Mapping[str, Weight]) -> None:
        """Gates beside the constant weights; none for a sum."""

    def outcome(self, rows: Sequence[LoraRow]) -> object:
        """By the weights that reach the model; sums that come to the same weights are the same."""
        weights = self.weigh({row.name: row.weights for row in rows})
        return (
            self.file,
            tuple((row.name, row.steps, row.depth) for row in rows),
            tuple(
                (name, tuple(sorted(weight.items())) if isinstance(weight, Mapping) else weight)
                for name, weight in weights.items()
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Normalised(Sum):
    """W + sum_i w_i dW_i with sum_i w_i = 1 (MoLE, equation 2): weights divided by their sum."""

    kind = "nla"
    title = "Normalised sum (NLA)"
    description = (
        "As the weighted sum, with the weights scaled to sum to 1: never too strong, but each LoRA "
        "gets weaker as more join."
    )
    brief = "weights that share 1 evenly"
    by_blocks = False

    @classmethod
    def evenly(cls, count: int) -> tuple[str, str] | None:
        """The average."""
        return "Average (NLA)", f"each at 1/{count}" if count > 1 else "weight 1"

    def weigh(self, weights: Mapping[str, Weight]) -> dict[str, Weight]:
        """Each part of the model is normalised apart; one whose weights are all 0 stays so.

        Raises:
            ComposerError: weights that sum to zero or less.
        """
        parts = sorted({p for w in weights.values() if isinstance(w, Mapping) for p in w})
        if not parts:
            return {**_normalised({n: cast("float", w) for n, w in weights.items()}, "LoRAs")}
        by_part = {
            part: _normalised({name: _of_part(w, part) for name, w in weights.items()}, part)
            for part in parts
        }
        return {name: {part: by_part[part][name] for part in parts} for name in weights}


@dataclass(frozen=True, kw_only=True)
class EvenEnergy(Sum):
    """f sum_i w_i dW_i with f = min(1, s max_i |w_i| ||dW_i|| / ||sum_i w_i dW_i||)."""

    kind = "energy"
    title = "Total strength"
    description = (
        "As the weighted sum, with all weights lowered together until the LoRAs are as strong in "
        "all as the strongest of them alone: two LoRAs no longer overcook a picture."
    )
    brief = "together as strong as the strongest"
    paper = "https://github.com/ethanfel/ComfyUI-LoRA-Optimizer"
    usual = False

    strength: float = setting(
        1.0,
        above=0,
        at_most=10,
        label="Total strength",
        help="In all, as many times as strong as the strongest LoRA alone.",
    )

    @classmethod
    def evenly(cls, count: int) -> tuple[str, str] | None:
        """One LoRA alone keeps its weight."""
        return (cls.title, cls.brief) if count > 1 else None

    def weigh_experts(
        self, weights: dict[str, Weight], experts: Mapping[str, Expert], bench: Bench
    ) -> dict[str, Weight]:
        """Each part of the model apart, as each has its own weights."""
        from composer.fusions.merging import inner_products, total_strength

        products = bench.derive(
            ("inner products", *experts.values()), lambda: inner_products(tuple(experts.values()))
        )
        factors = {"unet": 1.0, "text_encoder": 1.0}
        for part, rows in products.items():
            total = total_strength(rows, [_of_part(weights[name], part) for name in experts])
            factors[part] = min(1.0, self.strength / total) if total > 0 else 1.0
        return {
            name: {part: _of_part(weights[name], part) * factor for part, factor in factors.items()}
            for name in experts
        }

    def outcome(self, rows: Sequence[LoraRow]) -> object:
        """Depends on what the LoRAs hold."""
        return (self.key, super().outcome(rows))


@dataclass(frozen=True, kw_only=True)
class Regions(Sum):
    """Each LoRA with its weight where its own trigger words act, without training."""

    kind = "regions"
    title = "Trigger regions"
    description = (
        "Each LoRA acts where its own trigger words act, and more strongly there; a style acts "
        "everywhere. Needs no training; a picture takes longer."
    )
    brief = "each where its words act"
    passes_needed = "1 + (k + 1) / 6"
    by_blocks = False

    @classmethod
    def evenly(cls, count: int) -> tuple[str, str] | None:
        """One LoRA alone has nobody to leave room to."""
        return (cls.title, cls.brief) if count > 1 else None

    def granularity(self, plan: Plan) -> Granularity:
        """Blocks, whose tokens are places."""
        return "block"

    def set_gates(self, mixture: Mixture, weights: Mapping[str, Weight]) -> None:
        """A gate over the region maps for each unit of the U-Net."""
        from composer.fusions.regions import region_gates

        mixture.set_gates(region_gates(mixture, weights))

    def notes(self, plan: Plan, experts: Iterable[Expert], prompt: str) -> Iterator[str]:
        """The LoRAs whose triggers the prompt lacks, among several."""
        for expert in experts if len(plan.rows) > 1 else ():
            words = expert.info.trigger.strip()
            if words and not _calls(prompt, words):
                yield (
                    f"{expert.name}: its trigger, {words!r}, is not in the prompt, so it is off. "
                    "Write it there, or choose another fusion."
                )

    def outcome(self, rows: Sequence[LoraRow]) -> object:
        """One LoRA alone has nobody to leave room to."""
        return (super().outcome(rows), len(rows) > 1)


@dataclass(frozen=True, kw_only=True)
class FreeFuse(Regions):
    """FreeFuse (arXiv 2510.23515): see `diffusion.concepts`."""

    kind = "freefuse"
    title = "FreeFuse"
    description = (
        "Each place of the picture belongs to one LoRA: some steps are made first to see whose "
        "words the places heed, then the picture is made anew; a style acts everywhere."
    )
    brief = "each place for one of them"
    paper = "https://arxiv.org/abs/2510.23515"
    passes_needed = "4 / 3"
    usual = False

    def set_gates(self, mixture: Mixture, weights: Mapping[str, Weight]) -> None:
        """A gate over the maps for each unit of the U-Net."""
        from composer.fusions.regions import region_gates

        mixture.set_gates(region_gates(mixture, weights, concepts=True))

    def outcome(self, rows: Sequence[LoraRow]) -> object:
        """Of no other recipe."""
        return (self.key, super().outcome(rows))


@dataclass(frozen=True, kw_only=True)
class MixLora(Sum):
    """A MixLoRA in the model, as if the model knew what it has learned; LoRAs are added to it."""

    kind = "mixlora"
    title = "MixLoRA"
    description = "Sparse experts that were trained on several image sets at once."
    brief = "in the place of the LoRAs that it has learned"
    paper = MIXLORA
    source = "mixlora"
    called = "MixLoRA"
    missing = ("The MixLoRA", "is", "has", "The picture is made without it.")
    none = "none has learned what these call."

    @classmethod
    def evenly(cls, count: int) -> tuple[str, str] | None:
        """It needs a file."""
        return None

    def offer(self, card: MixLoraCard, loras: Library[LoraInfo]) -> Offer:
        """In the place of the LoRAs whose triggers it knows."""
        triggers = [one.trigger for one in card.info.sets]
        known = {trigger.strip().casefold() for trigger in triggers} - {""}
        return Offer(
            recipe=self,
            loras=tuple(c.name for c in loras.seen if c.info.trigger.strip().casefold() in known),
            titles=tuple(one.name for one in card.info.sets),
            description=(
                "Sparse experts, trained on all of them at once, in the place of their LoRAs. "
                f"Write what calls them: {', '.join(triggers)}. LoRAs in the mixture are added by "
                "their weights; it needs none."
            ),
            instead=True,
        )

    def plan(self, rows: Iterable[LoraRow], pins: Iterable[Pin], libraries: Libraries) -> Plan:
        """The LoRAs as for a sum, and the MixLoRA's file."""
        plan = super().plan(rows, pins, libraries)
        return replace(plan, **own_file(self, libraries))

    def to_record(self, plan: Plan) -> dict[str, Any]:
        """With the file's name now and its hash."""
        assert plan.source is not None
        named = {"name": self.kind, self.source: plan.source.name, "hash": plan.hash}
        return {**named, **plan.spans}

    def names(self, plan: Plan) -> tuple[str, ...]:
        """The MixLoRA first."""
        assert plan.source is not None
        return (plan.source.name, *super().names(plan))

    def triggers(self, libraries: Libraries) -> tuple[str, ...]:
        """Of its image sets."""
        card: MixLoraCard = libraries.of(self).find(self.file, rescan=False)
        return tuple(one.trigger for one in card.info.sets)

    def notes(self, plan: Plan, experts: Iterable[Expert], prompt: str) -> Iterator[str]:
        """Whether the prompt calls anything that it has learned."""
        assert plan.source is not None
        triggers = [one.trigger for one in cast("MixLoraCard", plan.source).info.sets]
        if not any(_calls(prompt, trigger) for trigger in triggers):
            words = ", ".join(map(repr, triggers))
            yield (
                f"{plan.source.name}: none of its triggers is in the prompt. Write one of {words}."
            )


def _calls(prompt: str, words: str) -> bool:
    """Whether a prompt holds some of the trigger words."""
    return without_words(prompt, words) is not None


def _of_part(weight: Weight, part: str) -> float:
    """Text encoders share one weight, however many there are."""
    if not isinstance(weight, Mapping):
        return weight
    return weight.get(part, weight.get("unet" if part == "unet" else "text_encoder", 0.0))


def _normalised(weights: Mapping[str, float], of_what: str) -> dict[str, float]:
    if not any(weights.values()):
        return dict(weights)
    total = sum(weights.values())
    if not total > 0:
        raise ComposerError(
            f"The weights of the {of_what} sum to {total:g}, and cannot be made to sum to 1. Give "
            "weights above 0, or choose the weighted sum."
        )
    return {name: weight / total for name, weight in weights.items()}
