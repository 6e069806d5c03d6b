"""An expert: what one LoRA file adds to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from composer.experts.embedding import Embedding
from composer.experts.info import LoraInfo
from composer.experts.low_rank import LowRank


@dataclass(frozen=True, kw_only=True, eq=False)
class Expert:
    """The factors of one LoRA file at each site, in float32, and what the file says of itself.

    Sites are `part.module`, as in `unet.mid_block.attentions.0.proj_in`. `unmatched` are the keys
    of the file that belong to no module of the model it was read for, `modules` how many modules
    the file changes, whether the model has them or not. `embeddings` are words that it brings along
    for prompts.
    """

    name: str
    path: Path
    sites: Mapping[str, LowRank]
    info: LoraInfo
    unmatched: tuple[str, ...]
    modules: int
    sha256: str
    tensor_hash: str
    embeddings: tuple[Embedding, ...] = ()

    @property
    def share(self) -> float:
        """How much of the file is at work: of its modules, those that the model has."""
        return len(self.sites) / self.modules
