"""Which modules of a model an adapter changes: its FFNs by their structure, its attention by name.

Everything is found and checked here, before anything is built or replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

from torch import nn

from composer.errors import ComposerError
from composer.mixlora.adapter import AdapterSite
from composer.mixlora.ffn import FORMS, FfnForm, check_form, find_ffns
from composer.mixlora.host import FfnHost
from composer.mixlora.names import ATTENTION, CONVOLUTIONS
from composer.mixlora.settings import MixLoraSettings
from composer.mixture.guards import check_host


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What one adapter changes in one model.

    config: with its target_modules filled in.
    ffns: by path of an FFN the paths in it of the Linear modules that get experts.
    attention: the paths of the Linear modules that get plain LoRA; convolutions: of the Conv2d.
    """

    config: MixLoraSettings
    ffns: Mapping[str, tuple[str, ...]]
    attention: tuple[str, ...]
    convolutions: tuple[str, ...]


def find_hosts(model: nn.Module) -> dict[str, FfnForm]:
    """By path the FFNs of a model, each checked to be what its form says.

    Raises:
        ComposerError: none is known, or the model carries other adapters already.
    """
    for path, module in _named(model):
        if isinstance(module, FfnHost | AdapterSite):
            raise ComposerError(
                f"This model already has MixLoRA adapters (at {path}). Detach them first, or "
                "attach all adapters in one call."
            )
    check_host("The model", model)
    forms = find_ffns(model)
    if not forms:
        known = "; ".join(form.name for form in FORMS)
        raise ComposerError(
            f"{type(model).__name__} has no feed-forward network of a known form ({known}), so "
            "that there is no place for experts. Choose a model of another family (Llama, "
            "Mistral, Gemma, Qwen, Phi, Phi-3, T5, CLIP)."
        )
    for path, form in forms.items():
        check_form(path, model.get_submodule(path), form)
    return forms


def find_targets(
    model: nn.Module, forms: Mapping[str, FfnForm], name: str, config: MixLoraSettings
) -> Targets:
    """What the adapter called `name` changes.

    Raises:
        ComposerError: a target module that is not there, no FFN among them, another activation.
    """
    outside = [
        path
        for path, module in _named(model)
        if isinstance(module, nn.Linear)
        and any(part.isdigit() for part in path.split("."))
        and not any(path.startswith(f"{ffn}.") for ffn in forms)
    ]
    inside = {path: form.linears for path, form in forms.items()}
    wanted = config.target_modules
    if wanted is None:
        wanted = tuple(dict.fromkeys(linear for linears in inside.values() for linear in linears))
        if config.attention is not None:
            found = [end for end in ATTENTION if any(_ends(path, end) for path in outside)]
            wanted = (*found, *wanted)
    ffns: dict[str, tuple[str, ...]] = {}
    for path, linears in inside.items():
        adapted = tuple(
            linear for linear in linears if any(_ends(f"{path}.{linear}", end) for end in wanted)
        )
        if adapted:
            ffns[path] = adapted
    attention = [path for path in outside if any(_ends(path, end) for end in wanted)]
    changed = [*attention, *(f"{path}.{linear}" for path, all in ffns.items() for linear in all)]
    known = sorted({path.rpartition(".")[2] for path in [*outside, *_flat(inside)]})
    for end in wanted:
        if not any(_ends(path, end) for path in changed):
            raise ComposerError(
                f'Adapter "{name}": {type(model).__name__} has no Linear module {end!r} in its '
                f"layers; it has {', '.join(known)}. The adapter is for another base: choose that "
                "model, or other target_modules."
            )
    if not ffns:
        raise ComposerError(
            f'Adapter "{name}": none of its target_modules {", ".join(wanted)} lies in an FFN, so '
            f"it would have no experts. Add some of {', '.join(_ffn_names(inside))}."
        )
    for path in ffns:
        config.check_ffn(name, path, forms[path], model.get_submodule(path))
    return Targets(
        config=replace(config, target_modules=wanted),
        ffns=ffns,
        attention=tuple(attention) if config.attention is not None else (),
        convolutions=_convolutions(model, name) if config.convolutions is not None else (),
    )


def _convolutions(model: nn.Module, name: str) -> tuple[str, ...]:
    """The paths of the convolutions of a U-Net's residual blocks and samplers."""
    found = tuple(
        path
        for path, module in _named(model)
        if isinstance(module, nn.Conv2d) and any(_ends(path, end) for end in CONVOLUTIONS)
    )
    if not found:
        raise ComposerError(
            f'Adapter "{name}": {type(model).__name__} has no convolutions to adapt. Leave their '
            "settings out: they are for a U-Net."
        )
    return found


def _ends(path: str, end: str) -> bool:
    return path == end or path.endswith(f".{end}")


def _flat(inside: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [f"{path}.{linear}" for path, linears in inside.items() for linear in linears]


def _ffn_names(inside: Mapping[str, tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(linear for linears in inside.values() for linear in linears))


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return cast(Iterator[tuple[str, nn.Module]], model.named_modules())
