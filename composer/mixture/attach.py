"""Attach experts to models by replacing modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from torch import nn

from composer.errors import ComposerError
from composer.mixture.guards import check_factors, check_host, find_site
from composer.mixture.mixture import Mixture
from composer.mixture.replacement import replace, undo
from composer.mixture.routing import Routing
from composer.mixture.sites import ExpertConv2d, ExpertLinear, LowRankLike, Site
from composer.mixture.stand_in import Timekeeper, UnitModule, Watch
from composer.mixture.unit import Unit
from composer.mixture.units import GRANULARITIES, Granularity, plan_units

TIME = "time_embedding"
TEXT_SITES = (".attn2.to_k", ".attn2.to_v")
"""Of diffusers' cross-attention, whose text may have as many tokens as the picture has places."""


def attach(
    models: Mapping[str, nn.Module],
    experts: Mapping[str, Mapping[str, LowRankLike]],
    *,
    granularity: Granularity = "network",
) -> Mixture:
    """Attach experts to models. Everything is checked and built before any module is replaced.

    models: by part, for instance {"unet": unet, "text_encoder": text_encoder}.
    experts: by name, each expert's factors by site: "<part>.<path of the module in that part>".
    granularity: what one gate governs: a matrix, a layer, a block or a whole network.

    Raises:
        ComposerError: a model, an expert or a site cannot be used; the models are as before.
    """
    if granularity not in GRANULARITIES:
        raise ComposerError(
            f"There is no granularity {granularity!r}: choose one of {', '.join(GRANULARITIES)}."
        )
    # torch.compile(model) wraps the module whose children are meant.
    models = {
        part: cast(nn.Module, getattr(model, "_orig_mod", model)) for part, model in models.items()
    }
    for part, model in models.items():
        check_host(part, model)
    names = tuple(experts)
    bases = _bases(models, experts)
    watches = {part: Watch() for part in models}
    units: dict[str, Unit] = {}
    sites: dict[str, Site] = {}
    for plan in plan_units(models, bases, granularity):
        routing = Routing(len(names)).to(bases[plan.sites[0]].weight.device)
        for name in plan.sites:
            base = bases[name]
            kind = ExpertLinear if isinstance(base, nn.Linear) else ExpertConv2d
            sites[name] = kind(base, [experts[expert].get(name) for expert in names], routing)
            sites[name].reads_text = name.endswith(TEXT_SITES)
        present = [any(name in experts[expert] for name in plan.sites) for expert in names]
        units[plan.name] = Unit(plan=plan, routing=routing, present=tuple(present))
    done = replace(models, {site.base: site for site in sites.values()})
    try:
        # After the sites, for a unit may be one of them.
        done += replace(models, dict(_stand_ins(models, units, watches)))
        # After the units, for a time embedding may be one of them.
        done += replace(models, dict(_clocks(models, units, watches)))
    except BaseException:
        undo(done)
        raise
    return Mixture(names, models, sites, units, watches, done)


def _stand_ins(
    models: Mapping[str, nn.Module], units: Mapping[str, Unit], watches: Mapping[str, Watch]
) -> Iterator[tuple[nn.Module, nn.Module]]:
    for unit in units.values():
        plan = unit.plan
        if plan.path is not None:
            base = models[plan.part].get_submodule(plan.path)
            watch = watches[plan.part]
            unit.module = UnitModule(plan.name, base, unit.routing, watch, entry=plan.entry)
            clock = getattr(models[plan.part], TIME, None)
            unit.timed = isinstance(clock, nn.Module) and plan.path.partition(".")[0] != TIME
            yield base, unit.module


def _clocks(
    models: Mapping[str, nn.Module], units: Mapping[str, Unit], watches: Mapping[str, Watch]
) -> Iterator[tuple[nn.Module, nn.Module]]:
    for part in {unit.plan.part for unit in units.values()}:
        clock = getattr(models[part], TIME, None)
        if isinstance(clock, nn.Module):
            yield clock, Timekeeper(clock, watches[part])


def _bases(
    models: Mapping[str, nn.Module], experts: Mapping[str, Mapping[str, LowRankLike]]
) -> dict[str, nn.Linear | nn.Conv2d]:
    """The module at each site that some expert changes, when all of them fit."""
    bases: dict[str, nn.Linear | nn.Conv2d] = {}
    for expert, factors_by_site in experts.items():
        if not factors_by_site:
            raise ComposerError(
                f'Expert "{expert}" changes nothing in these models. Leave it out, or choose a '
                "LoRA that was made for them."
            )
        for site, factors in factors_by_site.items():
            if site not in bases:
                bases[site] = find_site(site, models)
            check_factors(expert, site, factors, bases[site])
    return bases
