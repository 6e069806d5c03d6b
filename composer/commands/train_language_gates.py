"""`composer train-language-gates`: records and LoRAs of a language model in, one gate file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from composer.commands import _options as options
from composer.commands._language import load
from composer.commands._settings import of_kind, with_settings
from composer.commands._watching import follow
from composer.language.gates_config import LoraGatesConfig
from composer.mixture import GateSettings
from composer.training.language import LanguageTraining, train_adapter


@with_settings(
    LanguageTraining,
    LoraGatesConfig,
    GateSettings,
    arguments=("data",),
    without=("packing", "lora_plus", "compile"),
    batch_size=12,
    learning_rate=1e-2,
    checkpoint_every=options.CHECKPOINT_EVERY,
)
def train_language_gates(
    loras: Annotated[list[Path], typer.Argument(help="Folders of PEFT's LoRAs, two or more.")],
    model: options.LanguageModelName,
    device: options.ChosenDevice = "",
    **settings: Any,
) -> None:
    """Train gates that fuse LoRAs of a language model (MoLE); LoRAs and model stay as they are."""
    from composer.training.processes import join_processes

    adapter = LoraGatesConfig(
        **of_kind(LoraGatesConfig, settings),
        loras=tuple(map(str, loras)),
        gate=GateSettings(**of_kind(GateSettings, settings)),
    )
    config = LanguageTraining(**of_kind(LanguageTraining, settings), adapter=adapter)
    processes = join_processes(device)
    language = load(model, device or processes.device, config.precision)
    follow(
        lambda cancelled: train_adapter(language, config, cancelled=cancelled),
        [config],
        main=processes.is_main_process,
        names=[folder.name for folder in loras],
    )
