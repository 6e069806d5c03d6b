"""`composer train-language-gates`: records and LoRAs of a language model in, one gate file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composer.commands import _options as options
from composer.commands._watching import finish, show, stopped_by_user

if TYPE_CHECKING:
    from composer.training.language import LanguageProgress, LanguageTraining

_GATES = ("granularity", "balance")
_GATE = ("input", "activation", "bias")
# Parameters that are no setting of a training by the same name.
_OTHER = {"loras", "model", "device", *_GATES, *_GATE}


def register(app: typer.Typer) -> None:
    """Add `composer train-language-gates`."""
    app.command("train-language-gates")(train_language_gates)


def train_language_gates(
    context: typer.Context,
    data: options.Records,
    loras: Annotated[list[Path], typer.Argument(help="Folders of PEFT's LoRAs, two or more.")],
    output: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    model: Annotated[str, typer.Option(help="Model folder or hub name: causal, or T5's kind.")],
    granularity: options.Granularity = "block",
    balance: options.GateBalance = 0.5,
    input: Annotated[str, typer.Option(help="They see hidden, or experts.")] = "hidden",
    activation: options.Activation = "softmax",
    bias: Annotated[bool, typer.Option(help="Gates have a bias.")] = False,
    template: options.Template = "auto",
    window: options.Window = None,
    steps: options.StepsNotEpochs = None,
    epochs: options.Epochs = 2.0,
    batch_size: options.RecordBatch = 12,
    accumulation: options.Accumulation = 1,
    learning_rate: options.HighestRate = 1e-2,
    schedule: options.RecordSchedule = "constant",
    warmup: options.RecordWarmup = 0,
    seed: options.Seed = 0,
    precision: options.Precision = "float32",
    gradient_checkpointing: options.GradientCheckpointing = False,
    eval_data: options.EvalData = None,
    eval_share: options.EvalShare = 0.0,
    eval_every: options.EvalEvery = 0,
    checkpoint_every: options.RecordCheckpoints = 100,
    resume: options.Resume = False,
    device: options.RecordDevice = "",
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
    written = None if last is None else last.path
    finish([written], stopped=stopped.is_set(), checkpoints=[config.checkpoint], main=main)


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
