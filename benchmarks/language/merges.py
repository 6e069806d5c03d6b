"""LoRAs of a language model fused by fixed weights: PEFT's own merges, and LoRAHub's.

The exact weighted sum and NLA need nothing here: `attach_loras` and `Mixture.set_weights`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.experts import Expert, LowRank
from composer.experts.peft_config import STARTS, beside
from composer.language.load import LanguageModel
from composer.language.parts import WEIGHTS_FILE, read_adapters

PeftWay = Literal[
    "linear",
    "cat",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_ties",
    "dare_linear_svd",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]
PEFT_WAYS: tuple[PeftWay, ...] = get_args(PeftWay)


@contextmanager
def merged_by_peft(
    language: LanguageModel,
    folders: Mapping[str, Path],
    weights: Mapping[str, float],
    way: PeftWay,
    *,
    density: float | None = None,
    seed: int = 0,
) -> Generator[None, None, None]:
    """PEFT's `add_weighted_adapter` of these LoRAs on the model; gone again after.

    "cat" is the exact sum of w_i B_i A_i. "linear" adds up the factors apart, (sum sqrt(w_i) B_i)
    (sum sqrt(w_i) A_i), with products across the LoRAs; "ties" and "dare" prune factors first.

    folders: by name; all are read and checked first. weights: by the same names.
    density: what part of the numbers stays, for the ways that prune.
    seed: of what "dare" drops.

    Raises:
        ComposerError: a way that is none, or that cannot merge these, as "linear" other ranks; a
            LoRA for which PEFT would change the model.
    """
    if way not in PEFT_WAYS:
        raise ComposerError(f"PEFT has no merge {way!r}: choose one of {', '.join(PEFT_WAYS)}.")
    if weights.keys() != folders.keys():
        raise ComposerError(
            f"There are weights for {', '.join(weights)}, and LoRAs {', '.join(folders)}: give one "
            "for each."
        )
    read_adapters(folders, language.model, language.name)
    for name, folder in folders.items():
        if (start := beside(folder / WEIGHTS_FILE).start) in STARTS:
            raise ComposerError(
                f"{name} began as {start!r}, and PEFT takes that part out of the model itself: "
                "convert it to a plain LoRA (path_initial_model_for_weight_conversion)."
            )
    import peft

    names = list(folders)
    # PEFT makes modules of adapters' names, and "double" is a method of theirs
    inner = [f"lora {number}" for number in range(len(names))]
    attached: Any = cast(Any, peft).PeftModel.from_pretrained(
        language.model, str(folders[names[0]]), inner[0]
    )
    try:
        for name, own in zip(names[1:], inner[1:], strict=True):
            attached.load_adapter(str(folders[name]), own)
        with cast(Any, torch.random).fork_rng(devices=[]):
            cast(Any, torch).manual_seed(seed)
            attached.add_weighted_adapter(
                inner,
                [weights[name] for name in names],
                "merged by Composer",
                combination_type=way,
                density=density,
            )
        attached.set_adapter("merged by Composer")
        attached.requires_grad_(False)
        yield
    except ValueError as error:
        raise ComposerError(
            f"PEFT cannot merge {', '.join(names)} by {way!r} ({error}): choose another way."
        ) from error
    finally:
        attached.unload()
        if hasattr(language.model, "peft_config"):
            del language.model.peft_config


def merge_factors(experts: Sequence[Expert], weights: Mapping[str, float]) -> Expert:
    """LoRAHub's composition as published: (sum_i w_i B_i)(sum_i w_i A_i), factors apart, so with
    products across LoRAs and squares of the weights (arXiv 2307.13269, equation 1).

    Each LoRA's scale is divided evenly between its two factors.

    Raises:
        ComposerError: LoRAs of other ranks or modules.
    """
    first = experts[0]
    for expert in experts[1:]:
        shapes = {site: factors.rank for site, factors in expert.sites.items()}
        if shapes != {site: factors.rank for site, factors in first.sites.items()}:
            raise ComposerError(
                f"{first.name} and {expert.name} differ in ranks or modules, and factors are added "
                "up one by one: choose LoRAs alike, or the sum of changes."
            )

    def merged(site: str) -> LowRank:
        downs: list[Tensor] = []
        ups: list[Tensor] = []
        for expert in experts:
            factors, root = expert.sites[site], abs(expert.sites[site].scale) ** 0.5
            sign = 1.0 if expert.sites[site].scale >= 0 else -1.0
            downs.append(weights[expert.name] * root * factors.down)
            ups.append(weights[expert.name] * sign * root * factors.up)
        return LowRank(down=torch.stack(downs).sum(0), up=torch.stack(ups).sum(0), scale=1.0)

    return replace(first, name="merged", sites={site: merged(site) for site in first.sites})
