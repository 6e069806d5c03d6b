"""What must be true before experts are attached. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor, nn

from composer.errors import ComposerError
from composer.mixture.sites import LowRankLike, Site
from composer.mixture.stand_in import StandIn


def check_host(part: str, model: nn.Module) -> None:
    """Refuse a model on which experts would be silently wrong.

    Raises:
        ComposerError: it carries PEFT layers or another mixture, its q, k and v are fused, or its
            feed-forward layers are chunked.
    """
    for name, module in cast(Iterator[tuple[str, nn.Module]], model.named_modules()):
        where = f"{part}.{name}" if name else part
        if isinstance(module, Site):
            raise ComposerError(
                f"{part} already has experts attached (at {where}). Detach that mixture first, or "
                "attach all experts in one call."
            )
        if hasattr(module, "base_layer"):
            raise ComposerError(
                f"{part} still has PEFT layers on it (at {where}). Unload them first: "
                "pipeline.unload_lora_weights(), or peft_model.unload()."
            )
        if _is_fused(module):
            raise ComposerError(
                f"{where} has fused q, k and v projections, which bypass the experts. Call "
                "unfuse_qkv_projections() first."
            )
        if getattr(module, "_chunk_size", None) is not None:
            raise ComposerError(
                f"{where} runs its feed-forward in chunks, so that a gate would see only a part of "
                "the picture. Call set_chunk_feed_forward(None, 0) on it first."
            )


def find_site(name: str, models: Mapping[str, nn.Module]) -> nn.Linear | nn.Conv2d:
    """The module that stands at a site, for instance "unet.mid_block.attentions.0.proj_in".

    Raises:
        ComposerError: there is no such module, or experts cannot be attached to one of its kind.
    """
    part, _, path = name.partition(".")
    if part not in models:
        raise ComposerError(
            f'Site "{name}" belongs to the part "{part}", but the models given are '
            f"{_listed(models)}. Give this model too, or leave its sites out."
        )
    try:
        module = models[part].get_submodule(path)
    except AttributeError:
        raise ComposerError(
            f'There is no "{path}" in {part} ({type(models[part]).__name__}). The LoRA was made '
            "for another kind of model: choose one for this model."
        ) from None
    while isinstance(module, StandIn):
        module = module.base  # of a MixLoRA adapter, below which the mixture's experts stand
    if not isinstance(module, nn.Linear | nn.Conv2d) or _groups(module) != 1:
        raise ComposerError(
            f'Site "{name}" is {module}: experts can be attached to Linear and ungrouped Conv2d '
            "only. Leave this site out."
        )
    if not module.weight.is_floating_point() or module.weight.is_meta:
        raise ComposerError(
            f'The weights of site "{name}" are quantised or not in memory. Load the model '
            "in float32, float16 or bfloat16, and attach before any offloading is enabled."
        )
    return module


def check_factors(
    expert: str, site: str, factors: LowRankLike, base: nn.Linear | nn.Conv2d
) -> None:
    """Refuse factors that do not fit the module at their site.

    Raises:
        ComposerError: with both shapes.
    """
    down, up, weight = (_as_kernel(t) for t in (factors.down, factors.up, base.weight))
    rank = down[0]
    if down != (rank, *weight[1:]) or up != (weight[0], rank, 1, 1):
        raise ComposerError(
            f'Expert "{expert}" does not fit site "{site}": its factors are down '
            f"{tuple(factors.down.shape)} and up {tuple(factors.up.shape)}, the weight there is "
            f"{tuple(base.weight.shape)}. It was made for another model: choose a LoRA for this "
            "one."
        )


def _is_fused(module: nn.Module) -> bool:
    """Whether an attention reads one matrix that was copied from its q, k and v."""
    if not getattr(module, "fused_projections", False):
        return False
    # The attention of Stable Diffusion's U-Net keeps this flag when it is unfused again. It has no
    # unfuse method of its own, and only its processor shows it.
    processor = type(getattr(module, "processor", None)).__name__
    return hasattr(module, "unfuse_projections") or processor.startswith("Fused")


def _as_kernel(tensor: Tensor) -> tuple[int, ...]:
    """The shape, a matrix read as a 1x1 convolution."""
    shape = tuple(tensor.shape)
    return (*shape, 1, 1) if len(shape) == 2 else shape


def _groups(module: nn.Linear | nn.Conv2d) -> int:
    return module.groups if isinstance(module, nn.Conv2d) else 1


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(f'"{name}"' for name in names) or "none"
