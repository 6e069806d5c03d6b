"""Gates that decide from the hidden state how loud each expert is, and from the maps where."""

from __future__ import annotations

import torch
from torch import Tensor

from composer.mixture.learned import LearnedGate
from composer.mixture.regions import RegionGate
from composer.mixture.seen import Seen


class PlacedGate(LearnedGate):
    """g = m * w at each token: m its place's weights (`region_maps`), and w what the same gate
    without maps says of the unit's input.

    With w = 1 it is the maps themselves. Where there are no maps, m is 1 everywhere. The fewer
    experts may speak, the less the maps count: one that is alone is itself.
    """

    def _weigh(self, seen: Seen, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        weights, logits, chosen, off = super()._weigh(seen, mask)
        heard = self._ear.hear(mask, self.present)
        maps = torch.addcmul(heard.shift, heard.scale, RegionGate.places(seen, self.experts))
        if weights.ndim == 2:  # one vector for all places
            tokens = maps.shape[1]
            weights = weights[:, None]
            logits = logits[:, None].expand(-1, tokens, -1)
            chosen = None if chosen is None else chosen[:, None].expand(-1, tokens, -1)
        return weights * maps, logits, chosen, off
