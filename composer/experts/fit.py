"""The error for a LoRA that does not fit a model: it says which one the LoRA was made for."""

from __future__ import annotations

from pathlib import Path

from composer.errors import ComposerError
from composer.experts.module_names import ModuleNames, Shape
from composer.families import find_family


def misfit(
    path: Path,
    base: str,
    modules: ModuleNames,
    site: str | None = None,
    shape: Shape = (),
    *,
    name: str = "",
) -> ComposerError:
    """The error for a LoRA made for another model than `modules`; `base` is the one it seems for.

    With no site: not one of the LoRA's names, of which `name` is one, belongs to the model.
    """
    family = find_family(modules.text_width, modules.shapes).name if modules.text_width else ""
    if site is None and base and base == family:
        return ComposerError(
            f"{path}: this LoRA's shapes are those of {base}, as the model loaded is, but its "
            f"names are no modules of {modules.model!r}, for instance {name!r}. Convert the file "
            "to kohya's or diffusers' naming, or look for another version of it."
        )
    if site is None:
        difference = "none of its modules is in the model"
    else:
        there = _sizes(modules.weight_shape(site) or ())
        difference = f"{site} is {_sizes(shape)} in the LoRA and {there} in the model"
    loaded = f"{modules.model!r}" + (f" ({family})" if family else "")
    return ComposerError(
        f"{path}: this LoRA seems to be made for {base or 'another model'}, and the model loaded "
        f"is {loaded}: {difference}. Use a LoRA made for this model, or load the LoRA's model."
    )


def _sizes(shape: Shape) -> str:
    return "×".join(map(str, shape))
