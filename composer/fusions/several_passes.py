"""Fusions that make a step's prediction of several passes of the U-Net, as recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from composer.fusions.merges import Whole
from composer.fusions.recipe import Plan
from composer.fusions.rows import places_to_record
from composer.settings import setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from composer.experts import Expert
    from composer.fusions.recipe import Bench
    from composer.fusions.rows import LoraRow


@dataclass(frozen=True, kw_only=True)
class InPasses(Whole):
    """A weighted sum of which the sampling runs several passes.

    made_by: the class of `passes` that makes a prediction of them; its fields are the parameters.
    """

    made_by: ClassVar[str]

    def attach(self, plan: Plan, bench: Bench) -> dict[str, Expert]:
        """As the sum, with the passes."""
        from composer.fusions import passes

        found = super().attach(plan, bench)
        if names := sorted(found):
            weights = [plan.rows[name].weights["unet"] for name in names]
            kind = getattr(passes, self.made_by)
            bench.passes = passes.passes_of(
                kind, [found[name] for name in names], weights, **self.of_passes(plan, names)
            )
        return found

    def of_passes(self, plan: Plan, names: Sequence[str]) -> Mapping[str, Any]:
        """What the passes are made with; `names` are the experts in their order."""
        return self.parameters


@dataclass(frozen=True, kw_only=True)
class Composite(InPasses):
    """LoRA Composite; see `passes.EachAlone`."""

    kind = "composite"
    title = "LoRA Composite"
    description = (
        "Each LoRA predicts alone, and the picture follows the mean. A step takes a pass for each."
    )
    brief = "the mean of what each predicts"
    passes_needed = "k"
    paper = "https://arxiv.org/abs/2402.16843"
    made_by = "EachAlone"


@dataclass(frozen=True, kw_only=True)
class CmLora(InPasses):
    """CMLoRA; see `passes.OneAhead`."""

    kind = "cmlora"
    title = "CMLoRA"
    description = (
        "Each LoRA predicts alone, and one in turn counts more: those that draw detail first, "
        "styles and backgrounds in the end. A step takes a pass for each."
    )
    brief = "each predicts, one in turn counts more"
    passes_needed = "k"
    paper = "https://arxiv.org/abs/2502.04923"
    made_by = "OneAhead"

    late: float = setting(
        0.6,
        at_least=0,
        at_most=1,
        label="Late from",
        help="From which part of the steps on styles and backgrounds count more.",
    )


@dataclass(frozen=True, kw_only=True)
class Loratorio(InPasses):
    """LoRAtorio; see `passes.Patches`. The paper's patch and temperature are not published."""

    kind = "loratorio"
    title = "LoRAtorio"
    description = (
        "In each patch of the picture the LoRAs count by how unlike the bare model they predict. A "
        "step takes a pass for each, and one for the bare model."
    )
    brief = "patch by patch, by what each changes"
    passes_needed = "k + 1"
    paper = "https://arxiv.org/abs/2508.11624"
    made_by = "Patches"

    patch: int = setting(
        4, at_least=1, at_most=64, label="Patch", help="Side of a patch, in latents."
    )
    tau: float = setting(
        0.1, above=0, at_most=100, label="Temperature", help="Small: the most unlike one alone."
    )
    bare: float = setting(
        0.5,
        at_least=0,
        at_most=1,
        label="Bare",
        help="How much of the bare model is in the prediction without the prompt.",
    )


@dataclass(frozen=True, kw_only=True)
class PromptSwitch(InPasses):
    """W-Switch; see `passes.PromptTurns`."""

    kind = "w-switch"
    title = "W-Switch"
    description = (
        "As LoRA Switch, with turns as long as the prompt needs each LoRA, and the last steps for "
        "the characters."
    )
    brief = "turns as long as the prompt asks for"
    paper = "https://arxiv.org/abs/2606.03792"
    made_by = "PromptTurns"

    turn: int = setting(
        5, at_least=1, at_most=1000, label="Turn", help="Steps of the longest turn."
    )
    tail: int = setting(
        5, at_least=0, at_most=1000, label="Tail", help="Steps at the end, for characters."
    )


@dataclass(frozen=True, kw_only=True)
class Asymmetric(InPasses):
    """Asymmetric guidance; see `passes.PromptAlone`."""

    kind = "asymmetric"
    title = "Asymmetric guidance"
    description = (
        "The weighted sum with the prompt, and the bare model in the prediction without it, so "
        "that guidance strengthens what the LoRAs change."
    )
    brief = "LoRAs with the prompt alone"
    paper = "https://arxiv.org/abs/2602.18936"
    made_by = "PromptAlone"


@dataclass(frozen=True, kw_only=True)
class DrawnPlaces(InPasses):
    """Each LoRA where the user drew; see `passes.InPlaces`."""

    kind = "places"
    title = "Drawn places"
    description = (
        "Each LoRA acts in the part of the picture that you draw for it, and one without a part "
        "everywhere. A step takes a pass for each part, and one for the rest."
    )
    brief = "each where you drew it"
    passes_needed = "1 + parts"
    paper = "https://arxiv.org/abs/2302.08113"
    made_by = "InPlaces"
    by_places = True

    def attach(self, plan: Plan, bench: Bench) -> dict[str, Expert]:
        """As the sum where there is no place."""
        if any(row.place for row in plan.rows.values()):
            return super().attach(plan, bench)
        return Whole.attach(self, plan, bench)

    def of_passes(self, plan: Plan, names: Sequence[str]) -> Mapping[str, Any]:
        """The places."""
        places = (plan.rows[name].place for name in names)
        return {"places": [place and place.cells() for place in places]}

    def to_record(self, plan: Plan) -> dict[str, Any]:
        """With the places."""
        return {**super().to_record(plan), **places_to_record(plan.rows)}

    def notes(self, plan: Plan, experts: Iterable[Expert], prompt: str) -> Iterator[str]:
        """Whether any place was drawn."""
        if len(plan.rows) > 1 and not any(row.place for row in plan.rows.values()):
            yield "No place is drawn, so all LoRAs act everywhere, as in the weighted sum."

    def outcome(self, rows: Sequence[LoraRow]) -> object:
        """A sum where there is no place."""
        places = tuple((row.name, row.place) for row in rows if row.place)
        return (places, super().outcome(rows)) if places else super(Whole, self).outcome(rows)
