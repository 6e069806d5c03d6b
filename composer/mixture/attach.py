"""Attach experts to models by replacing modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from composer.errors import ComposerError
from composer.mixture.guards import check_factors, check_host, find_site
from composer.mixture.mixture import Mixture
from composer.mixture.replacement import replace
from composer.mixture.routing import Routing
from composer.mixture.sites import ExpertConv2d, ExpertLinear, LowRankLike, Site


def attach(
    models: Mapping[str, nn.Module], experts: Mapping[str, Mapping[str, LowRankLike]]
) -> Mixture:
    """Attach experts to models. Everything is checked and built before any module is replaced.

    models: by part, for instance {"unet": unet, "text_encoder": text_encoder}.
    experts: by name, each expert's factors by site: "<part>.<path of the module in that part>".

    Raises:
        ComposerError: a model, an expert or a site cannot be used; the models are as before.
    """
    # torch.compile(model) wraps the module whose children are meant.
    models = {
        part: cast(nn.Module, getattr(model, "_orig_mod", model)) for part, model in models.items()
    }
    for part, model in models.items():
        check_host(part, model)
    names = tuple(experts)
    routings = {part: Routing(len(names)) for part in models}
    sites: dict[str, Site] = {}
    for name, base in _bases(models, experts).items():
        routing = routings[name.partition(".")[0]].to(base.weight.device)
        kind = ExpertLinear if isinstance(base, nn.Linear) else ExpertConv2d
        sites[name] = kind(base, [experts[expert].get(name) for expert in names], routing)
    replacements = replace(models, sites)
    return Mixture(names, models, sites, routings, replacements)


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
