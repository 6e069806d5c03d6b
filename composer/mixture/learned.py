"""Learned gates: MoLE's, and better ones by the same code.

v = normalise(reduce(z))        z: the unit's input, or its experts' outputs (equation 9)
eps = e v + b + T(time)         (equation 10; b and T are not in the paper)
g = activate(eps / tau)         (equation 11)

With `top_k` it is a router over the frozen experts, as MixLoRA's is over trained ones: the k
strongest speak, for the whole input or at each token, and the others not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.errors import ComposerError
from composer.mixture.heard import Ear, Heard
from composer.mixture.seen import Seen
from composer.mixture.strongest import all_but, strongest

GateInput = Literal["auto", "hidden", "experts", "regions", "placed"]
Reduce = Literal["mean", "grid", "flatten", "tokens"]
Normalise = Literal["l2", "layer"]
Activation = Literal["softmax", "scaled", "sigmoid", "free"]

_CHOICES = {
    "input": get_args(GateInput),
    "reduce": get_args(Reduce),
    "normalise": get_args(Normalise),
    "activation": get_args(Activation),
}
MOST_EXPERTS = 64
TAU = (1.0, 3.0)  # the temperature's least and greatest, as released
_ROW_NORM = 0.01  # of e at the start, as released: the first weights are as good as even


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """How a learned gate looks and speaks. The defaults are the paper's gate, made affordable.

    input: what it looks at: the unit's input ("hidden", as the authors' code does) or the experts'
        outputs ("experts", equations 7 to 10; at a block this costs one pass of it for each), or
        maps of where the words that call each expert act ("regions", token by token; not in the
        paper, see `composer.mixture.regions`); or the unit's input, to say how loud each expert is
        in its place ("placed", see `composer.mixture.placed`). "auto" leaves the choice to the
        training, which knows the experts; a gate itself is never made of it.
    reduce: how tokens become one vector: their mean (of those that count, where a mixture was told:
        `Mixture.look_at`); the means of a `cells` × `cells` grid; all of them ("flatten", the
        paper's; bound to one size of picture); or not at all ("tokens": each token is given weights
        of its own).
    normalise: "l2", unit length as released, or "layer", mean 0 and variance 1.
    activation: "softmax", weights that sum to 1; "scaled", softmax times a learned total;
        "sigmoid", from 0 to 2 each; "free", any number.
    time: whether the gate knows the timestep.
    bias: whether there are weights that hold whatever the gate sees: what a start can be set in.
    top_k: how many experts speak at once, the strongest; 0 for all. Shares are among these alone:
        those of "softmax" sum to 1 again, those of "scaled" to the total. Weights that are no
        shares stay as they are, and the greatest amounts count as strongest. One share of 1 has no
        gradient: with "softmax" choose 2 or more.
    """

    input: GateInput = "hidden"
    reduce: Reduce = "mean"
    cells: int = 4
    normalise: Normalise = "l2"
    activation: Activation = "softmax"
    time: bool = False
    bias: bool = False
    top_k: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ComposerError(
                    f"The gate's {name} is {getattr(self, name)!r}: choose one of "
                    f"{', '.join(choices)}."
                )
        if self.input == "regions" and self.reduce != "tokens":
            raise ComposerError(
                f"The gate hears regions and reduces them by {self.reduce!r}: choose tokens, for "
                "regions are places."
            )
        for name in ("cells", "top_k"):
            if type(getattr(self, name)) is not int:  # `true` is an int to Python
                raise ComposerError(
                    f"The gate's {name} is {getattr(self, name)!r}: give a whole number."
                )
        if not 1 <= self.cells <= 64:
            raise ComposerError(f"The gate's cells are {self.cells}: give 1 to 64.")
        if not 0 <= self.top_k <= MOST_EXPERTS:
            raise ComposerError(
                f"The gate's top_k is {self.top_k}: give how many experts speak at once, up to "
                f"{MOST_EXPERTS}, or 0 for all."
            )

    @property
    def hears(self) -> bool:
        """Whether it must be told where the words of each expert act."""
        return self.input in ("regions", "placed")

    def features(self, width: int, experts: int, tokens: int | None) -> int:
        """How many numbers v of equation 9 has, for a unit of this width and of so many tokens.

        Raises:
            ComposerError: they depend on the tokens, and nobody knows how many there are.
        """
        features = width * (experts if self.input == "experts" else 1)
        if self.reduce == "grid":
            return features * self.cells**2
        if self.reduce == "flatten":
            if tokens is None:
                raise ComposerError(
                    "A gate that flattens its input must be told how many tokens there are: train "
                    "it at one size of picture, or choose the mean."
                )
            return features * tokens
        return features

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a file's metadata."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> GateSettings:
        """What `to_json` gave; ComposerError for a setting that is not known."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ComposerError(
                f"Unknown gate settings {', '.join(unknown)}: update Composer, or train again."
            )
        return cls(**values)


