"""`composer inspect`: what a LoRA file holds, how much of it a model uses, whether it is sound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from composer.commands import _options as options
from composer.errors import ComposerError

# What they add depends on the weights of a model.
_OF_WEIGHTS = ("DoRA", "GLoRA", "T-LoRA", "(IA)³", "OFT", "OFT of inputs", "BOFT of inputs")
_SHOWN = 8  # lines of what can be many


def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file.")],
    model: Annotated[
        str | None,
        typer.Option(help="Also say how much of it this model uses: a folder, file or hub name."),
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
    """Say what a LoRA file holds: kind, base, rank, words, hashes, health of its numbers."""
    from composer.experts import ModuleNames, read_expert, read_header, write_lora
    from composer.experts.formats.lora_diffusion import FORMAT
    from composer.experts.hashes import file_hash_of, tensor_hash_of
    from composer.experts.health import health_of, without_spikes
    from composer.experts.metadata import read_info, trainer_of
    from composer.experts.read import own_names
    from composer.experts.sidecar import with_sidecars
    from composer.experts.supported import check_supported

    if cap is not None and model is None:
        raise ComposerError(f"--cap {cap} needs --model: a copy names the modules of a model.")
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
    names = None
    if model is not None:
        from composer.diffusion.load import load_model

        loaded = load_model(model, device="cpu")
        names = ModuleNames.of(loaded.models, model=loaded.name)
    of_weights = [kind for kind in info.kinds if kind in _OF_WEIGHTS]
    if names is None and of_weights:
        said["health"] = f"depends on the model ({', '.join(of_weights)}): give --model"
    else:
        try:
            expert = read_expert(file, names or own_names(file), partial=True)
        except ComposerError as error:
            if cap is not None:
                raise
            said["health"] = str(error)
        else:
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
    if as_json:
        typer.echo(json.dumps(said, ensure_ascii=False))
        return
    for name, value in said.items():
        if value not in ("", [], {}):
            typer.echo(f"{name}: {_worded(value)}")


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
