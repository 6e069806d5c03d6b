"""`composer train-mixlora`: records in, adapters of a language model out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from composer.commands import _options as options
from composer.commands._language import load
from composer.commands._settings import of_kind, with_settings
from composer.commands._watching import follow
from composer.errors import ComposerError
from composer.language.mixlora_config import MixLoraConfig
from composer.language.plain_lora import PlainLoraConfig
from composer.mixlora import LoraSettings, RouterSettings
from composer.training.language import LanguageTraining


@with_settings(
    LanguageTraining,
    RouterSettings,
    LoraSettings,
    arguments=("data", "output"),
    without=("rank", "alpha"),
    checkpoint_every=options.CHECKPOINT_EVERY,
)
def train_mixlora(
    model: options.LanguageModelName,
    also: Annotated[
        list[str] | None,
        typer.Option(help="DATA=OUTPUT: one more adapter at once on the same base; repeatable."),
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(help="Adapters that share a pass of the base; all if not given.")
    ] = None,
    method: Annotated[str, typer.Option(help="mixlora, or lora to compare with.")] = "mixlora",
    rank: Annotated[int | None, typer.Option(help="Of each LoRA: 16, or 80 for lora.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Twice the rank if not given.")] = None,
    attention: Annotated[bool, typer.Option(help="A LoRA on the attention too.")] = True,
    target: Annotated[
        list[str] | None, typer.Option(help="Only these modules, such as gate_proj; repeatable.")
    ] = None,
    bits: options.Bits = 16,
    device: options.ChosenDevice = "",
    **settings: Any,
) -> None:
    """Train MixLoRA on a language model: `torchrun -m composer …` for several processes."""
    from composer.training.language import train_adapters
    from composer.training.processes import join_processes

    if method not in ("mixlora", "lora"):
        raise ComposerError(f"There is no method {method!r}: choose mixlora or lora.")
    usual = MixLoraConfig().experts if method == "mixlora" else PlainLoraConfig().lora
    width = usual.rank if rank is None else rank
    lora = LoraSettings(
        **of_kind(LoraSettings, settings),
        rank=width,
        alpha=width * usual.alpha / usual.rank if alpha is None else alpha,
    )
    modules = tuple(target) if target else None
    adapter = (
        MixLoraConfig(
            experts=lora,
            attention=lora if attention else None,
            router=RouterSettings(**of_kind(RouterSettings, settings)),
            target_modules=modules,
        )
        if method == "mixlora"
        else PlainLoraConfig(lora=lora, target_modules=modules)
    )
    config = LanguageTraining(**of_kind(LanguageTraining, settings), adapter=adapter)
    configs = [config, *(_another(config, words) for words in also or ())]
    processes = join_processes(device)
    language = load(model, device or processes.device, config.precision, bits)
    follow(
        lambda cancelled: train_adapters(language, configs, at_once=at_once, cancelled=cancelled),
        configs,
        main=processes.is_main_process,
    )


def _another(config: LanguageTraining, words: str) -> LanguageTraining:
    data, equals, output = words.partition("=")
    if not (data and equals and output):
        raise ComposerError(f"--also {words!r} is not understood: write --also DATA=OUTPUT.")
    return replace(config, data=Path(data), output=Path(output))
