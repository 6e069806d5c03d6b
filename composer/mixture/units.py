"""Units: which modules of a model one gate governs, at each of MoLE's four granularities.

Modules are known by the names of their classes, so that no model library is needed here. The
layers of language models go by a hundred names, but all are of one class of transformers, and what
they are made of decides the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from torch import nn

Granularity = Literal["network", "block", "layer", "matrix"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)

STACKED = "GradientCheckpointingLayer"
"""What transformers derives the layers of its encoders and decoders from: CLIP's, Llama's, T5's."""

BLOCKS = frozenset(
    {"Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D", "CLIPEncoderLayer"}
) | {STACKED}
"""Classes whose modules are blocks."""

LAYERS = frozenset({"Attention", "FeedForward", "CLIPAttention", "CLIPMLP"})
"""Classes whose modules, inside a block, are layers. In a layer of transformers its parts are too,
whatever they are called: attention and feed-forward."""

ENTRIES = ("conv_in", "embeddings", "text_model.embeddings")
"""Where the first hidden state of a network leaves: what the gate of a whole network sees. Without
such a module it sees what the first block takes."""

EARLY = ("time_embedding", "add_embedding", "class_embedding", "encoder_hid_proj")
"""Children of a U-Net that run before its first hidden state is there: too early for the gate of
the whole network, so that each of them is a unit of its own."""

_STAGES = (*EARLY, "conv_in", "down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True, kw_only=True)
class UnitPlan:
    """One unit, before anything is attached.

    name: the path of its module with the part in front, "unet.mid_block.attentions.0"; a whole
        network is named as its part.
    path: of the module in its part at whose call the gate is asked; None if there is none.
    entry: whether the gate sees what that module gives, and not what it takes.
    sites: the names of its sites.
    """

    name: str
    part: str
    path: str | None
    entry: bool = False
    sites: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether this is the unit of a whole network."""
        return self.name == self.part


def plan_units(
    models: Mapping[str, nn.Module], sites: Iterable[str], granularity: Granularity
) -> list[UnitPlan]:
    """The units that have sites, in the order in which the model runs them.

    A site belongs to the nearest module around it that is a unit; where there is none at this
    granularity, to the block around it, and else to the network (or to a child of it that runs
    before the network's gate can be asked).
    """
    found: dict[str, list[str]] = {}
    for site in sites:
        part, _, path = site.partition(".")
        found.setdefault(_unit_of(models[part], part, path, granularity), []).append(site)
    places = {part: _places(model) for part, model in models.items()}
    plans: list[UnitPlan] = []
    for name in sorted(found, key=lambda n: _depth(n, places)):
        part, _, path = name.partition(".")
        module, entry = path or None, False
        if module is None:
            module = next((p for p in ENTRIES if _has(models[part], p)), None)
            entry = module is not None
        if module is None and granularity == "network":  # else the block has a gate of its own
            module = _first_block(models[part])
        sites_of = tuple(found[name])
        plans.append(UnitPlan(name=name, part=part, path=module, entry=entry, sites=sites_of))
    return plans


def _first_block(model: nn.Module) -> str | None:
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    return next((path for path, module in modules if path and _is(module, BLOCKS)), None)


def _unit_of(model: nn.Module, part: str, path: str, granularity: Granularity) -> str:
    if granularity == "matrix":
        return f"{part}.{path}"
    pieces = path.split(".")
    if pieces[0] in EARLY:
        return f"{part}.{pieces[0]}"
    if granularity == "network":
        return part
    around = [".".join(pieces[:end]) for end in range(len(pieces) - 1, 0, -1)]
    blocks = [p for p in around if _is(model.get_submodule(p), BLOCKS)]
    if not blocks:
        return part
    if granularity == "layer":
        # nearest first: those before the block lie inside it
        inside = around[: around.index(blocks[0])]
        layers = [p for p in inside if _is(model.get_submodule(p), LAYERS)]
        if not layers and _is(model.get_submodule(blocks[0]), frozenset({STACKED})):
            # T5 keeps its parts in a list
            layers = [p for p in inside if not isinstance(model.get_submodule(p), nn.ModuleList)]
        if layers:
            return f"{part}.{layers[-1]}"
    return f"{part}.{blocks[-1]}"


def _is(module: nn.Module, names: frozenset[str]) -> bool:
    return any(kind.__name__ in names for kind in type(module).__mro__)


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _places(model: nn.Module) -> dict[str, int]:
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    return {name: place for place, (name, _) in enumerate(modules)}


def _depth(name: str, places: Mapping[str, Mapping[str, int]]) -> tuple[float, ...]:
    """A key that sorts units as the model runs them: a U-Net registers its way up before its
    middle, a block its attentions before its resnets, and CLIP's attention its keys before its
    queries."""
    part, _, path = name.partition(".")
    pieces = path.split(".")
    stage = _STAGES.index(pieces[0]) if pieces[0] in _STAGES else len(_STAGES)
    block, kind, number = 0, 2, 0
    inner = pieces[2:] if pieces[0] in ("down_blocks", "up_blocks") else pieces[1:]
    if inner is not pieces[1:] and len(pieces) > 1 and pieces[1].isdigit():
        block = int(pieces[1])
    if len(inner) > 1 and inner[0] in ("resnets", "attentions"):
        kind, number = ("resnets", "attentions").index(inner[0]), int(inner[1])
    elif inner and pieces[0].endswith(("_blocks", "_block")):
        number = 1000  # samplers come last in their block
    order = list(places).index(part)
    # the network's gate is asked where its first hidden state leaves, after what runs early
    stage = _STAGES.index("conv_in") - 0.5 if not path else stage
    place: float = places[part].get(path, 0)
    if pieces[-1] == "q_proj":
        place -= 2.5  # CLIP registers k and v before q, and calls q first
    return (order, stage, block, number, kind, place)
