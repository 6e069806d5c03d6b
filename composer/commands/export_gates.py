"""`composer export-gates`: one gate file in, one ordinary LoRA out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composer.commands import _options as options
from composer.commands._settings import with_settings
from composer.commands._watching import figures_of, show, stopped_by_user
from composer.errors import ComposerError
from composer.training.gates.settings import GateExport

if TYPE_CHECKING:
    from composer.training.gates.export import Exported


@with_settings(GateExport)
def export_gates(
    gates: Annotated[str, typer.Argument(help="The name of a gate file, or its path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A prompt to sample with the gates; repeatable.",
            show_default="those they were trained on",
        ),
    ] = None,
    model: options.Model = options.TOYBOX,
    vae: options.Vae = None,
    lowvram: options.LowVram = False,
    lora_dir: options.LoraFolders = None,
    partial: options.Partial = False,
    device: options.Device = "auto",
    **settings: Any,
) -> None:
    """Merge LoRAs by the weights nearest to what trained gates give: one LoRA for any program."""
    config = GateExport(
        output=output,
        gates=Path(gates).stem if Path(gates).is_file() else gates,
        prompts=tuple(prompt or ()),
        **settings,
    )
    from composer.diffusion.load import load_model
    from composer.diffusion.samplers import check_steps
    from composer.experts import LORAS, Library, ModuleNames, read_expert
    from composer.fusions.gate_file import read_gates
    from composer.fusions.learned import find_loras
    from composer.fusions.libraries import GATES
    from composer.training.gates.export import export_gates as export, prompts_of

    folders = lora_dir or [options.LORA_FOLDER]
    library = Library(folders, GATES)
    card = library.lend(Path(gates)) if Path(gates).is_file() else library.find(gates)
    loras = {name: lora.path for name, lora in find_loras(card, Library(folders, LORAS)).items()}
    file = read_gates(card.path)
    if not config.prompts:
        prompts_of(file)  # refused before the model is loaded
    taken = {path.resolve() for path in (card.path, *loras.values())}
    for path in config.paths:
        if path.resolve() in taken:
            raise ComposerError(f"{path} is what the export is made from: give another output.")
    loaded = load_model(model, device=device, vae=vae, lowvram=lowvram)
    check_steps(config.steps, loaded.scheduler_config)
    modules = ModuleNames.of(loaded.models, model=loaded.name)
    experts = [
        read_expert(path, modules, name=name, partial=partial) for name, path in loras.items()
    ]
    exported = None
    with stopped_by_user() as stopped:
        reports = export(loaded, experts, file, config, cancelled=stopped.is_set)
        for report in reports:
            show(figures_of(report), report)
            exported = report.exported
    typer.echo(err=True)
    if exported is None:
        typer.echo("Stopped; nothing is written.", err=True)
        raise typer.Exit(130)
    _print(exported, lbw=config.lbw)


def _print(exported: Exported, *, lbw: bool) -> None:
    for file in exported.files:
        typer.echo(str(file.path))
        if len(exported.files) > 1:
            start, end = file.shares
            typer.echo(
                f"  steps {file.first} to {file.last} of {file.steps} "
                f"({start:.0%} to {end:.0%} of the sampling, timesteps {file.timesteps[0]} to "
                f"{file.timesteps[1]}), loss {file.loss:.4f}"
            )
        for text in file.lbw if lbw else ():
            typer.echo(f"  {text}")
    if len(exported.files) > 1:
        typer.echo(f"in Composer: composer generate PROMPT {_played(exported)}")
    typer.echo(f"loss {exported.loss:.4f} (0: as the gates; 1: as far as the bare model)")
    if exported.lbw_loss is not None:
        typer.echo(f"loss {exported.lbw_loss:.4f} with the LoRAs by these strings instead")
    if lbw and exported.unplaced:
        typer.secho(
            f"{len(exported.unplaced)} of the places that these LoRAs change, such as "
            f"{exported.unplaced[0]}, have no number in a string of block weights: the strings do "
            "not hold them.",
            fg=typer.colors.YELLOW,
            err=True,
        )


def _played(exported: Exported) -> str:
    """The options of `composer generate` that use each of several files in its own steps; the text
    encoder, which reads once, gets the first."""
    folder = exported.files[0].path.parent
    rows = [
        f"--lora {shlex.quote(file.path.stem)}=1,{int(number == 0)}@{start:g}:{end:g}"
        for number, file in enumerate(exported.files)
        for start, end in [file.shares]
    ]
    return " ".join([f"--lora-dir {shlex.quote(str(folder))}", *rows])
