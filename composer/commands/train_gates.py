"""`composer train-gates`: several LoRAs in, one gate file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from composer.commands import _options as options
from composer.commands._watching import finish, show, stopped_by_user

if TYPE_CHECKING:
    from composer.training.gates import GateProgress, GateTraining

ROOT = Path(__file__).parents[2]
TRAINING = (
    "granularity",
    "depth",
    "text_encoder",
    "objective",
    "teacher",
    "clip",
    "keep",
    "compose",
    "rest",
    "familiar",
    "near",
    "balance",
    "router_balance",
    "start",
    "trajectories",
    "teacher_steps",
    "cfg_scale",
    "steps",
    "batch_size",
    "accumulation",
    "learning_rate",
    "seed",
    "gradient_checkpointing",
    "precision",
    "preview_every",
    "preview_prompt",
    "checkpoint_every",
    "resume",
)
GATE = ("input", "reduce", "cells", "normalise", "activation", "time", "bias", "top_k")


def register(app: typer.Typer) -> None:
    """Add `composer train-gates`."""
    app.command("train-gates")(train_gates)


def train_gates(
    context: typer.Context,
    loras: options.LoraNames,
    output: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    prompt: options.ComposedPrompts = None,
    granularity: options.Granularity = "block",
    depth: Annotated[
        float, typer.Option(help="Gates from this depth of the U-Net on: 0 is all of it.")
    ] = 0.0,
    text_encoder: Annotated[bool, typer.Option(help="Gates in the text encoder too.")] = False,
    objective: Annotated[
        str, typer.Option(help="judged (by the LoRAs), distill, or clip as in the paper.")
    ] = "judged",
    teacher: Annotated[
        str, typer.Option(help="To distill: regions, or changes added up.")
    ] = "regions",
    clip: Annotated[
        str, typer.Option(help="A CLIP by folder or hub name; the model's own if not given.")
    ] = "",
    keep: Annotated[float, typer.Option(help="Weight of: each LoRA alone on its prompts.")] = 0.0,
    compose: Annotated[float, typer.Option(help="Weight of: the composed teacher.")] = 1.0,
    rest: Annotated[float, typer.Option(help="Weight of: the base on other prompts.")] = 0.0,
    familiar: Annotated[
        float, typer.Option(help="Weight of: every place is known to some judge.")
    ] = 0.0,
    near: Annotated[
        float, typer.Option(help="Weight of: near the plain sum; 0 for softmax.")
    ] = 0.3,
    balance: options.GateBalance = 0.0,
    router_balance: Annotated[
        float, typer.Option(help="Weight of: even loads, with --top-k (MixLoRA's loss).")
    ] = 0.0,
    start: Annotated[
        str, typer.Option(help="Where gates begin: sum, solved (closed form), or even.")
    ] = "sum",
    trajectories: Annotated[int, typer.Option(help="Samplings of each teacher.")] = 40,
    teacher_steps: Annotated[int, typer.Option(help="Steps of these samplings.")] = 12,
    cfg_scale: Annotated[float, typer.Option(help="CFG scale of these samplings.")] = 3.0,
    steps: options.Steps = 120,
    batch_size: options.RecordBatch = 8,
    accumulation: options.Accumulation = 1,
    learning_rate: options.HighestRate = 1e-2,
    input: Annotated[
        str, typer.Option(help="They see hidden, experts, regions or placed; auto: as LoRAs ask.")
    ] = "auto",
    reduce: Annotated[str, typer.Option(help="mean, grid, flatten or tokens.")] = "mean",
    cells: Annotated[int, typer.Option(help="Cells on a side of the grid.")] = 4,
    normalise: options.Normalise = "l2",
    activation: options.Activation = "free",
    time: Annotated[bool, typer.Option(help="Gates know the timestep.")] = True,
    bias: Annotated[bool, typer.Option(help="Gates have a bias; the start needs it.")] = True,
    top_k: options.Strongest = 0,
    seed: options.Seed = 0,
    gradient_checkpointing: options.GradientCheckpointing = False,
    precision: options.Precision = "float32",
    preview_every: options.PreviewEvery = 0,
    preview_prompt: Annotated[str, typer.Option(help="What the previews show.")] = "",
    checkpoint_every: Annotated[int, typer.Option(help="Keep a state every so many steps.")] = 100,
    resume: options.Resume = False,
    model: options.Model = str(ROOT / "assets" / "toybox"),
    lora_dir: options.LoraFolders = None,
    device: options.ChosenDevice = "",
) -> None:
    """Train gates that fuse LoRAs (MoLE); the LoRAs and the model stay as they are."""
    import torch

    from composer.diffusion.clip import check_clip
    from composer.diffusion.load import load_model
    from composer.experts import Library, ModuleNames, read_expert
    from composer.training.gates import Called, GateTraining, draft_prompts
    from composer.training.processes import join_processes

    library = Library(lora_dir or [ROOT / "loras"])
    paths = {name: library.find(name).path for name in loras}
    if objective == "clip" and clip:
        check_clip(clip)
    processes = join_processes(device)
    loaded = load_model(model, device=device or processes.device, dtype=torch.float32)
    modules = ModuleNames.of(loaded.models, model=loaded.name)
    experts = [read_expert(path, modules, name=name) for name, path in paths.items()]
    drafted = draft_prompts(
        [Called(name=e.name, trigger=e.info.trigger, role=e.info.role) for e in experts], seed=seed
    )
    given = context.params
    config = GateTraining.from_json(
        {name: given[name] for name in TRAINING}
        | {
            "output": output,
            "gate": {name: given[name] for name in GATE},
            "prompts": prompt or drafted.composed,
            "alone": drafted.alone,
            "neutral": drafted.neutral,
        }
    )
    from composer.training.gates import train_gates

    main, last = processes.is_main_process, None
    with stopped_by_user() as stopped:
        for last in train_gates(loaded, experts, config, cancelled=stopped.is_set):
            if main:
                _show(last, config)
    written = None if last is None else last.path
    finish([written], stopped=stopped.is_set(), checkpoints=[config.checkpoint], main=main)


def _show(progress: GateProgress, config: GateTraining) -> None:
    words = {"teach": "teachers", "start": "start", "train": "step", "saved": "saved"}
    line = f"{words[progress.stage]} {progress.step}/{progress.total}"
    for group, loss in progress.losses.items():
        line += f"  {group} {loss:.3f}"
    if progress.entropy is not None:
        line += f"  entropy {progress.entropy:.2f}"
    if progress.skipped:
        line += f"  skipped {progress.skipped}"
    show(line, step=progress.step, total=progress.total, seconds_left=progress.seconds_left)
    if progress.preview is not None:
        name = f"{config.output.stem}-{progress.step:06}.png"
        progress.preview.save(config.output.with_name(name))
