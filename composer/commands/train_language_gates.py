"""`composer train-language-gates`: records and LoRAs of a language model in, one gate file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composer.commands._watching import show, stopped_by_user

if TYPE_CHECKING:
    from composer.training.language import LanguageProgress, LanguageTraining

_GATES = ("granularity", "balance")
_GATE = ("input", "reduce", "normalise", "activation", "bias")
# Parameters that are no setting of a training by the same name.
_OTHER = {"loras", "model", "device", *_GATES, *_GATE}


def register(app: typer.Typer) -> None:
    """Add `composer train-language-gates`."""
    app.command("train-language-gates")(train_language_gates)


def train_language_gates(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="A .jsonl file or folder, or a datasets folder.")],
    loras: Annotated[list[Path], typer.Argument(help="Folders of PEFT's LoRAs, two or more.")],
    output: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    model: Annotated[str, typer.Option(help="Model folder or hub name: causal, or T5's kind.")],
    granularity: Annotated[
        str, typer.Option(help="What one gate governs: network, block, layer or matrix.")
    ] = "block",
    balance: Annotated[float, typer.Option(help="Alpha of the gating balance loss.")] = 0.5,
    input: Annotated[str, typer.Option(help="They see hidden, or experts.")] = "hidden",
    reduce: Annotated[
        str, typer.Option(help="mean: of the request; tokens: weights for each token.")
    ] = "mean",
    normalise: Annotated[str, typer.Option(help="l2 or layer.")] = "l2",
    activation: Annotated[str, typer.Option(help="softmax, scaled, sigmoid or free.")] = "softmax",
    bias: Annotated[bool, typer.Option(help="Gates have a bias.")] = False,
    template: Annotated[str, typer.Option(help="auto, chat or plain.")] = "auto",
    window: Annotated[int | None, typer.Option(help="Most tokens of a row; 512.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, not epochs.")] = None,
    epochs: Annotated[float, typer.Option(help="Times through the data.")] = 2.0,
    batch_size: Annotated[int, typer.Option(help="Rows at once, for each process.")] = 12,
    accumulation: Annotated[int, typer.Option(help="Batches for one step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-2,
    schedule: Annotated[str, typer.Option(help="constant, cosine or linear.")] = "constant",
    warmup: Annotated[int, typer.Option(help="Steps until the highest rate.")] = 0,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, slower.")] = False,
    eval_data: Annotated[Path | None, typer.Option(help="Records to measure on.")] = None,
    eval_share: Annotated[float, typer.Option(help="Share of the data kept for that.")] = 0.0,
    eval_every: Annotated[int, typer.Option(help="Steps between; 0 at the end alone.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Keep a state to resume from.")] = 100,
    resume: Annotated[bool, typer.Option(help="Go on where a stopped training was.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, …; accelerate's choice.")] = "",
) -> None:
    """Train gates that fuse LoRAs of a language model (MoLE); LoRAs and model stay as they are."""
    import torch

    from composer.language.load import load_language_model
    from composer.training.language import train_adapter
    from composer.training.processes import join_processes

    config = _config(dict(context.params))
    processes = join_processes(device)
    language = load_language_model(
        model,
        device=device or processes.device,
        dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32,
    )
    main, last = processes.is_main_process, None
    with stopped_by_user() as stopped:
        for last in train_adapter(language, config, cancelled=stopped.is_set):
            if main:
                _show(last, [folder.name for folder in loras])
    if main:
        typer.echo(err=True)
    if stopped.is_set() and main and (last is None or last.path is None):
        kept = f" Go on with --resume: {config.checkpoint}" if config.checkpoint.is_file() else ""
        typer.echo(f"Stopped.{kept}", err=True)
        raise typer.Exit(130)
    if last is not None and last.path is not None and main:
        typer.echo(str(last.path))


def _config(given: dict[str, Any]) -> LanguageTraining:
    from composer.language.gates_config import LoraGatesConfig
    from composer.mixture import GateSettings
    from composer.training.language import LanguageTraining

    adapter = LoraGatesConfig(
        loras=tuple(str(folder) for folder in given["loras"]),
        gate=GateSettings(**{name: given[name] for name in _GATE}),
        **{name: given[name] for name in _GATES},
    )
    settings = {name: value for name, value in given.items() if name not in _OTHER}
    return LanguageTraining(**settings, adapter=adapter)


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
