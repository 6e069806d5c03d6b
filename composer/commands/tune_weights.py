"""`composer tune-weights`: the best weights of a weighted sum of LoRAs, found by trying many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from composer.clock import Clock
from composer.commands import _options as options
from composer.commands._loras import find_once
from composer.commands._settings import of_kind, with_settings
from composer.commands._watching import show, stopped_by_user
from composer.errors import ComposerError
from composer.evaluation.sampling import Sampling
from composer.evaluation.tuning import Tuning


@with_settings(Sampling, Tuning, batch_size=16)
def tune_weights(
    loras: options.LoraNames,
    prompt: options.ComposedPrompts = None,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures for each choice of weights.")] = 16,
    grid: Annotated[
        str, typer.Option(help="The weights that are tried for each LoRA.")
    ] = "0.8,1,1.2,1.4",
    clip: Annotated[
        str, typer.Option(help="The CLIP that judges; the model's own if not given.")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            help="The .json file to write.", show_default="in weights/ of the first LoRA folder"
        ),
    ] = None,
    replace: Annotated[bool, typer.Option(help="Write over a file that is there.")] = False,
    model: options.Model = options.TOYBOX,
    vae: options.Vae = None,
    lowvram: options.LowVram = False,
    lora_dir: options.LoraFolders = None,
    partial: options.Partial = False,
    device: options.Device = "cpu",
    **settings: Any,
) -> None:
    """Find the best weights for a sum of LoRAs; Compare then shows them beside yours."""
    from itertools import cycle, islice

    from composer.diffusion.clip import Clip, check_clip
    from composer.diffusion.load import load_model
    from composer.diffusion.samplers import check_steps
    from composer.evaluation import tuning as search
    from composer.experts import LORAS, Library, ModuleNames, read_expert
    from composer.experts.library import WEIGHTS_FOLDER
    from composer.fusions.tuned_weights import file_name_for
    from composer.training.gates.prompts import Called, draft_prompts

    sampling, seed = Sampling(**of_kind(Sampling, settings)), settings["seed"]
    folders = lora_dir or [options.LORA_FOLDER]
    library = Library(folders, LORAS)
    paths = {card.name: card.path for card in find_once(library, loras)}
    path = output or Path(folders[0]) / WEIGHTS_FOLDER / file_name_for(paths)
    if path.suffix != ".json":
        raise ComposerError(f"{path}: tuned weights are kept in a file that ends in .json.")
    if path.exists() and not replace:
        raise ComposerError(f"{path}: is there already. Add --replace, or name another --output.")
    if clip:
        check_clip(clip)
    loaded = load_model(model, device=device, vae=vae, lowvram=lowvram)
    check_steps(sampling.steps, loaded.scheduler_config)
    judge = Clip.load(clip, loaded)
    modules = ModuleNames.of(loaded.models, model=loaded.name)
    experts = [
        read_expert(file, modules, name=name, partial=partial) for name, file in paths.items()
    ]
    triggers = [expert.info.trigger for expert in experts]
    for words in prompt or ():
        search.prompts_without(words, triggers)
    if not prompt:
        called = [Called(name=e.name, trigger=e.info.trigger, role=e.info.role) for e in experts]
        prompt = list(draft_prompts(called, count=pictures, seed=seed).composed)
    tuning = Tuning(
        prompts=tuple(islice(cycle(prompt), pictures)),
        grid=_numbers(grid),
        seed=seed,
        sampling=sampling,
    )
    clock, found = Clock(), None
    with stopped_by_user() as stopped:
        for tried in search.tune_weights(
            loaded, experts, search.clip_judge(judge, triggers), tuning
        ):
            clock.total = tried.total
            left = clock.seconds_left(tried.step)
            line = f"weights {', '.join(f'{w:g}' for w in tried.weights)}  score {tried.score:.4f}"
            line += f"  {tried.step}/{tried.total}"
            show(line, tried, left)
            found = tried.found
            if stopped.is_set():
                break
    typer.echo(err=True)
    if found is None:
        typer.echo("Stopped; nothing was written.", err=True)
        raise typer.Exit(130)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.write(path)
    words = " + ".join(f"{name} {weight:g}" for name, weight in found.weights().items())
    typer.echo(f"{words}: score {found.score:.4f}, at weights of 1 {found.score_of_ones:.4f}")
    typer.echo(str(path))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ComposerError(
            f"The grid {text!r} is no list of numbers: write them like 0.8,1,1.2."
        ) from None