class Decided(NamedTuple):
    """What a gate decided, and from what.

    weights: float32, (batch, experts) or (batch, tokens, experts).
    logits: eps / tau, of the same shape; of those who may not speak, the lowest number.
    chosen: (..., k), those that speak, the strongest first, -1 where nobody is left; None where all
        may.
    """

    weights: Tensor
    logits: Tensor
    chosen: Tensor | None


class LearnedGate(nn.Module):
    """One unit's gate; always float32, whatever the model is.

    width: of the unit's input, or of its output if the gate looks at the experts' outputs.
    present: which experts have anything to say in this unit; the others' weights are zero.
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
        if settings.input == "auto":
            raise ComposerError(
                "What the gate looks at is not decided: choose hidden, experts, regions or placed."
            )
        self.settings, self.width, self.tokens = settings, width, tokens
        self._ear = Ear()
        self.experts = len(present)
        self.register_buffer("present", torch.tensor(list(present), dtype=torch.bool))
        rows = torch.randn(self.experts, settings.features(width, self.experts, tokens))
        self.e = nn.Parameter(_ROW_NORM * functional.normalize(rows, dim=1))
        self.tau = nn.Parameter(torch.ones(()))
        self.b = nn.Parameter(torch.zeros(self.experts)) if settings.bias else None
        self.total = nn.Parameter(torch.zeros(())) if settings.activation == "scaled" else None
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

        A softmax can only take their proportions, and no activation but "free" negative ones: they
        are raised to 0.01.
        """
        if self.b is None:
            raise ComposerError("A gate without a bias starts even: choose a gate with bias.")
        wanted = torch.tensor(list(weights), dtype=torch.float32, device=self.b.device)
        kind = self.settings.activation
        with torch.no_grad():
            if kind == "free":
                self.b.copy_(wanted)
                return
            wanted = wanted.clamp_min(0.01)
            if kind == "sigmoid":
                self.b.copy_(torch.logit((wanted / 2).clamp(0.005, 0.995)))
                return
            here = wanted * self.present
            total = here.sum().clamp_min(0.01)
            # An absent expert's number is never read, but log 0 would make tau's gradient NaN.
            self.b.copy_((here / total).log().masked_fill(~self.present, 0.0))
            if self.total is not None:
                self.total.copy_(total.log())

    def forward(self, seen: Seen | None, mask: Tensor) -> Tensor:
        """Weights, float32: (batch, experts), or (batch, tokens, experts) if `reduce` is "tokens".

        mask: bool, (experts,): those switched off get exactly zero, and the others their share.
        """
        assert seen is not None  # a learned gate is asked when its unit runs
        return self._in_float32(seen, mask)[0]

    def decide(self, seen: Seen, mask: Tensor) -> Decided:
        """The same weights, with what they were decided from."""
        weights, logits, chosen, off = self._in_float32(seen, mask)
        logits = logits.masked_fill(off, torch.finfo(logits.dtype).min)
        if chosen is not None:
            chosen = chosen.masked_fill(off[chosen], -1)
        return Decided(weights, logits, chosen)

    def _in_float32(self, seen: Seen, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        # Only where it is on: entering the context costs as much as three products.
        if not torch.is_autocast_enabled(mask.device.type):
            return self._weigh(seen, mask)
        with torch.autocast(mask.device.type, enabled=False):
            return self._weigh(seen, mask)

    def _weigh(self, seen: Seen, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Weights, logits, who was chosen, and who may not speak."""
        logits = functional.linear(self.look(seen), self.e, self.b)
        if self.clock is not None:
            assert seen.time is not None
            time = functional.layer_norm(seen.time.float(), seen.time.shape[-1:])
            said = functional.linear(time / math.sqrt(time.shape[-1]), self.clock)
            logits = logits + (said[:, None] if logits.ndim == 3 else said)
        heard = self._ear.hear(mask, self.present)
        logits = logits / self.tau.clamp(*TAU)
        weights, chosen = self._activate(logits, heard)
        return weights, logits, chosen, heard.off

    def look(self, seen: Seen) -> Tensor:
        """v of equation 9: (batch, features), or (batch, tokens, features)."""
        if self.settings.input == "experts":
            assert seen.outputs is not None
            experts, batch, tokens, width = seen.outputs.shape
            z = seen.outputs.permute(1, 2, 0, 3).reshape(batch, tokens, experts * width)
        else:
            z = seen.hidden
        if self.settings.reduce == "mean" and seen.counted is not None:
            z = _mean_of(z.float(), seen.counted)
        else:
            z = _REDUCTIONS[self.settings.reduce](self, z.float(), seen.grid)
        if self.settings.normalise == "l2":
            return functional.normalize(z, dim=-1)
        return functional.layer_norm(z, z.shape[-1:])

    def _mean(self, z: Tensor, grid: tuple[int, int] | None) -> Tensor:
        return z.mean(dim=1)

    def _grid(self, z: Tensor, grid: tuple[int, int] | None) -> Tensor:
        cells = self.settings.cells
        flat = z.transpose(1, 2)  # (batch, width, tokens)
        if grid is None:  # a line of tokens
            return functional.adaptive_avg_pool1d(flat, cells**2).flatten(1)
        picture = flat.reshape(*flat.shape[:2], *grid)  # (batch, channels, height, width)
        return functional.adaptive_avg_pool2d(picture, cells).flatten(1)

    def _flatten(self, z: Tensor, grid: tuple[int, int] | None) -> Tensor:
        if z.shape[1] != self.tokens:
            raise ComposerError(
                f"These gates were trained where this unit has {self.tokens} positions, and here "
                f"it has {z.shape[1]}: they flatten their input, which binds them to one size. "
                "Make pictures of the size they were trained at, or train gates that take the mean."
            )
        return z.flatten(1)

    def _each_token(self, z: Tensor, grid: tuple[int, int] | None) -> Tensor:
        return z

    def _activate(self, logits: Tensor, heard: Heard) -> tuple[Tensor, Tensor | None]:
        """Weights, (..., experts), of those who do not speak exactly zero; who was chosen."""
        kind, off, chosen = self.settings.activation, heard.off, None
        if kind in ("sigmoid", "free"):
            strength = 2 * logits.sigmoid() if kind == "sigmoid" else logits
            weights = torch.addcmul(heard.shift, heard.scale, strength)
            if self.sparse:
                chosen = strongest(weights.detach().abs(), off, self.settings.top_k)
                weights = weights.masked_fill(all_but(chosen, weights), 0.0)
            return weights, chosen
        if self.sparse:
            chosen = strongest(logits.detach(), off, self.settings.top_k)
            off = off | all_but(chosen, logits)
        # not -inf: where nobody may speak the gradient must stay a number
        lowest = torch.finfo(logits.dtype).min
        weights = logits.masked_fill(off, lowest).softmax(dim=-1)
        if self.total is None:  # they sum to 1 whoever speaks
            return weights.masked_fill(off, 0.0), chosen
        return weights * torch.addcmul(heard.shift, heard.scale, self.total.exp()), chosen

    @property
    def sparse(self) -> bool:
        """Whether some experts are left out that may speak."""
        return 0 < self.settings.top_k < self.experts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LearnedGate:
        """Follow `.to(device)` but not `.half()`: gates stay float32."""
        device = fn(torch.empty(0, device=self.e.device)).device

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        super()._apply(move, recurse)  # pyright: ignore[reportUnknownMemberType]
        return self


def _mean_of(z: Tensor, counted: Tensor) -> Tensor:
    """The mean of the tokens that count, (batch, width).

    Rows may be a multiple of those told, as in a search of n beams: n that follow each other are of
    one request.
    """
    if z.shape[1] != counted.shape[1] or z.shape[0] % counted.shape[0]:
        raise ComposerError(
            f"A gate was told to look at {tuple(counted.shape)} (rows, tokens), and its unit has "
            f"{tuple(z.shape[:2])}: tell it anew before the model runs on other tokens."
        )
    share = counted.to(z)
    share = share / share.sum(dim=1, keepdim=True).clamp_min(1)
    share = share.repeat_interleave(z.shape[0] // counted.shape[0], dim=0)
    return torch.einsum("btw,bt->bw", z, share)


_REDUCTIONS: dict[str, Callable[[LearnedGate, Tensor, tuple[int, int] | None], Tensor]] = {
    "mean": LearnedGate._mean,  # pyright: ignore[reportPrivateUsage]
    "grid": LearnedGate._grid,  # pyright: ignore[reportPrivateUsage]
    "flatten": LearnedGate._flatten,  # pyright: ignore[reportPrivateUsage]
    "tokens": LearnedGate._each_token,  # pyright: ignore[reportPrivateUsage]
}
