"""The model and what is attached to it. Only the studio's thread works with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.regions import Regions, regions_of
from composer.errors import ComposerError
from composer.experts import Expert, ModuleNames, read_expert
from composer.fusions import Fusion, region_gates
from composer.fusions.gate_file import GateFile, gated, read_gates
from composer.fusions.gate_record import GateListener
from composer.fusions.mixlora_file import read_mixlora
from composer.mixture import Granularity, Mixture, attach
from composer.mixture.mixlora import MixLora
from composer.studio.gating import Gating
from composer.studio.limits import Limits
from composer.studio.placing import Placing

KEPT_EXPERTS = 16

Stamp = tuple[Path, int, int]  # a file as it was when it was read: path, time of change, size
Attached = tuple[Granularity, tuple[tuple[str, Expert], ...]]


class Engine:
    """One model, the experts read for it, and the mixture that stands in it now.

    A MixLoRA stands below the mixture, next to the model itself: LoRAs are added to it as if the
    model had always known what it has learned.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._modules = ModuleNames.of(model.models, model=model.name)
        self._experts: OrderedDict[tuple[str, Stamp], Expert] = OrderedDict()
        self._mixture: Mixture | None = None
        self._attached: Attached = ("network", ())
        self._gates: tuple[Stamp, GateFile] | None = None  # those read last
        self._fitted: GateFile | None = None  # those in the mixture
        self._placed: tuple[Stamp, MixLora] | None = None

    @classmethod
    def load(cls, model: str, *, device: str, dtype: str | None) -> Engine:
        """Load the model, as `load_model` does; `dtype` by its name, "float16" or the like."""
        return cls(load_model(model, device=device, dtype=_dtype(dtype)))

    def read(self, name: str, path: Path) -> Expert:
        """The expert in a file, by this name, kept while the file does not change."""
        key = name, _stamp(f"LoRA {name!r} is", path)
        if key not in self._experts:
            self._experts[key] = read_expert(path, self._modules, name=name)
            while len(self._experts) > KEPT_EXPERTS:
                self._experts.popitem(last=False)
        self._experts.move_to_end(key)
        return self._experts[key]

    def mix(
        self,
        experts: tuple[Expert, ...],
        weights: Mapping[str, Mapping[str, float]],
        fusion: Fusion,
        placing: Placing | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Let these experts speak, and no others, over a MixLoRA if there is one. Without either
        the model is bare again.

        Experts are attached anew only when others speak than before; a weight is a number in a
        buffer. What was attached before does not matter to what the model then computes.

        Raises:
            ComposerError: the MixLoRA is for another model, or damaged; a pin is for no unit.
        """
        self._place(placing)
        limits = limits or Limits()
        granularity: Granularity = "block" if fusion.by_region or limits.by_unit else "network"
        self._attach(granularity, {expert.name: expert for expert in experts})
        if self._mixture is not None:
            self._fitted = None
            weighed = fusion.weigh(dict(weights))
            self._mixture.set_weights(weighed)
            if fusion.by_region:
                self._mixture.set_gates(region_gates(self._mixture, weighed))
            self._switch(dict.fromkeys(weights, True), limits)

    def mix_gated(self, gating: Gating) -> tuple[Expert, ...]:
        """Let the experts of a gate file speak as its gates say. Returns those that are on.

        A switch is a mask in a buffer: nothing is read or attached anew for it.

        Raises:
            ComposerError: the gates are for another model, or other LoRAs than these; a pin is for
                no unit.
        """
        facts = gating.card.facts
        assert facts is not None  # a card with an error is never found
        facts.check_model(self.model.name, self.model.hash)
        experts = {name: self.read(name, gating.loras[name].path) for name in sorted(gating.loras)}
        facts.check_experts({name: expert.tensor_hash for name, expert in experts.items()})
        file = self._read_gates(gating.card.name, gating.card.path)
        self._place(None)
        self._attach(file.granularity, experts)
        assert self._mixture is not None  # there is at least one expert
        if self._fitted is not file:
            self._fitted = None
            # where there is no gate every expert speaks in full, as it did in the training
            self._mixture.set_weights(dict.fromkeys(experts, 1.0))
            file.fit(self._mixture)
            self._fitted = file
        self._switch(gating.switches, gating.limits, gating.strengths)
        return tuple(experts[name] for name, on in gating.switches.items() if on)

    def at_step(self, index: int, total: int) -> None:
        """Tell the mixture which step of a sampling comes next."""
        if self._mixture is not None:
            self._mixture.at_step(index, total)

    def regions(self) -> Regions | None:
        """What finds out where each LoRA's words act; None where no gate hears it."""
        if self._mixture is None:
            return None
        if self._fitted is not None:  # as they were called when the gates were trained
            return regions_of(self.model, self._mixture, self._fitted.experts)
        return regions_of(self.model, self._mixture, gated(e for _, e in self._attached[1]))

    def listener(self, *, guided: bool) -> GateListener | None:
        """What hears the gates that are attached now; None without any."""
        if self._mixture is None or not self._mixture.gates:
            return None
        return GateListener(self._mixture, guided=guided)

    def release(self) -> None:
        """Take the mixture and the MixLoRA out of the model, bit for bit."""
        self._detach()
        if self._placed is not None:
            self._placed[1].detach()
        self._placed = None

    def _detach(self) -> None:
        """Take the mixture out."""
        if self._mixture is not None:
            self._mixture.detach()
        self._mixture, self._attached, self._fitted = None, ("network", ()), None

    def _attach(self, granularity: Granularity, experts: Mapping[str, Expert]) -> None:
        """Attach these experts and no others, unless that is how it is."""
        wanted = (granularity, tuple(experts.items()))
        if wanted != self._attached:
            self._detach()
            if experts:
                sites = {name: expert.sites for name, expert in experts.items()}
                self._mixture = attach(self.model.models, sites, granularity=granularity)
                self._attached = wanted

    def _place(self, placing: Placing | None) -> None:
        """Let this MixLoRA stand in the model and no other, unless that is how it is."""
        stamp = None
        if placing is not None:
            stamp = _stamp(f"MixLoRA {placing.card.name!r} is", placing.card.path)
        if stamp == (None if self._placed is None else self._placed[0]):
            return
        self.release()
        if stamp is not None:
            file = read_mixlora(stamp[0])
            file.check_model(self.model.name, self.model.hash)
            self._placed = (stamp, file.attach(self.model.unet, str(stamp[0])))

    def _switch(
        self,
        switches: Mapping[str, bool],
        limits: Limits,
        strengths: Mapping[str, float] | None = None,
    ) -> None:
        """Who may speak, in a sampling that has not begun, where, when and how strongly."""
        mixture = self._mixture
        assert mixture is not None
        mixture.at_rest()
        mixture.strengthen(strengths or {})
        for name, unit in mixture.units.items():
            if unit.pinned is not None:
                mixture.pin(name, None)
        for name in mixture.names:
            mixture.toggle(name, switches[name])
        limits.tell(mixture)

    def _read_gates(self, name: str, path: Path) -> GateFile:
        stamp = _stamp(f"gates {name!r} are", path)
        if self._gates is None or self._gates[0] != stamp:
            self._gates = (stamp, read_gates(path))
        return self._gates[1]


def _stamp(what: str, path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise ComposerError(
            f"The {what} gone: {path} cannot be read. Put it back, or press Refresh."
        ) from error
    return path, status.st_mtime_ns, status.st_size


def _dtype(name: str | None) -> torch.dtype | None:
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name is None:
        return None
    if name not in kinds:
        raise ComposerError(f"There is no dtype {name!r}. Choose one of: {', '.join(kinds)}.")
    return kinds[name]
