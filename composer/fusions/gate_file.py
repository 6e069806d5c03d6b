"""One gate file: a safetensors that says which experts and which model its gates are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from composer.errors import ComposerError
from composer.experts.expert import Expert
from composer.experts.header import MAX_SIZE, read_header
from composer.experts.supported import GATES as FORMAT
from composer.fusions.own_file import OwnFacts, OwnKind, read_whole
from composer.mixture import (
    GRANULARITIES,
    GateSettings,
    Granularity,
    LearnedGate,
    Mixture,
)

KIND = OwnKind(
    key=FORMAT,
    version=1,
    called="gate file",
    holds="gates",
    training="a training of gates",
    subject="These gates were",
    again="train the gates again",
    anew="train gates for this one",
    dtypes=("F32",),  # which alone is written
)
_PREFIX = "mole."


@dataclass(frozen=True, kw_only=True)
class GatedExpert:
    """One expert of a gate file, known by its name and by the hash of its tensors."""

    name: str
    tensor_hash: str
    trigger: str = ""
    role: str = ""

    def __post_init__(self) -> None:
        """Files come from strangers."""
        for value in vars(self).values():
            if not isinstance(value, str):
                raise TypeError(f"text where it has {value!r}")


def gated(experts: Iterable[Expert]) -> tuple[GatedExpert, ...]:
    """These experts as a gate file knows them."""
    return tuple(
        GatedExpert(
            name=e.name, tensor_hash=e.tensor_hash, trigger=e.info.trigger, role=e.info.role
        )
        for e in experts
    )


@dataclass(frozen=True, kw_only=True)
class GateFacts(OwnFacts):
    """The metadata of a gate file.

    experts: in the order of the gates' rows.
    settings: of the gates, by part ("unet", "text_encoder").
    sizes: of each unit's input, by unit: its width, and its tokens if the gate is bound to them.
    training: the objective, its settings and what it reached, as plain values.
    """

    kind = KIND
    experts: tuple[GatedExpert, ...]
    granularity: Granularity
    settings: Mapping[str, GateSettings]
    sizes: Mapping[str, tuple[int, int | None]]
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def check_experts(self, tensor_hashes: Mapping[str, str]) -> None:
        """Refuse other experts than those the gates were trained with.

        tensor_hashes: by the name of each expert at hand.

        Raises:
            ComposerError: which one is missing, or is another file than it was.
        """
        for expert in self.experts:
            if expert.name not in tensor_hashes:
                raise ComposerError(
                    f"These gates were trained with the LoRA {expert.name!r}, which is not here. "
                    "Put it into a LoRA folder, or choose other gates."
                )
            if tensor_hashes[expert.name] != expert.tensor_hash:
                raise ComposerError(
                    f"The LoRA {expert.name!r} is another file than the one these gates were "
                    "trained with. Put that one back, or train gates for this one."
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class GateFile(GateFacts):
    """Trained gates with all that is needed to use them rightly.

    tensors: the gates' parameters, by unit and then by name.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            ComposerError: its name does not end in .safetensors, or it cannot be written.
        """
        values = {
            "model": self.model,
            "model_hash": self.model_hash,
            "experts": [asdict(expert) for expert in self.experts],
            "granularity": self.granularity,
            "settings": {part: given.to_json() for part, given in self.settings.items()},
            "sizes": {unit: list(size) for unit, size in self.sizes.items()},
            "training": dict(self.training),
        }
        tensors = {
            f"{_PREFIX}{unit}.{name}": tensor.detach().float().cpu().contiguous()
            for unit, named in self.tensors.items()
            for name, tensor in named.items()
        }
        KIND.write(path, values, tensors)

    def gates(self, names: Sequence[str], units: Mapping[str, Any]) -> dict[str, LearnedGate]:
        """The gates by unit, with their rows in the order of `names`.

        names: of the experts of a mixture: those of this file, in any order.
        units: of that mixture.

        Raises:
            ComposerError: a unit of the file is not in the mixture, or one is missing in the file.
        """
        order = self._order(names)
        if missing := [unit for unit in self.tensors if unit not in units]:
            raise ComposerError(
                f"These gates govern {missing[0]}, which none of the LoRAs changes here. They were "
                "trained with other LoRAs: train them again."
            )
        made: dict[str, LearnedGate] = {}
        for unit, named in self.tensors.items():
            part = unit.partition(".")[0]
            if part not in self.settings or unit not in self.sizes:
                raise ComposerError(f"This gate file has no settings for {part}: train it again.")
            made[unit] = _build(unit, self.settings[part], named, self.sizes[unit], order)
        return made

    def fit(self, mixture: Mixture) -> None:
        """Put the gates into a mixture of these experts, whatever their order there."""
        mixture.set_gates(self.gates(mixture.names, mixture.units))

    def _order(self, names: Sequence[str]) -> list[int]:
        """For each expert of a mixture, its row in this file."""
        known = [expert.name for expert in self.experts]
        if sorted(known) != sorted(names):
            raise ComposerError(
                f"These gates are for {', '.join(known)}, and the LoRAs here are "
                f"{', '.join(names)}. Choose exactly those: a LoRA that is not wanted can be "
                "switched off."
            )
        return [known.index(name) for name in names]


def gate_sizes(mixture: Mixture) -> dict[str, tuple[int, int | None]]:
    """What `GateFile.sizes` holds."""
    return {unit: (gate.width, gate.tokens) for unit, gate in mixture.learned_gates.items()}


def gate_tensors(mixture: Mixture) -> dict[str, dict[str, Tensor]]:
    """The parameters of a mixture's learned gates, by unit: what `GateFile.tensors` holds."""
    return {
        unit: {name: tensor.detach().clone() for name, tensor in gate.state_dict().items()}
        for unit, gate in mixture.learned_gates.items()
    }


