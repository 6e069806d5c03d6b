"""The recipe: every file of the shipped model again, from nothing, stage by stage.

Each stage leaves a checkpoint in the work folder and is skipped or continued when it is there, so
a build can be stopped at any moment and started again. Minutes are budgets, not estimates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from composer.errors import ComposerError
from toybox.building import in_process, write_account
from toybox.loop import Stage, join_world

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPModel, CLIPTokenizer

STAGES: tuple[str, ...] = (
    *("vae", "clip", "unet", "oracle", "assemble"),
    *("loras", "mixlora", "language"),
)
"""In order; each needs the ones before it."""

SHARED: tuple[str, ...] = ("vae", "unet")
"""Those that several processes can share."""

CPU_MINUTES: dict[str, float] = {"vae": 25, "clip": 12, "unet": 80, "oracle": 10, "language": 9}
"""Budgets for two CPU cores that multiply bfloat16, as the shipped model had them. Cores that do
not need four times as long; a GPU does in a tenth of them what these do."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """What to build, where, on what.

    Attributes:
        work: checkpoints, logs and sample grids.
        out: the model folder to write.
        loras: the folder of the shipped LoRAs.
        scale: every stage's minutes times this.
        start: a finished model folder whose U-Net is trained on, instead of from nothing; its VAE
            and CLIP are kept, for the U-Net knows no other.
    """

    work: Path
    out: Path
    loras: Path
    device: str = "cpu"
    scale: float = 1.0
    processes: int = 1
    batch: int = 32
    start: Path | None = None
    seed: int = 0

    def stage(self, name: str) -> Stage:
        return Stage(
            name=name,
            minutes=CPU_MINUTES[name] * self.scale,
            folder=self.work,
            device=self.device,
            seed=self.seed,
            checkpoint_minutes=max(4.0, CPU_MINUTES[name] * self.scale / 8),
        )


def run(build: Build, names: tuple[str, ...] = STAGES) -> None:
    """Run the named stages in their order, each in processes of its own."""
    unknown = set(names) - set(STAGES)
    if unknown:
        raise ComposerError(
            f"The recipe has no stage {', '.join(sorted(unknown))}:"
            f" choose from {', '.join(STAGES)}."
        )
    build.work.mkdir(parents=True, exist_ok=True)
    kept = ("vae", "clip") if build.start else ()
    for name in STAGES:
        if name in names and name not in kept:
            _in_processes(build, name)


def _in_processes(build: Build, name: str) -> None:
    """A stage as a fresh interpreter, so that its memory and threads are its own."""
    arguments = [f"--{k}={v}" for k, v in _as_options(build).items()]
    launcher = [sys.executable, "-m"]
    if name in SHARED and build.processes > 1:
        launcher += ["torch.distributed.run", "--standalone"]
        launcher += [f"--nproc_per_node={build.processes}", "-m"]
    command = [*launcher, "toybox.stage", name, *arguments]
    in_process(name, command, build.work / f"{name}.log")


def _as_options(build: Build) -> dict[str, str]:
    options = {
        "work": str(build.work),
        "out": str(build.out),
        "loras": str(build.loras),
        "device": build.device,
        "scale": str(build.scale),
        "processes": str(build.processes),
        "batch": str(build.batch),
        "seed": str(build.seed),
    }
    return options | ({"start": str(build.start)} if build.start else {})


def do_stage(build: Build, name: str) -> None:
    """One stage, in this process."""
    join_world()
    actions: dict[str, Callable[[Build], None]] = {
        "vae": _vae,
        "clip": _clip,
        "oracle": _oracle,
        "unet": _unet,
        "assemble": _assemble,
        "loras": _loras,
        "mixlora": _mixlora,
        "language": _language,
    }
    actions[name](build)


def _vae(build: Build) -> None:
    from toybox.stage_vae import train_vae

    train_vae(build.stage("vae"))


def _clip(build: Build) -> None:
    from toybox.stage_clip import train_clip
    from toybox.tokens import build_tokenizer

    train_clip(build.stage("clip"), build_tokenizer())


def _unet(build: Build) -> None:
    from toybox.assemble import text_encoder_of
    from toybox.networks import moved
    from toybox.stage_unet import train_unet

    clip, tokenizer = _finished_clip(build)
    encoder = moved(text_encoder_of(clip), build.device)
    vae = _trained_vae(build)
    start = build.start / "unet" if build.start else None
    train_unet(build.stage("unet"), vae, tokenizer, encoder, batch=build.batch, start=start)


def _trained_vae(build: Build) -> AutoencoderKL:
    """The VAE whose latents the U-Net knows."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from toybox.stage_vae import load_trained_vae

    if build.start is None:
        return load_trained_vae(build.work)
    return cast(Any, AutoencoderKL).from_pretrained(build.start / "vae").float()


def _finished_clip(build: Build) -> tuple[CLIPModel, CLIPTokenizer]:
    """The CLIP whose words the U-Net knows, with its tokenizer."""
    from transformers import CLIPModel, CLIPTokenizer

    from toybox.stage_clip import load_trained_clip
    from toybox.tokens import build_tokenizer

    if build.start is None:
        tokenizer = build_tokenizer()
        return load_trained_clip(build.work, tokenizer), tokenizer
    folder = build.start / "clip"
    clip = cast(Any, CLIPModel).from_pretrained(folder).float().eval()
    return clip, cast(Any, CLIPTokenizer).from_pretrained(folder)


def _oracle(build: Build) -> None:
    from toybox.stage_oracle import examine, train_oracle

    vae = _trained_vae(build)
    oracle = train_oracle(build.stage("oracle"), vae)
    oracle.save(build.out / "oracle")
    for row in examine(oracle, vae.cpu()):
        print(row, flush=True)


def _assemble(build: Build) -> None:
    from toybox.assemble import assemble
    from toybox.stage_unet import load_trained_unet

    clip, tokenizer = _finished_clip(build)
    assemble(
        build.out,
        vae=_trained_vae(build),
        unet=load_trained_unet(build.work),
        clip=clip,
        tokenizer=tokenizer,
    )
    write_account(build.work, build.out, build.start)


def _loras(build: Build) -> None:
    from toybox.stage_loras import train_all

    train_all(build.out, build.loras, scale=build.scale, processes=build.processes)


def _mixlora(build: Build) -> None:
    from toybox.stage_loras import training_pictures
    from toybox.stage_mixlora import STEPS, settings, train_characters
    from toybox.world import ELEMENTS

    characters = [one for one in ELEMENTS if one.kind == "character"]
    config = settings(build.loras, characters, steps=max(round(STEPS * build.scale), 2))
    train_characters(build.out, config, characters, training_pictures)


def _language(build: Build) -> None:
    from toybox.language_tokens import build_language_tokenizer
    from toybox.stage_expand import build_language
    from toybox.words import WORDS

    folder, tokenizer = build.out / "language", build_language_tokenizer()
    build_language(build.stage("language"), folder, tokenizer, WORDS, scale=build.scale)
