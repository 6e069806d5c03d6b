"""`composer train-language-gates`: records and LoRAs of a language model in, one gate file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composer.commands import _options as options
from composer.commands._language import load
from composer.commands._settings import of_kind, with_settings
from composer.commands._watching import finish, show, stopped_by_user
from composer.language.gates_config import LoraGatesConfig
from composer.mixture import GateSettings
from composer.training.language import LanguageTraining, train_adapter

if TYPE_CHECKING:
    from composer.training.language import LanguageProgress


@with_settings(
    LanguageTraining,
    LoraGatesConfig,
    GateSettings,
    arguments=("data",),
    without=("packing", "lora_plus", "compile"),
    batch_size=12,
    learning_rate=1e-2,
    checkpoint_every=100,
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
    main, last = processes.is_main_process, None
    with stopped_by_user() as stopped:
        for last in train_adapter(language, config, cancelled=stopped.is_set):
            if main:
                _show(last, [folder.name for folder in loras])
    written = None if last is None else last.path
    finish([written], stopped=stopped.is_set(), checkpoints=[config.checkpoint], main=main)


def _show(report: LanguageProgress, names: list[str]) -> None:
    if report.stage == "prepare":
        if report.cut:
            typer.echo(f"{report.cut} requests lost their beginning to fit the window.", err=True)
        return
    line = f"{'saved' if report.stage == 'saved' else 'step'} {report.step}/{report.total}"
    if report.smoothed_loss is not None:
        line += f"  loss {report.smoothed_loss:.4f}"
    if report.load:
        shares = " ".join(f"{n} {s:.2f}" for n, s in zip(names, report.load, strict=True))
        line += f"  balance {report.router_loss:.3f}  {shares}"
    if report.eval_loss is not None:
        line += f"  eval {report.eval_loss:.4f}"
    if report.skipped:
        line += f"  skipped {report.skipped}"
    show(line, step=report.step, total=report.total, seconds_left=report.seconds_left)
