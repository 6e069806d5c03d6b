"""Which modules of a model an adapter changes: its FFNs by their structure, its attention by name.

Everything is found and checked here, before anything is built or replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from composer.errors import ComposerError
from composer.language.mixlora_config import MixLoraConfig
from composer.mixture.adapter_linear import AdapterLinear
from composer.mixture.ffn import FORMS, FfnForm, check_form, find_ffns
from composer.mixture.guards import check_host
from composer.mixture.host import FfnHost

ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "dense"),
    *("q", "k", "v", "o"),  # T5
    *("to_q", "to_k", "to_v", "to_out.0"),  # diffusers
)
"""What attention's projections are called in the models whose FFNs are known."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What one adapter changes in one model.

    config: with its target_modules filled in.
    ffns: by path of an FFN the paths in it of the Linear modules that get experts.
    attention: the paths of the Linear modules that get plain LoRA.
    """

    config: MixLoraConfig
    ffns: Mapping[str, tuple[str, ...]]
    attention: tuple[str, ...]


def find_hosts(model: nn.Module) -> dict[str, FfnForm]:
    """By path the FFNs of a model, each checked to be what its form says.

    Raises:
        ComposerError: none is known, or the model carries other adapters already.
    """
    for path, module in _named(model):
        if isinstance(module, FfnHost | AdapterLinear):
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
    model: nn.Module, forms: Mapping[str, FfnForm], name: str, config: MixLoraConfig
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
    _check_activation(model, forms, ffns, name, config.act_fn)
    return Targets(
        config=replace(config, target_modules=wanted),
        ffns=ffns,
        attention=tuple(attention) if config.attention is not None else (),
    )


def _check_activation(
    model: nn.Module,
    forms: Mapping[str, FfnForm],
    ffns: Mapping[str, tuple[str, ...]],
    name: str,
    given: str | None,
) -> None:
    if given is None:
        return
    if given not in ACT2FN:
        raise ComposerError(
            f'Adapter "{name}": its act_fn is {given[:40]!r}, which transformers does not know. '
            "Leave it out to use the model's own."
        )
    sample = torch.linspace(-4.0, 4.0, 33)
    asked = cast(Tensor, ACT2FN[given](sample))
    for path in ffns:
        own = forms[path].activate(model.get_submodule(path), sample)
        if not torch.allclose(own, asked, atol=5e-3):
            raise ComposerError(
                f'Adapter "{name}": its act_fn is {given!r}, and {path} uses another activation. '
                "The adapter is for another base: choose that model."
            )


def _ends(path: str, end: str) -> bool:
    return path == end or path.endswith(f".{end}")


def _flat(inside: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [f"{path}.{linear}" for path, linears in inside.items() for linear in linears]


def _ffn_names(inside: Mapping[str, tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(linear for linears in inside.values() for linear in linears))


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return cast(Iterator[tuple[str, nn.Module]], model.named_modules())
