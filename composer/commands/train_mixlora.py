"""`composer train-mixlora`: records in, adapters of a language model out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composer.commands import _options as options
from composer.commands._language import load
from composer.commands._settings import of_kind, with_settings
from composer.commands._watching import finish, show, stopped_by_user
from composer.errors import ComposerError
from composer.language.mixlora_config import MixLoraConfig
from composer.language.plain_lora import PlainLoraConfig
from composer.mixlora import LoraSettings, RouterSettings
from composer.training.language import LanguageTraining

if TYPE_CHECKING:
    from composer.language.load import LanguageModel
    from composer.training.language import LanguageProgress


@with_settings(
    LanguageTraining,
    RouterSettings,
    LoraSettings,
    arguments=("data", "output"),
    without=("rank", "alpha"),
    checkpoint_every=100,
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
    from composer.training.processes import join_processes

    if method not in ("mixlora", "lora"):
        raise ComposerError(f"There is no method {method!r}: choose mixlora or lora.")
    width = rank if rank is not None else (16 if method == "mixlora" else 80)
    lora = LoraSettings(
        **of_kind(LoraSettings, settings),
        rank=width,
        alpha=alpha if alpha is not None else 2.0 * width,
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
    _run(language, configs, at_once, main=processes.is_main_process)


def _another(config: LanguageTraining, words: str) -> LanguageTraining:
    data, equals, output = words.partition("=")
    if not (data and equals and output):
        raise ComposerError(f"--also {words!r} is not understood: write --also DATA=OUTPUT.")
    return replace(config, data=Path(data), output=Path(output))


def _run(
    language: LanguageModel, configs: list[LanguageTraining], at_once: int | None, *, main: bool
) -> None:
    """Shows the progress on standard error, by the first process only; Ctrl-C stops cleanly."""
    from composer.training.language import train_adapters

    written: list[Path] = []
    with stopped_by_user() as stopped:
        for report in train_adapters(language, configs, at_once=at_once, cancelled=stopped.is_set):
            if main:
                _show(report, several=len(configs) > 1)
            if report.path is not None:
                written.append(report.path)
    finish(
        [*written, *[None] * (len(configs) - len(written))],
        stopped=stopped.is_set(),
        checkpoints=[config.checkpoint for config in configs],
        main=main,
    )


def _show(report: LanguageProgress, *, several: bool) -> None:
    line = f"{report.name}  " if several else ""
    line += f"{'saved' if report.stage == 'saved' else 'step'} {report.step}/{report.total}"
    if report.smoothed_loss is not None:
        line += f"  loss {report.smoothed_loss:.4f}  lr {report.learning_rate:.1e}"
    if report.load:
        shares = " ".join(f"{share:.2f}" for share in report.load)
        line += f"  routers {report.router_loss:.4f}  load {shares}"
    if report.eval_loss is not None:
        line += f"  eval {report.eval_loss:.4f}"
    if report.skipped:
        line += f"  skipped {report.skipped}"
    if report.stage == "prepare":
        if report.cut:
            typer.echo(f"{report.cut} requests lost their beginning to fit the window.", err=True)
        return
    show(line, step=report.step, total=report.total, seconds_left=report.seconds_left)
