"""`composer inspect`: what a LoRA file holds, how much of it a model uses, whether it is sound; and
what several do to each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from composer.commands import _options as options
from composer.errors import ComposerError

if TYPE_CHECKING:
    from composer.diffusion.model import Model
    from composer.evaluation.conflicts import Conflicts
    from composer.experts import Expert, ModuleNames

# What they add depends on the weights of a model.
_OF_WEIGHTS = ("DoRA", "GLoRA", "T-LoRA", "(IA)³", "OFT", "OFT of inputs", "BOFT of inputs")
_SHOWN = 8  # lines of what can be many


def inspect(
    files: Annotated[
        list[Path],
        typer.Argument(help="A LoRA file; of several, also what they do to each other."),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Also say how much of it this model uses: a folder, file or hub name."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="With several files and --model: also compare what they change while this is "
            "painted for a few steps."
        ),
    ] = None,
    cap: Annotated[
        Path | None,
        typer.Option(
            help="Also write what the model uses of it to this .safetensors file, with the largest "
            "singular value of each spike lowered to the second."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Say what a LoRA file holds: kind, base, rank, words, hashes, health of its numbers; and of
    several files what they do to each other: a conflict report."""
    if cap is not None and model is None:
        raise ComposerError(f"--cap {cap} needs --model: a copy names the modules of a model.")
    if cap is not None and len(files) > 1:
        raise ComposerError(f"--cap {cap} writes a copy of one file: give it alone.")
    if prompt is not None and (model is None or len(files) == 1):
        raise ComposerError("--prompt compares what several files change in a model: give --model.")
    loaded, names = None, None
    if model is not None:
        from composer.diffusion.load import load_model
        from composer.experts import ModuleNames

        loaded = load_model(model, device="cpu")
        names = ModuleNames.of(loaded.models, model=loaded.name)
    found = [_said_of(file, names, cap) for file in files]
    conflicts = None
    if len(files) > 1:
        conflicts = _conflicts(found, loaded, names, prompt)
    if as_json:
        told: Any = [said for said, _ in found]
        if conflicts is not None:
            told = [{"files": told, **asdict(conflicts), "advice": conflicts.advice}]
        typer.echo(json.dumps(told[0], ensure_ascii=False))
        return
    for number, (said, _) in enumerate(found):
        if number:
            typer.echo()
        for name, value in said.items():
            if value not in ("", [], {}):
                typer.echo(f"{name}: {_worded(value)}")
    if conflicts is not None:
        typer.echo()
        for name, words in conflicts.lines:
            typer.echo(f"{name}: {words}")
        typer.echo()
        for words in conflicts.advice:
            typer.echo(words)


def _said_of(
    file: Path, names: ModuleNames | None, cap: Path | None
) -> tuple[dict[str, Any], Expert | None]:
    """What a file holds, and what it adds if that can be read. cap: where to write it without its
    spikes."""
    from composer.experts import read_expert, read_header, write_lora
    from composer.experts.formats.lora_diffusion import FORMAT
    from composer.experts.hashes import file_hash_of, tensor_hash_of
    from composer.experts.health import health_of, without_spikes
    from composer.experts.metadata import read_info, trainer_of
    from composer.experts.read import own_names
    from composer.experts.sidecar import with_sidecars
    from composer.experts.supported import check_supported

    header = read_header(file)
    check_supported(header)
    info = with_sidecars(read_info(header), file)
    said: dict[str, Any] = {
        "file": str(file),
        "kind": list(info.kinds),
        "naming": info.format,
        "trainer": trainer_of(header) or (FORMAT if info.format == FORMAT else ""),
        "base": info.base,
        "rank": info.rank,
        "trigger": info.trigger,
        "tags": list(info.tags),
        "embeddings": list(info.embeddings),
        "AutoV2": file_hash_of(file)[:10],
        "AutoV3": tensor_hash_of(file)[:12],
    }
    of_weights = [kind for kind in info.kinds if kind in _OF_WEIGHTS]
    if names is None and of_weights:
        said["health"] = f"depends on the model ({', '.join(of_weights)}): give --model"
        return said, None
    try:
        expert = read_expert(file, names or own_names(file), partial=True)
    except ComposerError as error:
        if cap is not None:
            raise
        said["health"] = str(error)
        return said, None
    health = health_of(expert.sites)
    said |= {
        "modules": expert.modules,
        "left": list(expert.unmatched),
        "norm": health.norm,
        "energy": dict(health.energy),
        "largest singular value": {"value": health.largest[0], "at": health.largest[1]},
        "share of it": health.spike,
        "spikes": list(health.spikes),
    }
    if cap is not None:
        if not health.spikes:
            raise ComposerError(
                f"{file}: none of its differences has a spike, so --cap has nothing to "
                "lower. Use the file as it is."
            )
        write_lora(cap, without_spikes(expert.sites), expert.info)
        said["capped"] = str(cap)
    if names is not None:
        said["used"] = f"{len(expert.sites)} of {expert.modules} ({expert.share:.0%})"
    return said, expert


def _conflicts(
    found: Sequence[tuple[dict[str, Any], Expert | None]],
    model: Model | None,
    names: ModuleNames | None,
    prompt: str | None,
) -> Conflicts:
    """What several files do to each other, each with weight 1.

    Raises:
        ComposerError: one cannot be read, or they call the modules of a model otherwise and none is
            at hand.
    """
    import torch

    from composer.diffusion.prompt import parse_prompt
    from composer.evaluation.conflicts import changes, conflicts_of
    from composer.mixture import attach

    read: list[Expert] = []
    for said, expert in found:
        if expert is None:
            raise ComposerError(f"{said['file']}: {said['health']}")
        read.append(expert)
    called = [expert.name for expert in read]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise ComposerError(f"Two of the files are called {twice!r}: rename one.")
    namings = {expert.info.format for expert in read}
    if names is None and len(namings) > 1:
        raise ComposerError(
            f"The files name a model's modules in {len(namings)} ways ({', '.join(sorted(namings))}"
            "): give --model, whose own names then hold for all."
        )
    seen = None
    if model is not None and prompt is not None:
        parsed = parse_prompt(prompt)
        if parsed.loras:
            raise ComposerError(
                f"Take {str(parsed.loras[0])!r} out of the prompt: files are given."
            )
        with attach(model.models, {expert.name: expert.sites for expert in read}) as mixture:
            ones = dict.fromkeys(mixture.names, 1.0)
            seen = torch.stack(list(changes(model, mixture, ones, parsed.text)))
    return conflicts_of(read, {expert.name: 1.0 for expert in read}, names, seen)


def _worded(value: object) -> str:
    """In one line."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value).items()
        return _listed([f"{name} {_worded(item)}" for name, item in pairs])
    if isinstance(value, list):
        return _listed(list(map(str, cast("list[object]", value))))
    return str(value)


def _listed(words: list[str]) -> str:
    more = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
