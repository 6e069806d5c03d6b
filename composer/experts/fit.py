"""Whether a LoRA fits a model, and a message that says which model it was made for."""

from __future__ import annotations

from pathlib import Path

from ..errors import ComposerError
from .base_model import family
from .expert import Expert
from .module_names import ModuleNames, Shape


def check_fits(expert: Expert, modules: ModuleNames) -> None:
    """Raise ComposerError at the first site of `expert` that the model lacks or has otherwise."""
    for site, factors in expert.sites.items():
        if factors.weight_shape != modules.weight_shape(site):
            raise misfit(expert.path, expert.info.base, modules, site, factors.weight_shape)


def misfit(
    path: Path, base: str, modules: ModuleNames, site: str | None = None, shape: Shape = ()
) -> ComposerError:
    """The error for a LoRA made for another model than `modules`; `base` is the one it seems for.

    With no site: not one of the LoRA's names belongs to the model.
    """
    if site is None:
        difference = "none of its modules is in the model"
    else:
        there = modules.weight_shape(site)
        difference = f"{site} is {_sizes(shape)} in the LoRA and " + (
            f"{_sizes(there)} in the model" if there else "not in the model"
        )
    width = modules.text_width
    loaded = f"{modules.model!r}" + (f" ({family(width)})" if width else "")
    return ComposerError(
        f"{path}: this LoRA seems to be made for {base or 'another model'}, and the model loaded "
        f"is {loaded}: {difference}. Use a LoRA made for this model, or load the LoRA's model."
    )


def _sizes(shape: Shape) -> str:
    return "×".join(map(str, shape))
