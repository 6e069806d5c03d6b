"""Put sites in the place of modules, and the modules back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from composer.mixture.sites import Site


@dataclass(frozen=True)
class Replacement:
    """A child of `parent` called `name`: `base` stood there, `site` stands there now."""

    parent: nn.Module
    name: str
    base: nn.Module
    site: Site

    def do(self) -> None:
        setattr(self.parent, self.name, self.site)

    def undo(self) -> None:
        setattr(self.parent, self.name, self.base)


def replace(models: Mapping[str, nn.Module], sites: Mapping[str, Site]) -> list[Replacement]:
    """Put the sites in the place of their bases, under every name that a base goes by."""
    by_base: dict[nn.Module, Site] = {site.base: site for site in sites.values()}
    replacements = [
        Replacement(parent, name, child, by_base[child])
        for model in models.values()
        for parent in model.modules()
        for name, child in parent._modules.items()  # pyright: ignore[reportPrivateUsage]
        if child in by_base
    ]
    done: list[Replacement] = []
    try:
        for replacement in replacements:
            done.append(replacement)
            replacement.do()
    except BaseException:
        for replacement in reversed(done):
            replacement.undo()
        raise
    return replacements
