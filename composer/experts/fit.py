"""The error for a LoRA that does not fit a model: it says which one the LoRA was made for."""

from __future__ import annotations

from pathlib import Path

from composer.errors import ComposerError
from composer.experts.module_names import ModuleNames, Shape
from composer.families import find_family


def misfit(
    path: Path, base: str, modules: ModuleNames, site: str | None = None, shape: Shape = ()
) -> ComposerError:
    """The error for a LoRA made for another model than `modules`; `base` is the one it seems for.

    With no site: not one of the LoRA's names belongs to the model.
    """
    if site is None:
        difference = "none of its modules is in the model"
    else:
        there = _sizes(modules.weight_shape(site) or ())
        difference = f"{site} is {_sizes(shape)} in the LoRA and {there} in the model"
    width = modules.text_width
    loaded = f"{modules.model!r}" + (
        f" ({find_family(width, modules.shapes).name})" if width else ""
    )
    return ComposerError(
        f"{path}: this LoRA seems to be made for {base or 'another model'}, and the model loaded "
        f"is {loaded}: {difference}. Use a LoRA made for this model, or load the LoRA's model."
    )


def _sizes(shape: Shape) -> str:
    return "×".join(map(str, shape))