def read_facts(path: Path) -> GateFacts:
    """The metadata of a gate file; no tensor is read.

    Raises:
        ComposerError: it is missing, damaged, no gate file, or of a later version.
    """
    return GateFacts(**KIND.parse(read_header(path), _facts))


def read_gates(path: Path) -> GateFile:
    """Read a gate file; its header is checked before any tensor is read.

    Raises:
        ComposerError: it is missing, damaged, no gate file, or of a later version.
    """
    header, data = read_whole(path)
    facts = KIND.parse(header, _facts)
    by_unit: dict[str, dict[str, Tensor]] = {}
    for key, tensor in KIND.load(path, data).items():
        unit, _, name = key.removeprefix(_PREFIX).rpartition(".")
        if not key.startswith(_PREFIX) or not unit or not bool(tensor.isfinite().all()):
            raise KIND.damaged(path, f"its tensor {key!r} is no part of a gate")
        by_unit.setdefault(unit, {})[name] = tensor
    return GateFile(**facts, tensors=by_unit)


def _facts(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of `GateFacts`."""
    facts: dict[str, Any] = {
        "model": str(values["model"]),
        "model_hash": str(values["model_hash"]),
        "experts": tuple(GatedExpert(**expert) for expert in values["experts"]),
        "granularity": values["granularity"],
        "settings": {p: GateSettings.from_json(s) for p, s in values["settings"].items()},
        "sizes": {unit: _size(*size) for unit, size in values["sizes"].items()},
        "training": dict(values["training"]),
    }
    names = [expert.name for expert in facts["experts"]]
    if facts["granularity"] not in GRANULARITIES or not names or len(set(names)) < len(names):
        raise ValueError("it names no experts, or one twice, or a granularity that is none")
    return facts


def _size(width: Any, tokens: Any) -> tuple[int, int | None]:
    for count in (width,) if tokens is None else (width, tokens):
        if type(count) is not int or not 1 <= count <= MAX_SIZE:
            raise TypeError(f"sizes from 1 to {MAX_SIZE} where it has {[width, tokens]}")
    return width, tokens


def _build(
    unit: str,
    settings: GateSettings,
    named: Mapping[str, Tensor],
    size: tuple[int, int | None],
    order: list[int],
) -> LearnedGate:
    width, tokens = size
    try:
        _check_shapes(settings, named, width, tokens, len(order))
        present = named["present"].bool()[order]
        here = [bool(value) for value in present]
        clock = named["clock"].shape[1] if "clock" in named else None
        gate = LearnedGate(settings, width, here, time_width=clock, tokens=tokens)
        state = dict(named) | {"present": present}
        for name in ("e", "b", "clock"):  # a row for each expert
            if name in state:
                state[name] = state[name][order]
        if settings.input == "experts":  # (experts, tokens or one, experts, width)
            whole = state["e"].reshape(len(order), -1, len(order), width)
            state["e"] = whole[:, :, order].flatten(1)
        gate.load_state_dict(state)
    except (KeyError, IndexError, RuntimeError, TypeError) as error:
        raise ComposerError(
            f"The gate of {unit} in this file does not fit its own settings "
            f"({str(error).splitlines()[-1].strip()}): train again."
        ) from None
    return gate


def _check_shapes(
    settings: GateSettings,
    named: Mapping[str, Tensor],
    width: int,
    tokens: int | None,
    experts: int,
) -> None:
    """Refuse a file whose words ask for a larger gate than its tensors are.

    A gate is made before its tensors are put in, and a few words could ask for gigabytes.
    """
    wanted = {"present": (experts,), "e": (experts, settings.features(width, experts, tokens))}
    if "clock" in named:  # empty rows of any width take no room in a file
        wanted["clock"] = (experts, named["clock"].shape[-1])
    for name, shape in wanted.items():
        if tuple(named[name].shape) != shape:
            raise TypeError(f"its {name} is {tuple(named[name].shape)} and not {shape}")
