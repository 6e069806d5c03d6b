"""Merges: one LoRA is made of all, site by site, before a picture is begun."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from composer.errors import ComposerError
from composer.fusions.recipe import Plan
from composer.fusions.rows import ALWAYS, LoraRow, Pin
from composer.fusions.sums import Sum
from composer.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

    from composer.experts import Expert
    from composer.experts.low_rank import LowRank
    from composer.fusions.libraries import Libraries
    from composer.fusions.merging import Weighted
    from composer.fusions.recipe import Bench

MOST_INPUTS = 6144
"""Of one site whose products are kept: 300 MB in float64."""

DENSITY = {"above": 0, "at_most": 1, "label": "Density", "help": "The share of numbers kept."}


@dataclass(frozen=True, kw_only=True)
class Whole(Sum):
    """All LoRAs as one: none of them can be limited to steps or depth, and no unit be pinned."""

    by_blocks = False
    usual = False

    @classmethod
    def evenly(cls, count: int) -> tuple[str, str] | None:
        """With weights of 1, for several LoRAs; one alone needs no fusion."""
        return (cls.title, cls.brief) if count > 1 and cls.exactly in (0, count) else None

    def plan(self, rows: Iterable[LoraRow], pins: Iterable[Pin], libraries: Libraries) -> Plan:
        """As for a sum.

        Raises:
            ComposerError: besides, limits or pins, which cannot hold.
        """
        plan = super().plan(rows, pins, libraries)
        limited = [n for n, row in plan.rows.items() if (row.steps, row.depth) != (ALWAYS, ALWAYS)]
        if limited or plan.pins:
            what = f"the steps or depth of {limited[0]!r} are limited" if limited else ""
            what = what or "units are pinned by hand"
            raise ComposerError(
                f"{self.title} takes all LoRAs as one, and {what}: take that back, or choose the "
                "weighted sum."
            )
        return plan

    def outcome(self, rows: Sequence[LoraRow]) -> object:
        """Of no other recipe."""
        return (self.key, super().outcome(rows))


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the LoRAs at a site beside their factors, in the same order.

    styles: which of them are styles.
    inputs: of each (samples, in · kh · kw), what the site sees when the LoRA paints alone; none
        where the merge does not ask.
    """

    styles: Sequence[bool]
    inputs: Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Merge(Whole):
    """One difference for each site of the U-Net, in place of those of the LoRAs.

    rank: how much of it is kept; 0 is all. observes: whether it needs the inputs of the sites.
    """

    observes: ClassVar[bool] = False

    rank: int = setting(
        0,
        at_least=0,
        at_most=4096,
        label="Rank",
        help="Ranks kept of the merged difference at each site; 0 is all.",
    )

    def merge(self, site: str, loras: Weighted, known: Known) -> LowRank:
        """The difference at a site, of the LoRAs that change it, with their weights."""
        raise NotImplementedError

    def too_large(self, columns: int, loras: int) -> bool:
        """Whether what `merge` makes of so many columns of a site does not fit into memory."""
        return False

    def attach(self, plan: Plan, bench: Bench) -> dict[str, Expert]:
        """One expert, made when it is asked for the first time, with weight 1."""
        names = sorted(plan.rows)
        experts = {name: bench.read(name, plan.paths[name]) for name in names}
        bench.place(None)
        if not experts:
            bench.attach("network", {})
            return {}
        weights = [plan.rows[name].weights for name in names]
        key = (self, tuple(map(str, weights)), *experts.values())
        merged, kept, added_up = bench.derive(key, lambda: self._merged(experts, weights, bench))
        mixture = bench.attach("network", {names[0]: merged})
        assert mixture is not None  # there is an expert
        bench.fitted = None
        mixture.set_weights({names[0]: 1.0})
        mixture.at_rest()
        mixture.follow(None)
        mixture.strengthen({})
        mixture.toggle(names[0], True)
        if self.rank:
            bench.notes.append(
                f"Rank {self.rank} keeps {kept:.1%} of the energy of the merged LoRAs."
            )
        if added_up:
            bench.notes.append(
                f"{self.title} would take too much memory at {added_up} sites of the model: there "
                "the LoRAs are added up."
            )
        return {name: experts[name] for name in plan.rows}

    def _merged(
        self, experts: Mapping[str, Expert], weights: Sequence[Mapping[str, float]], bench: Bench
    ) -> tuple[Expert, float, int]:
        """The expert, how much of it its ranks keep, and at how many sites it is the sum."""
        from composer.fusions.merging import added, merge_experts

        added_up: list[str] = []
        styles = [expert.info.role == "style" for expert in experts.values()]
        seen = bench.observe(experts) if self.observes else None

        def merge(site: str, loras: Weighted, here: Sequence[int]) -> LowRank:
            inputs = [] if seen is None else [seen[site][n] for n in here]
            if inputs and self.too_large(inputs[0].shape[1], len(loras)):
                added_up.append(site)
                return added(loras)
            return self.merge(site, loras, Known(styles=[styles[n] for n in here], inputs=inputs))

        merged, kept = merge_experts(tuple(experts.values()), weights, merge, self.rank)
        return merged, kept, len(added_up)


