"""Learned gates: MoLE's, and better ones by the same code.

v = normalise(reduce(z))        z: the unit's input, or its experts' outputs (equation 9)
eps = e v + b + T(time)         (equation 10; b and T are not in the paper)
g = activate(eps / tau)         (equation 11)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.errors import ComposerError
from composer.mixture.gates import Gate, MaskCache, Masked
from composer.mixture.regions import maps_at
from composer.mixture.seen import Seen
from composer.settings import Settings, setting

GateInput = Literal["hidden", "placed", "experts"]
Reduce = Literal["mean", "flatten"]
Activation = Literal["softmax", "free"]

_DROPPED: Mapping[str, tuple[Any, ...]] = {
    "input": ("regions",),
    "reduce": ("grid", "tokens"),
    "activation": ("scaled", "sigmoid"),
    "normalise": ("layer",),
}
"""Kinds of gates that there were, by setting."""
_OLD = ("cells", "normalise", "top_k")
"""Settings of gate files that have one value today."""
TAU = (1.0, 3.0)  # the temperature's least and greatest, as released
_ROW_NORM = 0.01  # of e at the start, as released: the first weights are as good as even


@dataclass(frozen=True, kw_only=True)
class GateSettings(Settings):
    """How a learned gate is made. The defaults are the paper's gate, made affordable.

    input: what it looks at: the unit's input ("hidden", as the authors' code does); the unit's
        input, for weights that count where each expert's words act ("placed", not in the paper); or
        the experts' outputs ("experts", equations 7 to 10; this costs one pass of the unit for each
        expert).
    reduce: how tokens become one vector: their mean (of those that count, where `Mixture.look_at`
        says which), or all of them ("flatten", the paper's; bound to one size of picture).
    activation: "softmax", weights that sum to 1; "free", any numbers.
    time: whether the gate knows the timestep.
    bias: whether there are weights that hold whatever the gate sees: what a start can be set in.
    """

    noun: ClassVar[str] = "gate settings"

    input: GateInput = setting("hidden", help="What gates look at.")
    reduce: Reduce = "mean"
    activation: Activation = setting("softmax", help="Weights that sum to 1, or any (free).")
    time: bool = False
    bias: bool = setting(False, help="Gates have a bias.")

    def features(self, width: int, experts: int, tokens: int | None) -> int:
        """How many numbers v of equation 9 has, for a unit of this width and of so many tokens.

        Raises:
            ComposerError: they depend on the tokens, and nobody knows how many there are.
        """
        features = width * (experts if self.input == "experts" else 1)
        if self.reduce == "flatten":
            if tokens is None:
                raise ComposerError(
                    "A gate that flattens its input must know how many tokens there are: train "
                    "it at one size of picture, or choose the mean."
                )
            return features * tokens
        return features

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GateSettings:
        """What `to_json` gave, now or before Composer had fewer kinds of gates.

        Raises:
            ComposerError: a setting is not known, or asks for a kind of gate that was dropped.
        """
        for name, value in values.items():
            if value in _DROPPED.get(name, ()) or (name == "top_k" and value != 0):
                raise ComposerError(
                    f"The gate's {name} is {value!r}, a kind of gate that Composer has dropped "
                    "(docs/tried.md): train again."
                )
        return super().from_json({n: v for n, v in values.items() if n not in _OLD})


class LearnedGate(Gate):
    """One unit's gate; always float32, whatever the model is.

    width: of the unit's input, or of its output if the gate looks at the experts' outputs.
    present: which experts change anything in this unit; the others' weights are zero.
    time_width: of the model's embedding of the timestep.
    tokens: of the unit, for `reduce="flatten"` alone, which is bound to it.
    """

    present: Tensor

    def __init__(
        self,
        settings: GateSettings,
        width: int,
        present: Sequence[bool],
        *,
        time_width: int | None = None,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.width, self.tokens = settings, width, tokens
        self.experts = len(present)
        self.needs_outputs = settings.input == "experts"
        self.needs_regions = settings.input == "placed"
        self.needs_time = settings.time
        self._masked = MaskCache()
        self.register_buffer("present", torch.tensor(list(present), dtype=torch.bool))
        rows = torch.randn(self.experts, settings.features(width, self.experts, tokens))
        self.e = nn.Parameter(_ROW_NORM * functional.normalize(rows, dim=1))
        self.tau = nn.Parameter(torch.ones(()))
        self.b = nn.Parameter(torch.zeros(self.experts)) if settings.bias else None
        self.clock: nn.Parameter | None = None
        if settings.time:
            if time_width is None:
                raise ComposerError(
                    "This part of the model knows no timestep: choose a gate without time for it."
                )
            self.clock = nn.Parameter(torch.zeros(self.experts, time_width))
        if settings.activation == "free":
            self.start_at([1.0 / max(sum(present), 1)] * self.experts)

    def start_at(self, weights: Sequence[float]) -> None:
        """Set the bias so that these are the weights before anything is learnt.

        A softmax can only take their proportions; they are raised to 0.01.
        """
        if self.b is None:
            raise ComposerError("A gate without a bias starts even: choose a gate with bias.")
        wanted = torch.tensor(list(weights), dtype=torch.float32, device=self.b.device)
        with torch.no_grad():
            if self.settings.activation == "free":
                self.b.copy_(wanted)
                return
            here = wanted.clamp_min(0.01) * self.present
            total = here.sum().clamp_min(0.01)
            # An absent expert's number is never read, but log 0 would make tau's gradient NaN.
            self.b.copy_((here / total).log().masked_fill(~self.present, 0.0))

    def forward(self, seen: Seen | None, mask: Tensor) -> Tensor:
        """Weights, float32: (batch, experts); (batch, tokens, experts) if the input is "placed".

        mask: bool, (experts,): those that are off get exactly zero, and the others their share.
        """
        assert seen is not None  # it is asked when its unit runs
        # Only where it is on: entering the context costs as much as three products.
        if not torch.is_autocast_enabled(mask.device.type):
            return self._weigh(seen, mask)
        with torch.autocast(mask.device.type, enabled=False):
            return self._weigh(seen, mask)

    def _weigh(self, seen: Seen, mask: Tensor) -> Tensor:
        logits = functional.linear(self._look(seen), self.e, self.b)
        if self.clock is not None:
            assert seen.time is not None
            time = functional.layer_norm(seen.time.float(), seen.time.shape[-1:])
            logits = logits + functional.linear(time / math.sqrt(time.shape[-1]), self.clock)
        masked = self._masked(mask, self.present)
        weights = self._activate(logits / self.tau.clamp(*TAU), masked)
        if self.settings.input != "placed":
            return weights
        # g = m * w at each token: with w = 1 the maps m themselves. The fewer experts are on, the
        # less the maps count: one that is alone is itself.
        maps = maps_at(seen, self.experts)
        return weights[:, None] * torch.addcmul(masked.shift, masked.scale, maps)

    def _look(self, seen: Seen) -> Tensor:
        """v of equation 9, (batch, features)."""
        if self.settings.input == "experts":
            assert seen.outputs is not None
            experts, batch, tokens, width = seen.outputs.shape
            z = seen.outputs.permute(1, 2, 0, 3).reshape(batch, tokens, experts * width)
        else:
            z = seen.hidden
        z = z.float()
        if self.settings.reduce == "flatten":
            z = self._flatten(z)
        elif seen.counted is not None:
            z = _mean_of(z, seen.counted)
        else:
            z = z.mean(dim=1)
        return functional.normalize(z, dim=-1)

    def _flatten(self, z: Tensor) -> Tensor:
        if z.shape[1] != self.tokens:
            raise ComposerError(
                f"These gates were trained where this unit has {self.tokens} positions, and here "
                f"it has {z.shape[1]}: they flatten their input, which binds them to one size. "
                "Make pictures of the size they were trained at, or train gates that take the mean."
            )
        return z.flatten(1)

    def _activate(self, logits: Tensor, masked: Masked) -> Tensor:
        """Weights, (batch, experts), of those that are off exactly zero."""
        if self.settings.activation == "free":
            return torch.addcmul(masked.shift, masked.scale, logits)
        # not -inf: where everybody is off the gradient must stay a number
        lowest = torch.finfo(logits.dtype).min
        return logits.masked_fill(masked.off, lowest).softmax(dim=-1).masked_fill(masked.off, 0.0)


def _mean_of(z: Tensor, counted: Tensor) -> Tensor:
    """The mean of the tokens that count, (batch, width).

    Rows may be a multiple of those of `counted`, as in a search of n beams: n that follow each
    other are of one request.
    """
    if z.shape[1] != counted.shape[1] or z.shape[0] % counted.shape[0]:
        raise ComposerError(
            f"A gate is to look at {tuple(counted.shape)} (rows, tokens), and its unit has "
            f"{tuple(z.shape[:2])}: say which tokens count before the model runs on others."
        )
    share = counted.to(z)
    share = share / share.sum(dim=1, keepdim=True).clamp_min(1)
    share = share.repeat_interleave(z.shape[0] // counted.shape[0], dim=0)
    return torch.einsum("btw,bt->bw", z, share)
