"""Gates taken away: one ordinary LoRA that any other program loads, or a string of block weights.

A gate that looks cannot be merged exactly, for it answers each picture anew. What is exported
are constant weights in its place, unit by unit; how much is lost must be measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.experts import Expert
from composer.experts.low_rank import LowRank
from composer.families import Family, Places
from composer.mixture import ConstantGate, Mixture, Unit


def merged(
    mixture: Mixture, experts: Sequence[Expert], weights: Mapping[str, Sequence[float]]
) -> dict[str, LowRank]:
    """One LoRA's factors: at each site the experts' ranks side by side, weighted by their unit.

    W + sum_i g_i s_i U_i A_i = W + [g_1 s_1 U_1, ...] [A_1; ...]: exact for constant weights.

    weights: by unit, for each expert of the mixture in its order; a unit left out gets the
        mixture's constant weights there.

    Raises:
        ComposerError: the experts are not those of the mixture.
    """
    by_name = _by_name(mixture, experts)
    return {
        site: _side_by_side(by_name, site, _weights_of(name, unit, weights))
        for name, unit in mixture.units.items()
        for site in unit.plan.sites
    }


def merged_by_blocks(
    mixture: Mixture,
    experts: Sequence[Expert],
    numbers: Mapping[str, Sequence[float]],
    blocks: Sequence[Places],
) -> dict[str, LowRank]:
    """One LoRA's factors, as strings of block weights add the experts up.

    numbers: by expert, those of its string, one for each of `blocks`.

    Raises:
        ComposerError: the experts are not those of the mixture.
        ValueError: some of `unplaced_sites`, which the numbers do not cover.
    """
    by_name = _by_name(mixture, experts)
    found: dict[str, LowRank] = {}
    for site in mixture.sites:
        here = [index for index, places in enumerate(blocks) if _lies(site, places)]
        if not here:
            raise ValueError(f"no block weight covers {site}")
        given = [numbers[name][here[0]] for name in mixture.names]
        found[site] = _side_by_side(by_name, site, given)
    return found


def _weights_of(name: str, unit: Unit, weights: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """Those given for the unit, or else its constant ones."""
    if name in weights:
        return weights[name]
    if not isinstance(unit.gate, ConstantGate) or isinstance(unit.gate.weights, Tensor):
        raise ValueError(f"{name} has no constant weights: give those to export")
    return unit.gate.weights


def block_weights(
    mixture: Mixture,
    expert: str,
    weights: Mapping[str, Sequence[float]],
    blocks: Sequence[Places],
) -> tuple[float, ...]:
    """The numbers of one LoRA for the block weight extensions, one for each of `blocks`.

    Each is the mean over the units of its block, a larger unit counting in all that it covers; 0
    where the expert changes nothing there.
    """
    index = mixture.names.index(expert)
    numbers: list[float] = []
    for places in blocks:
        here = [
            _weights_of(name, unit, weights)[index]
            for name, unit in mixture.units.items()
            if unit.present[index] and any(_lies(site, places) for site in unit.plan.sites)
        ]
        numbers.append(sum(here) / len(here) if here else 0.0)
    return tuple(numbers)


def blocks_for(mixture: Mixture, family: Family) -> tuple[Places, ...]:
    """Those of the family's shorter string of block weights, if all sites are in them, else those
    of the longer."""
    layouts = family.layouts.values()
    return min(layouts, key=lambda blocks: len(unplaced_sites(mixture, blocks)))


def unplaced_sites(mixture: Mixture, blocks: Iterable[Places]) -> tuple[str, ...]:
    """The sites that none of these blocks covers."""
    everywhere = [place for places in blocks for place in places]
    return tuple(site for site in mixture.sites if not _lies(site, everywhere))


def lbw_string(name: str, numbers: Sequence[float]) -> str:
    """As prompts write it: <lora:name:1:lbw=1,0.5,...>."""
    return f"<lora:{name}:1:lbw={','.join(f'{number:.3g}' for number in numbers)}>"


def _by_name(mixture: Mixture, experts: Sequence[Expert]) -> dict[str, Expert]:
    """In the mixture's order."""
    by_name = {expert.name: expert for expert in experts}
    if set(by_name) != set(mixture.names):
        raise ComposerError(
            f"The LoRAs given are {', '.join(by_name)}, and the gates are for "
            f"{', '.join(mixture.names)}."
        )
    return {name: by_name[name] for name in mixture.names}


def _side_by_side(experts: Mapping[str, Expert], site: str, weights: Sequence[float]) -> LowRank:
    """The experts' ranks of one site, weighted."""
    downs: list[torch.Tensor] = []
    ups: list[torch.Tensor] = []
    offsets: list[torch.Tensor | None] = []
    for expert, weight in zip(experts.values(), weights, strict=True):
        factors = expert.sites.get(site)
        if factors is not None:
            downs.append(factors.down.float())
            ups.append(factors.up.float() * (factors.scale * weight))
            offsets.append(factors.offset)
    offset = None
    if any(each is not None for each in offsets):
        filled = (
            torch.zeros(down.shape[0]) if each is None else each
            for each, down in zip(offsets, downs, strict=True)
        )
        offset = torch.cat(tuple(filled))
    return LowRank(down=torch.cat(downs, dim=0), up=torch.cat(ups, dim=1), scale=1.0, offset=offset)


def _lies(site: str, places: Sequence[str]) -> bool:
    return any(f"{site}.".startswith(f"{place}.") for place in places)
