"""Where experts act: maps of how much each one's own words change the picture, place by place.

The words that call an expert (its trigger) are left out of the prompt, and the model is asked
again. Where its prediction changes, the expert has something to do:

    D_i = v(x, t, c) - v(x, t, c without the words of i)
    e_i = blur(mean over channels of D_i^2), divided by its mean over the picture
    m_i = e_i / (1 + e_i) * e_i^2 / max_j e_j^2          over the experts j that have a place

Squared shares settle whose place it is: of two experts that both reach for one figure, the one
that changes it more gets it. An expert that acts everywhere (a style) has the map 1. Maps multiply
an emphasis: an expert kept to its place can have a greater weight there than one for the whole
picture could be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from composer.mixture.gates import Gate, MaskCache
from composer.mixture.seen import Seen

CELLS = 16
"""The longer side of a map; larger pictures are looked at in as many cells."""
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Where one expert acts, and how much.

    local: whether it is kept to the places where its words act.
    emphasis: its weight there; for one that is not local, everywhere.
    """

    local: bool
    emphasis: float = 1.0


def region_maps(changes: Tensor, called: Tensor, reaches: Sequence[Reach]) -> Tensor:
    """Weights (batch, experts, h, w) from what each expert's words change.

    changes: D, (experts, batch, channels, height, width); zeros where nobody asked.
    called: bool, (experts, batch): whether the prompt names the expert; the others get 0.
    reaches: one for each expert. An expert that is alone has the map 1.
    """
    experts, batch = called.shape
    height, width = changes.shape[-2:]
    if experts == 1:
        return changes.new_ones(batch, 1, 1, 1)
    scale = max(1.0, max(height, width) / CELLS)
    size = (max(1, round(height / scale)), max(1, round(width / scale)))
    power = changes.float().square().mean(2)  # (experts, batch, height, width)
    power = _blur(functional.adaptive_avg_pool2d(power, size))
    power = power / power.mean((2, 3), keepdim=True).clamp_min(_TINY)
    power = power * called[..., None, None]
    local = torch.tensor([reach.local for reach in reaches], device=changes.device)
    rivals = power.square() * local[:, None, None, None]
    share = power.square() / rivals.amax(0).clamp_min(_TINY)
    maps = torch.where(
        local[:, None, None, None],
        power / (1 + power) * share.clamp_max(1.0),
        called[..., None, None].to(power),
    )
    emphasis = torch.tensor([reach.emphasis for reach in reaches], device=changes.device)
    return (emphasis[:, None, None, None] * maps).transpose(0, 1)


def _blur(power: Tensor) -> Tensor:
    """Twice with the binomial kernel 1 2 1, which is about one cell wide."""
    line = torch.tensor([0.25, 0.5, 0.25], device=power.device)
    kernel = (line[:, None] * line)[None, None]
    flat = power.flatten(0, 1)[:, None]
    for _ in range(2):
        flat = functional.conv2d(functional.pad(flat, (1, 1, 1, 1), mode="replicate"), kernel)
    return flat.reshape(power.shape)


def maps_at(seen: Seen, experts: int) -> Tensor:
    """The maps at each token of a unit, (batch, tokens, experts), and where it is said at those of
    the text after them; 1 where there are no maps, as in a program that does not make them."""
    batch, tokens, _ = seen.hidden.shape
    if seen.regions is None:
        return seen.hidden.new_ones(batch, tokens, experts, dtype=torch.float32)
    places = _at_places(seen, seen.regions, experts)
    if seen.words is None:
        return places
    words = seen.words.transpose(1, 2)  # of the rows with the prompt
    without = words[:, :1].expand_as(words).repeat(batch // len(words) - 1, 1, 1)
    return torch.cat([places, torch.cat([without, words])], 1)


def _at_places(seen: Seen, maps: Tensor, experts: int) -> Tensor:
    batch, tokens, _ = seen.hidden.shape
    maps = maps.repeat(batch // maps.shape[0], 1, 1, 1)  # the same with and without prompt
    if seen.grid is None:  # a line of tokens has no places
        return maps.mean((2, 3))[:, None].expand(batch, tokens, experts)
    if maps.shape[-2:] != seen.grid:
        if maps.shape[-1] > seen.grid[1]:
            maps = functional.adaptive_avg_pool2d(maps, seen.grid)
        else:
            maps = functional.interpolate(
                maps, size=seen.grid, mode="bilinear", align_corners=False
            )
    return maps.flatten(2).transpose(1, 2)


class RegionGate(Gate):
    """Each expert in its place: g_i = m_i * w_i at each token, with m the maps and w constants.

    weights: (experts,), one for each.
    present: which experts change anything in this unit.
    concepts: whether the maps are to be those that attention shows.
    """

    needs_regions = True
    present: Tensor
    weights: Tensor

    def __init__(
        self, weights: Sequence[float], present: Sequence[bool], *, concepts: bool = False
    ) -> None:
        super().__init__()
        self.experts = len(present)
        self.needs_concepts = concepts
        self._masked = MaskCache()
        self.register_buffer("present", torch.tensor(list(present), dtype=torch.bool))
        self.register_buffer("weights", torch.tensor(list(weights), dtype=torch.float32))

    def forward(self, seen: Seen | None, mask: Tensor) -> Tensor:
        """(batch, tokens, experts)."""
        assert seen is not None  # it is asked when its unit runs
        masked = self._masked(mask, self.present)
        given = (maps_at(seen, self.experts) * self.weights).contiguous()
        return torch.addcmul(masked.shift, masked.scale, given)
