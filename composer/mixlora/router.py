"""Routers: gates that pick a few experts for each token (MixLoRA, arXiv 2404.15159, section 3.2).

p = softmax(W h), in float32 whatever the model is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.errors import ComposerError
from composer.settings import Settings, setting

Strategy = Literal["mixlora", "mixlora-dynamic", "mixlora-switch"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


@dataclass(frozen=True, kw_only=True)
class RouterSettings(Settings):
    """How experts are picked. The names of the strategies are those of the reference's files.

    strategy: "mixlora", the top_k by probability, their weights made to sum to 1; "mixlora-dynamic"
        as many as it takes to exceed top_p; "mixlora-switch", the best one, while it has room.
    temperature: of the dynamic router, which divides its probabilities by it; 0 for none.
    capacity: of the switch router, how many tokens of a sequence an expert takes; those that come
        later take the frozen FFN alone. None: all.
    remainder: what of a weight of 1 the picked experts leave goes to the frozen FFN. Without it, as
        in the reference, the dynamic and the switch router make the FFN's output smaller.
    jitter: in training, tokens are multiplied by a number from 1 - jitter to 1 + jitter: for the
        whole FFN, but for the router alone in "mixlora-switch".
    init_std: of the router's weights at the start; None for 0.02, or 1 in "mixlora-switch".
    balance: the coefficient of the balance loss. Table 9 finds 1e-3 best (its text says 1e-2).
    z_loss: the coefficient of the switch router's z-loss.
    """

    noun: ClassVar[str] = "router settings"

    strategy: Strategy = setting("mixlora", help="How experts are picked.")
    experts: int = setting(8, at_least=1, help="Experts in each feed-forward.")
    top_k: int = setting(2, help="How many experts each token gets.")
    top_p: float = setting(0.8, above=0, at_most=1, help="Of the dynamic router.")
    temperature: float = setting(0.0, at_least=0)
    capacity: int | None = setting(32, at_least=1, help="Of the switch router; 0 for no limit.")
    remainder: bool = setting(False, help="The frozen feed-forward gets what weight is left.")
    jitter: float = setting(0.0, at_least=0, below=1, help="Noise on router inputs in training.")
    init_std: float | None = setting(None, at_least=0)
    balance: float = setting(1e-3, at_least=0, help="Coefficient of the balance loss.")
    z_loss: float = setting(1e-3, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.top_k <= self.experts and self.strategy == "mixlora":
            raise ComposerError(
                f"The router is to pick {self.top_k} of {self.experts} experts: give a top_k "
                f"from 1 to {self.experts}, or more experts."
            )

    @property
    def std(self) -> float:
        """Of the router's weights at the start."""
        if self.init_std is not None:
            return self.init_std
        return 1.0 if self.strategy == "mixlora-switch" else 0.02


@dataclass(frozen=True, kw_only=True)
class Picks:
    """What a router says to a batch of sequences.

    logits: float32, (rows, tokens, experts).
    preferred: (rows, tokens, choices), the experts in order of preference, whether they have room
        or not, -1 for none: what the balance loss counts.
    chosen: (rows, tokens, choices), the experts that do take the token, -1 for none.
    weights: float32, (rows, tokens, choices), 0 where none is chosen.
    rest: float32, (rows, tokens), the weight of the frozen FFN alone; None where it is 0 for all.
    """

    logits: Tensor
    preferred: Tensor
    chosen: Tensor
    weights: Tensor
    rest: Tensor | None


class Router(nn.Module):
    """One FFN's router: `weight` (experts, width), float32 and without a bias.

    width: of a token.
    """

    def __init__(self, settings: RouterSettings, width: int) -> None:
        super().__init__()
        self.settings, self.width = settings, width
        self.weight = nn.Parameter(settings.std * torch.randn(settings.experts, width))

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Picks:
        """hidden: (rows, tokens, width). mask: bool, (rows, tokens): tokens that count; the others
        take no room from an expert with a capacity."""
        seen = hidden.float()
        if self.settings.strategy == "mixlora-switch":
            seen = self.shake(seen)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = functional.linear(seen, self.weight)
            probabilities = logits.softmax(dim=-1)
            return _PICK[self.settings.strategy](self.settings, logits, probabilities, mask)

    def shake(self, hidden: Tensor) -> Tensor:
        """The jitter of training, out of place; the same tensor otherwise."""
        jitter = self.settings.jitter
        if not self.training or jitter == 0.0:
            return hidden
        return hidden * torch.empty_like(hidden).uniform_(1.0 - jitter, 1.0 + jitter)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Follow `.to(device)` but not `.half()`: routers stay float32."""
        device = fn(torch.empty(0, device=self.weight.device)).device

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        super()._apply(move, recurse)  # pyright: ignore[reportUnknownMemberType]
        return self


def _top_k(
    settings: RouterSettings, logits: Tensor, probabilities: Tensor, mask: Tensor | None
) -> Picks:
    """w = p_k / sum of p_k over the k greatest (MixLoRA, equation 5)."""
    weights, chosen = probabilities.topk(settings.top_k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return Picks(logits=logits, preferred=chosen, chosen=chosen, weights=weights, rest=None)


def _top_p(
    settings: RouterSettings, logits: Tensor, probabilities: Tensor, mask: Tensor | None
) -> Picks:
    """Experts by falling probability, through the first at which their sum exceeds top_p."""
    if settings.temperature > 0.0:
        probabilities = probabilities / settings.temperature  # as released
    weights, chosen = probabilities.sort(dim=-1, descending=True, stable=True)
    out = functional.pad(weights.cumsum(dim=-1)[..., :-1], (1, 0)) > settings.top_p
    chosen = chosen.masked_fill(out, -1)
    weights = weights.masked_fill(out, 0.0)
    rest = (1.0 - weights.sum(dim=-1)).clamp_min(0.0) if settings.remainder else None
    return Picks(logits=logits, preferred=chosen, chosen=chosen, weights=weights, rest=rest)


def _switch(
    settings: RouterSettings, logits: Tensor, probabilities: Tensor, mask: Tensor | None
) -> Picks:
    """The best expert at weight p, in training and in use, for the first `capacity` tokens of each
    sequence that prefer it (Fedus et al. 2021)."""
    best, preferred = probabilities.max(dim=-1, keepdim=True)  # (rows, tokens, 1)
    chosen, weights = preferred, best
    rest = (1.0 - best[..., 0]) if settings.remainder else None
    if settings.capacity is not None:
        queue = functional.one_hot(preferred[..., 0], settings.experts)  # (rows, tokens, experts)
        if mask is not None:
            queue = queue * mask[..., None]
        place = queue.cumsum(dim=1).gather(-1, preferred)  # (rows, tokens, 1), from 1
        late = place > settings.capacity
        chosen = preferred.masked_fill(late, -1)
        weights = best.masked_fill(late, 0.0)
        # at its expert's weight, or with the remainder at 1, a late token takes the frozen FFN
        alone = torch.where(late, best, 0.0)[..., 0]
        rest = alone if rest is None else rest + alone
    return Picks(logits=logits, preferred=preferred, chosen=chosen, weights=weights, rest=rest)


_PICK: dict[str, Callable[[RouterSettings, Tensor, Tensor, Tensor | None], Picks]] = {
    "mixlora": _top_k,
    "mixlora-dynamic": _top_p,
    "mixlora-switch": _switch,
}
