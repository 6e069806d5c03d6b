"""`composer train-mixlora`: records in, adapters of a language model out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composer.commands import _options as options
from composer.commands._watching import finish, show, stopped_by_user
from composer.errors import ComposerError

if TYPE_CHECKING:
    from composer.language.load import LanguageModel
    from composer.training.language import LanguageProgress, LanguageTraining

# Parameters that are no setting of a training by the same name.
_OTHER = {"model", "device", "bits", "also", "at_once", "method", "target", "attention"}
_LORA = ("rank", "alpha", "dropout", "rslora", "dora")
_ROUTER = ("strategy", "experts", "top_k", "top_p", "capacity", "balance", "jitter", "remainder")


def register(app: typer.Typer) -> None:
    """Add `composer train-mixlora`."""
    app.command("train-mixlora")(train_mixlora)


def train_mixlora(
    context: typer.Context,
    data: options.Records,
    output: Annotated[Path, typer.Argument(help="The folder to write the adapter to.")],
    model: Annotated[str, typer.Option(help="Model folder or hub name.")],
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
    dropout: Annotated[float, typer.Option(help="Of each LoRA's input.")] = 0.05,
    rslora: Annotated[bool, typer.Option(help="Scale by the root of the rank.")] = False,
    dora: Annotated[bool, typer.Option(help="Train magnitudes too (DoRA).")] = False,
    experts: Annotated[int, typer.Option(help="In each FFN.")] = 8,
    strategy: Annotated[
        str, typer.Option(help="mixlora, mixlora-dynamic or mixlora-switch.")
    ] = "mixlora",
    top_k: Annotated[int, typer.Option(help="How many experts each token gets.")] = 2,
    top_p: Annotated[float, typer.Option(help="Of the dynamic router.")] = 0.8,
    capacity: Annotated[int, typer.Option(help="Of the switch router.")] = 32,
    remainder: Annotated[bool, typer.Option(help="The FFN alone gets what is left.")] = False,
    balance: Annotated[float, typer.Option(help="Coefficient of the balance loss.")] = 1e-3,
    jitter: Annotated[float, typer.Option(help="Of what routers see in training.")] = 0.0,
    attention: Annotated[bool, typer.Option(help="A LoRA on the attention too.")] = True,
    target: Annotated[
        list[str] | None, typer.Option(help="Only these modules, such as gate_proj; repeatable.")
    ] = None,
    template: options.Template = "auto",
    window: options.Window = None,
    packing: Annotated[bool, typer.Option(help="Fill rows with several records.")] = False,
    steps: options.StepsNotEpochs = None,
    epochs: options.Epochs = 2.0,
    batch_size: options.RecordBatch = 16,
    accumulation: options.Accumulation = 1,
    learning_rate: options.HighestRate = 2e-4,
    lora_plus: Annotated[float, typer.Option(help="B learns so many times as fast.")] = 1.0,
    schedule: options.RecordSchedule = "constant",
    warmup: options.RecordWarmup = 0,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 1e-2,
    seed: options.Seed = 0,
    precision: options.Precision = "float32",
    bits: Annotated[int, typer.Option(help="4 or 8: the base by bitsandbytes.")] = 16,
    gradient_checkpointing: options.GradientCheckpointing = False,
    compile: Annotated[bool, typer.Option(help="By torch.compile; saves little on a CPU.")] = False,
    eval_data: options.EvalData = None,
    eval_share: options.EvalShare = 0.0,
    eval_every: options.EvalEvery = 0,
    checkpoint_every: options.RecordCheckpoints = 100,
    resume: options.Resume = False,
    device: options.RecordDevice = "",
) -> None:
    """Train MixLoRA on a language model: `torchrun -m composer …` for several processes."""
    import torch

    from composer.language.load import load_language_model
    from composer.training.processes import join_processes

    config = _config(dict(context.params))
    configs = [config, *(_another(config, words) for words in also or ())]
    processes = join_processes(device)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    quantisation: Any = {4: "4bit", 8: "8bit", 16: "none"}.get(bits, f"{bits} bits")
    language = load_language_model(
        model, device=device or processes.device, dtype=dtype, quantisation=quantisation
    )
    _run(language, configs, at_once, main=processes.is_main_process)


def _config(given: dict[str, Any]) -> LanguageTraining:
    from composer.language.mixlora_config import MixLoraConfig
    from composer.language.plain_lora import PlainLoraConfig
    from composer.mixlora import LoraSettings, RouterSettings
    from composer.training.language import LanguageTraining

    mixture = given["method"] == "mixlora"
    if given["method"] not in ("mixlora", "lora"):
        raise ComposerError(f"There is no method {given['method']!r}: choose mixlora or lora.")
    told = {name: given.pop(name) for name in _LORA}
    told["rank"] = told["rank"] if told["rank"] is not None else (16 if mixture else 80)
    told["alpha"] = told["alpha"] if told["alpha"] is not None else 2.0 * told["rank"]
    lora = LoraSettings(**told)
    router = {name: given.pop(name) for name in _ROUTER}
    modules = tuple(given["target"]) if given["target"] else None
    adapter = (
        MixLoraConfig(
            experts=lora,
            attention=lora if given["attention"] else None,
            router=RouterSettings(**router),
            target_modules=modules,
        )
        if mixture
        else PlainLoraConfig(lora=lora, target_modules=modules)
    )
    settings = {name: value for name, value in given.items() if name not in _OTHER}
    return LanguageTraining(**settings, adapter=adapter)


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