@dataclass(frozen=True, kw_only=True)
class Ties(Merge):
    """TIES (arXiv 2306.01708) on the whole differences, as PEFT's `ties_svd`, or DARE-TIES."""

    kind = "ties"
    title = "TIES"
    description = (
        "Keeps the largest numbers of each LoRA, lets them vote on each sign, and averages those "
        "that agree."
    )
    brief = "signs by vote"
    paper = "https://arxiv.org/abs/2306.01708"

    density: float = setting(0.5, **DENSITY)
    trim: Literal["largest", "by chance"] = setting(
        "largest", label="Kept", help="Which numbers are kept; by chance is DARE-TIES."
    )

    def merge(self, site: str, loras: Weighted, known: Known) -> LowRank:
        """See `merging.ties`."""
        from composer.fusions.merging import by_chance, ties

        chance = self.trim == "by chance"
        keep = by_chance(loras, self.density, _seed(site)) if chance else None
        return ties(loras, self.density, keep)


@dataclass(frozen=True, kw_only=True)
class Magnitude(Merge):
    """The largest numbers of each whole difference, as PEFT's `magnitude_prune_svd`.

    chance: whether numbers are kept by chance in place of the largest.
    """

    kind = "magnitude"
    title = "Magnitude pruning"
    description = "Keeps the largest numbers of each LoRA and adds them up."
    brief = "the largest numbers alone"
    paper = "https://arxiv.org/abs/2306.01708"
    chance: ClassVar[bool] = False

    density: float = setting(0.5, **DENSITY)

    def merge(self, site: str, loras: Weighted, known: Known) -> LowRank:
        """See `merging.pruned`."""
        from composer.fusions.merging import by_chance, pruned

        keep = by_chance(loras, self.density, _seed(site)) if self.chance else None
        return pruned(loras, self.density, keep)


@dataclass(frozen=True, kw_only=True)
class Dare(Magnitude):
    """DARE (arXiv 2311.03099) on the whole differences, as PEFT's `dare_linear_svd`."""

    kind = "dare"
    title = "DARE"
    description = (
        "Drops numbers of each LoRA by chance, makes up for it with larger ones, and adds up."
    )
    brief = "some dropped by chance"
    paper = "https://arxiv.org/abs/2311.03099"
    chance = True


@dataclass(frozen=True, kw_only=True)
class Compressed(Merge):
    """The sum of all, cut to fewer ranks: what merging tools write into one file."""

    kind = "svd"
    title = "Sum cut to a rank"
    description = (
        "The weighted sum, cut to few ranks at each site, as tools do that write a merged LoRA."
    )
    brief = "the sum in fewer ranks"
    paper = "https://arxiv.org/abs/2106.09685"

    rank: int = setting(
        8, at_least=1, at_most=4096, label="Rank", help="Ranks kept at each site, the nearest."
    )

    def merge(self, site: str, loras: Weighted, known: Known) -> LowRank:
        """The sum."""
        from composer.fusions.merging import added

        return added(loras)


@dataclass(frozen=True, kw_only=True)
class Knots(Merge):
    """KnOTS (arXiv 2410.19735) with TIES."""

    kind = "knots"
    title = "KnOTS"
    description = "Turns the LoRAs into axes that they share, and merges there as TIES does."
    brief = "TIES on shared axes"
    paper = "https://arxiv.org/abs/2410.19735"

    density: float = setting(0.5, **DENSITY)

    def merge(self, site: str, loras: Weighted, known: Known) -> LowRank:
        """See `merging.knots`."""
        from composer.fusions.merging import knots

        return knots(loras, self.density)


