"""The model and what is attached to it. Only the studio's thread works with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from composer.diffusion.activations import record_inputs
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.passes import PassedPrediction
from composer.diffusion.regions import Regions, regions_of
from composer.errors import ComposerError
from composer.experts import Card, Expert, ModuleNames, read_expert
from composer.experts.groups import Module
from composer.fusions import Plan
from composer.fusions.gate_file import GateFile, gated
from composer.fusions.gate_record import GateRecorder
from composer.fusions.mixlora_file import read_mixlora
from composer.fusions.rows import check_family
from composer.mixlora.attach import MixLora
from composer.mixture import (
    Granularity,
    LowRankLike,
    Mixture,
    attach,
    attach_always,
)
from composer.mixture.replacement import Attached as Attachment
from composer.training.gates.prompts import Called, draft_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from composer.experts.library import Entry
    from composer.fusions.libraries import MixLoraCard
    from composer.fusions.passes import Passes

KEPT_EXPERTS = 16
PROMPTS, STEPS = 4, 8
"""Of each LoRA, for merges that ask what its sites see."""

Stamp = tuple[Path, int, int]  # a file as it was when it was read: path, time of change, size
File = TypeVar("File")
Attached = tuple[Granularity, tuple[tuple[str, Expert], ...]]
Tools = tuple[tuple[Expert, tuple[tuple[str, float], ...]], ...]
"""Experts that are always added, with their weights in the U-Net and in the text encoders."""


class Engine:
    """One model, the experts read for it, and the mixture that stands in it now.

    A MixLoRA stands below the mixture, next to the model itself: LoRAs are added to it as if the
    model had always known what it has learned. Tools, LoRAs for few steps, stand between the two.
    """

    def __init__(self, model: Model, *, partial: bool = False) -> None:
        self.model = model
        self._partial = partial
        self.modules = ModuleNames.of(model.models, model=model.name)
        self._shares: dict[frozenset[Module], float] = {}
        self._experts: OrderedDict[tuple[str, Stamp], Expert] = OrderedDict()
        self.mixture: Mixture | None = None
        """What is attached now."""
        self._attached: Attached = ("network", ())
        self._opened: tuple[Stamp, Any] | None = None  # the file that was read last
        self.fitted: GateFile | None = None  # the gates in the mixture
        self._placed: tuple[Stamp, MixLora] | None = None
        self._tools: Tools = ()  # that are wanted
        self._standing: tuple[Tools, Attachment] | None = None  # those that stand in the model
        self._derived: tuple[Hashable, Any] = (None, None)
        self.passes: Passes | None = None  # of a step, those of the recipe that is attached
        self.notes: list[str] = []  # for people, on what is attached

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str,
        dtype: str | None,
        vae: str | Path | None = None,
        lowvram: bool = False,
        partial: bool = False,
    ) -> Engine:
        """Load the model, as `load_model` does.

        partial: whether LoRAs are used of which much does nothing for this model.
        """
        loaded = load_model(model, device=device, dtype=dtype, vae=vae, lowvram=lowvram)
        return cls(loaded, partial=partial)

    def read(self, name: str, path: Path) -> Expert:
        """The expert in a file, by this name, kept while the file does not change."""
        key = name, _stamp(f"LoRA {name!r} is", path)
        if key not in self._experts:
            self._experts[key] = read_expert(path, self.modules, name=name, partial=self._partial)
            while len(self._experts) > KEPT_EXPERTS:
                self._experts.popitem(last=False)
        self._experts.move_to_end(key)
        return self._experts[key]

    def with_shares(self, cards: Iterable[Card]) -> tuple[Card, ...]:
        """LoRAs with how much of each this model uses."""
        return tuple(
            replace(card, facts=replace(card.info, share=self._share(card.info.modules)))
            if card.error is None and card.info.modules
            else card
            for card in cards
        )

    def _share(self, changed: frozenset[Module]) -> float:
        if changed not in self._shares:
            self._shares[changed] = self.modules.share(changed)
        return self._shares[changed]

    def mix(self, plan: Plan) -> dict[str, Expert]:
        """Attach what a plan names, and nothing else; a plan without LoRAs or a MixLoRA leaves the
        model bare. Returns the experts that are active, by name.

        Experts are attached anew only when others are than before; a weight is a number in a
        buffer. What was attached before does not matter to what the model then computes.

        Raises:
            ComposerError: a file is for another model, or damaged; a pin is for no unit, or block
                weights for another family.
        """
        check_family(plan.pins, self.model.family)
        self.passes, self.notes = None, []
        tools = {name: self.read(name, path) for name, path in plan.tool_paths.items()}
        self._tools = tuple((e, tuple(plan.tools[n].weights.items())) for n, e in tools.items())
        return tools | plan.recipe.attach(plan, self)

    def at_step(self, index: int, total: int) -> None:
        """Tell the mixture which step of a sampling comes next."""
        if self.mixture is not None:
            self.mixture.at_step(index, total)

    def regions(self) -> Regions | None:
        """What finds out where each LoRA's words act; None where no gate follows them."""
        if self.mixture is None:
            return None
        if self.fitted is not None:  # as they were called when the gates were trained
            return regions_of(self.model, self.mixture, self.fitted.experts)
        return regions_of(self.model, self.mixture, gated(e for _, e in self._attached[1]))

    def in_passes(self) -> PassedPrediction | None:
        """What makes a prediction of several passes; None where the recipe takes one."""
        if self.mixture is None or self.passes is None:
            return None
        return PassedPrediction(self.model, self.mixture, self.passes)

    def recorder(self, *, guided: bool) -> GateRecorder | None:
        """Collects what the gates that are attached now give; None without any."""
        if self.mixture is None or not self.mixture.gates:
            return None
        return GateRecorder(self.mixture, guided=guided)

    def release(self) -> None:
        """Take the mixture and the MixLoRA out of the model, bit for bit."""
        self._detach()
        if self._standing is not None:
            self._standing[1].detach()
        self._standing = None
        if self._placed is not None:
            self._placed[1].detach()
        self._placed = None

    # --- for the recipes

    def open(self, card: Entry[Any], read: Callable[[Path], File]) -> File:
        """The file of a card, kept while it does not change.

        Raises:
            ComposerError: it is for another model than this one, or gone or damaged.
        """
        card.info.check_model(self.model.name, self.model.hash)
        stamp = _stamp(f"file {card.name!r} is", card.path)
        if self._opened is None or self._opened[0] != stamp:
            self._opened = (stamp, read(card.path))
        return self._opened[1]

    def place(self, card: MixLoraCard | None) -> None:
        """Let this MixLoRA stand in the model and no other, unless that is how it is."""
        stamp = None if card is None else _stamp(f"MixLoRA {card.name!r} is", card.path)
        if stamp == (None if self._placed is None else self._placed[0]):
            return
        self.release()
        if stamp is not None:
            file = read_mixlora(stamp[0])
            file.check_model(self.model.name, self.model.hash)
            self._placed = (stamp, file.attach(self.model.unet, str(stamp[0])))

    def attach(self, granularity: Granularity, experts: Mapping[str, Expert]) -> Mixture | None:
        """The mixture of these experts and no others, attached anew if it is another one; None
        without any."""
        self._stand()
        wanted = (granularity, tuple(experts.items()))
        if wanted != self._attached:
            self._detach()
            if experts:
                sites = {name: expert.sites for name, expert in experts.items()}
                self.mixture = attach(self.model.models, sites, granularity=granularity)
                self._attached = wanted
        return self.mixture

    def observe(self, experts: Mapping[str, Expert]) -> dict[str, list[Tensor]]:
        """What the sites of the U-Net see while each of these paints its own prompts alone."""
        called = [
            Called(name=name, trigger=expert.info.trigger, role=expert.info.role)
            for name, expert in experts.items()
        ]
        drafted = {one.name: draft_prompts([one], count=PROMPTS).alone[one.name] for one in called}
        mixture = self.attach("network", experts)
        assert mixture is not None  # there are experts
        return record_inputs(self.model, mixture, drafted, steps=STEPS)

    def _stand(self) -> None:
        """Let the tools that are wanted stand in the model, and no others."""
        if self._tools == (() if self._standing is None else self._standing[0]):
            return
        self._detach()
        if self._standing is not None:
            self._standing[1].detach()
        self._standing = None
        if self._tools:
            weighed = [
                (expert.name, weight, _of_part(expert, part))
                for expert, weights in self._tools
                for part, weight in weights
            ]
            self._standing = (self._tools, attach_always(self.model.models, weighed))

    def derive(self, key: Hashable, make: Callable[[], File]) -> File:
        """What was made for an equal key the last time, or what is made now."""
        if self._derived[0] != key:
            self._derived = (None, None)  # not both in memory at once
            self._derived = (key, make())
        return self._derived[1]

    def _detach(self) -> None:
        """Take the mixture out."""
        if self.mixture is not None:
            self.mixture.detach()
        self.mixture, self._attached, self.fitted = None, ("network", ()), None


def _stamp(what: str, path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise ComposerError(
            f"The {what} gone: {path} cannot be read. Put it back, or press Refresh."
        ) from error
    return path, status.st_mtime_ns, status.st_size


def _of_part(expert: Expert, part: str) -> dict[str, LowRankLike]:
    """Its factors in the U-Net, or in all text encoders."""
    return {
        site: factors
        for site, factors in expert.sites.items()
        if site.startswith("unet.") == (part == "unet")
    }