@dataclass(frozen=True, kw_only=True)
class Projected(Merge):
    """NP-LoRA (arXiv 2511.11051)."""

    kind = "np-lora"
    title = "NP-LoRA"
    description = (
        "Takes out of the other LoRAs what they do with the inputs that a style uses, then adds "
        "all up; without a style it is the weighted sum."
    )
    brief = "others kept off a style's inputs"
    paper = "https://arxiv.org/abs/2511.11051"

    strength: float = setting(
        0.5,
        at_least=0,
        at_most=1,
        label="Projection",
        help="How much of it is taken out; 1 is all.",
    )

    def merge(self, site: str, loras: Weighted, known: Known) -> LowRank:
        """See `merging.projected`."""
        from composer.fusions.merging import projected

        return projected(loras, known.styles, self.strength)


@dataclass(frozen=True, kw_only=True)
class RegMean(Merge):
    """RegMean (arXiv 2212.09849), as Mix-of-Show's gradient fusion without a gradient."""

    kind = "regmean"
    title = "RegMean"
    description = (
        "The matrix that is nearest to each LoRA's on what it sees when that LoRA paints alone; "
        "some steps of each are painted for it first."
    )
    brief = "nearest to each on its own pictures"
    paper = "https://arxiv.org/abs/2212.09849"
    observes = True

    alpha: float = setting(
        0.9,
        at_least=0,
        at_most=1,
        label="Alpha",
        help="How much products of different inputs count; 0 averages each input by itself.",
    )

    def merge(self, site: str, loras: Weighted, known: Known) -> LowRank:
        """See `merging.regmean`."""
        from composer.fusions.merging import regmean

        return regmean(loras, known.inputs, self.alpha)

    def too_large(self, columns: int, loras: int) -> bool:
        """Of the product of all columns."""
        return columns > MOST_INPUTS


@dataclass(frozen=True, kw_only=True)
class Ssr(Merge):
    """SSR-Merge: a router between the LoRAs' ranks, in closed form."""

    kind = "ssr"
    title = "SSR-Merge"
    description = (
        "A router between the ranks of all LoRAs that gives each its own activations on what it "
        "sees when it paints alone; some steps of each are painted for it first."
    )
    brief = "a router between their ranks"
    paper = "https://arxiv.org/abs/2606.10617"
    observes = True

    ridge: float = setting(
        0.01,
        at_least=0,
        at_most=100,
        label="Ridge",
        help="How little the router trusts what it has seen.",
    )

    def merge(self, site: str, loras: Weighted, known: Known) -> LowRank:
        """See `merging.ssr`."""
        from composer.fusions.merging import ssr

        return ssr(loras, known.inputs, self.ridge)


@dataclass(frozen=True, kw_only=True)
class ZipLora(Merge):
    """ZipLoRA (arXiv 2311.13600), its distance taken site by site."""

    kind = "ziplora"
    title = "ZipLoRA"
    description = (
        "A number for each column of each LoRA, so that no column serves two and each LoRA does "
        "what it does alone, matrix by matrix; some steps of each are painted for it first."
    )
    brief = "each column for one of them"
    paper = "https://arxiv.org/abs/2311.13600"
    observes = True

    overlap: float = setting(
        0.01,
        at_least=0,
        at_most=100,
        label="Overlap",
        help="How much it costs that two LoRAs use one column.",
    )

    def merge(self, site: str, loras: Weighted, known: Known) -> LowRank:
        """See `merging.zipped`."""
        from composer.fusions.merging import zipped

        return zipped(loras, known.inputs, self.overlap)

    def too_large(self, columns: int, loras: int) -> bool:
        """Of the product of all columns of all LoRAs."""
        return columns * loras > 2 * MOST_INPUTS


@dataclass(frozen=True, kw_only=True)
class PeftLinear(Merge):
    """PEFT's `linear`, whose own documentation calls it a rough approximation."""

    kind = "peft-linear"
    title = "PEFT linear"
    description = (
        "PEFT's `linear`, which adds up factors in place of differences: for LoRAs with nothing in "
        "common it is about 100 % off their sum."
    )
    brief = "factors added up, about 100 % off"
    paper = "https://huggingface.co/docs/peft/developer_guides/model_merging"

    def merge(self, site: str, loras: Weighted, known: Known) -> LowRank:
        """See `merging.peft_linear`."""
        from composer.fusions.merging import peft_linear

        return peft_linear(loras)


def _seed(site: str) -> int:
    """The same site drops the same numbers in every picture, on every machine."""
    return zlib.crc32(site.encode())
