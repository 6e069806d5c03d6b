"""MoLE's evaluation (arXiv 2404.13628) on the user's own model, LoRAs and photos.

For each set of LoRAs gates are trained, as published and by default, and compared with sums:
pictures of each prompt with as many seeds as published, scored by CLIP for the prompt and for each
concept. `--plan` is a JSON file:

    {"sets": [{"loras": ["cat", "glasses", "boot"],
               "prompts": ["a <1> cat with <2> glasses beside a <3> boot", ...]}, ...],
     "alone": {"cat": ["a photo of a <1> cat"], ...}}

A set may also have `"training"`, the prompts for the gates; without it, and for LoRAs that `alone`
leaves out, they are drafted from the trigger words.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.shared.protocols import (
    Composition,
    Scored,
    column_of,
    open_studio,
    painted_and_scored,
    protocol_parser,
    publish_protocol,
    references_in,
    request_of,
    rows_of,
    ways_for,
)
from benchmarks.shared.results import Row, Value
from benchmarks.shared.ways import read_ways
from composer.cli import app
from composer.diffusion.clip import check_clip
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.experts import LORAS, Library
from composer.experts.hashes import file_hash_of
from composer.fusions import Gates, Normalised, Sum
from composer.outside import parse_object
from composer.studio.axes import ALONE

NAME = "compos.mole"
PAPER = "mole"
TRAINED: Mapping[str, tuple[str, Sequence[str]]] = {
    PAPER: ("MoLE, as published", ("--paper",)),
    Gates.kind: (Gates.title, ()),
}
"""Ways with gates of their own: what tables call them, and how they are trained."""
WAYS = (Normalised.kind, Sum.kind, *TRAINED)
PUBLISHED = Request(steps=50, cfg_scale=7.5, sampler="DDIM", width=512, height=512, seed=0)
SEEDS = 200
BY_CONCEPT = "Concept by concept"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One set: its LoRAs by name, the prompts of its pictures, and those that gates learn from."""

    loras: tuple[str, ...]
    prompts: tuple[str, ...]
    training: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its LoRAs."""
        return "+".join(self.loras)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked for. alone: by LoRA prompts that name it alone."""

    sets: tuple[Asked, ...]
    alone: Mapping[str, tuple[str, ...]]


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        ComposerError: it is not there, or not written as this module says.
    """
    try:
        told = parse_object(path.read_bytes())
        sets = tuple(
            Asked(
                loras=_words(one["loras"]),
                prompts=_words(one["prompts"]),
                training=_words(one["training"]) if "training" in one else (),
            )
            for one in told["sets"]
        )
        alone = {str(name): _words(some) for name, some in told.get("alone", {}).items()}
    except OSError as error:
        raise ComposerError(f"{path} cannot be read ({error.strerror}): give the plan.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ComposerError(
            f"{path} is no plan ({type(error).__name__}: {error}): write it as "
            f"`python -m benchmarks.{NAME} --help` says."
        ) from error
    if not sets:
        raise ComposerError(f"{path} has no sets: write some.")
    return Plan(sets=sets, alone=alone)


def _words(found: Any) -> tuple[str, ...]:
    words: list[Any] = []
    if isinstance(found, list):
        words += found
    if not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{found!r:.60} is no list of words")
    return tuple(words)


def with_full_names(plan: Plan, library: Library[Any]) -> Plan:
    """The plan with LoRAs by the names that pictures know them by.

    Raises:
        ComposerError: one is not there, or prompts are neither given nor can be drafted for it.
    """
    full = {name: library.find(name) for one in plan.sets for name in one.loras}
    alone = {library.find(name).name: prompts for name, prompts in plan.alone.items()}
    for one in plan.sets:
        for card in (full[name] for name in one.loras):
            if not card.info.trigger.strip() and not (one.training and card.name in alone):
                raise ComposerError(
                    f"{card.path} names no trigger word, so no prompts can be drafted: write "
                    f'"training" for {one.name} and "alone" for {card.name} into the plan.'
                )
    sets = [replace(one, loras=tuple(full[name].name for name in one.loras)) for one in plan.sets]
    return Plan(sets=tuple(sets), alone=alone)


def gates_for(
    one: Asked, plan: Plan, way: str, library: Library[Any], *, words: Sequence[str], folder: Path
) -> Path:
    """The gate file of a set, trained by `composer train-gates` if it is not there.

    words: further ones of the command.

    Raises:
        ComposerError: the training failed; the command has said why.
    """
    command = ["train-gates", *one.loras, *TRAINED[way][1], *words]
    command += [word for prompt in one.training for word in ("--prompt", prompt)]
    for name in one.loras:
        command += [word for p in plan.alone.get(name, ()) for word in ("--alone", f"{name}={p}")]
    files = [file_hash_of(library.find(name).path) for name in one.loras]
    digest = hashlib.sha256(json.dumps([command, files]).encode()).hexdigest()[:10]
    path = folder / f"{one.name.replace('/', '-')}-{way}-{digest}.safetensors"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    command += ["--output", str(path)]
    if path.with_suffix(".resume").exists():
        command.append("--resume")
    print(f"composer {shlex.join(command)}", flush=True)
    if app(command, standalone_mode=False):
        raise ComposerError(f"The gates of {one.name} could not be trained: see above.")
    return path


def concept_rows(scored: Sequence[Scored]) -> Iterator[Row]:
    """As the paper's table of sets: the prompt, and each LoRA of a set in its order; a mean over
    sets comes last."""
    sets = list(dict.fromkeys(one.composition.loras for one in scored))
    titles = dict.fromkeys(one.title for one in scored)
    every: dict[str, list[dict[str, float]]] = {title: [] for title in titles}
    for loras in sets:
        for title in titles:
            found: dict[str, list[float]] = {}
            for one in scored:
                if one.composition.loras != loras or one.title != title:
                    continue
                scores = one.filled.scores
                if scores is None:
                    continue
                if scores.clip_text is not None:
                    found.setdefault(column_of("CLIP-T"), []).append(100 * scores.clip_text)
                for score, of in scores.likeness.items():
                    for place, name in enumerate(loras, start=1):
                        if name in of:
                            column = column_of(f"{score}, concept {place}")
                            found.setdefault(column, []).append(100 * of[name])
            means = {column: fmean(values) for column, values in sorted(found.items())}
            if means:
                every[title].append(means)
                yield _row("+".join(loras), title, means)
    for title, means in every.items():
        columns = dict.fromkeys(column for one in means for column in one)
        yield _row(
            "mean of the sets",
            title,
            {column: fmean(one[column] for one in means if column in one) for column in columns},
        )


def _row(name: str, title: str, means: Mapping[str, float]) -> Row:
    rounded: dict[str, Value] = {column: round(value, 4) for column, value in means.items()}
    return {"table": BY_CONCEPT, "set": name, "fusion": title, **rounded}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the gates that are not there yet, paint, score, and write the results."""
    asked = protocol_parser(NAME, __doc__ or "", count=SEEDS)
    asked.add_argument("--plan", type=Path, required=True, help="JSON: sets of LoRAs and prompts")
    asked.add_argument(
        "--training", default="", help="more options of `composer train-gates`, in quotes"
    )
    given = asked.parse_args(arguments)
    if not given.clip:
        raise ComposerError("CLIP scores here, and judges the published training: give --clip.")
    check_clip(given.clip)
    library = Library([given.loras], LORAS)
    plan = with_full_names(read_plan(given.plan), library)
    chosen = plan.sets[: given.sets]
    # without photos the pictures that each LoRA makes alone stand for them
    ways = read_ways(given.ways, WAYS if given.references else (ALONE, *WAYS))
    request = request_of(given, PUBLISHED)
    names = tuple(dict.fromkeys(name for one in plan.sets for name in one.loras))
    references = references_in(given.references, names)
    words = ["--model", given.model, "--lora-dir", str(given.loras), *shlex.split(given.training)]
    words += ["--vae", given.vae] if given.vae else []
    words += ["--device", given.device] if given.device != "auto" else []
    files = {
        (one.name, way): gates_for(
            one,
            plan,
            way,
            library,
            words=[*words, "--clip", given.clip] if way == PAPER else words,
            folder=given.out / "gates",
        )
        for one in chosen
        for way in ways
        if way in TRAINED
    }
    studio = open_studio(given, given.loras)
    compositions: list[Composition] = []
    for one in chosen:
        by_key: dict[str, str] = {}
        for way in ways:
            if way in TRAINED:
                by_key[f"{Gates.kind}:{studio.lend(Gates, files[one.name, way])}"] = TRAINED[way][0]
            else:
                by_key |= ways_for(studio, one.loras, [way])
        compositions += [
            Composition(name=f"{one.name} {n}", loras=one.loras, prompt=prompt, ways=by_key)
            for n, prompt in enumerate(one.prompts, start=1)
        ]
    scored, refused = painted_and_scored(
        NAME, given, studio, compositions, request, weight=1.0, references=references
    )
    publish_protocol(
        NAME,
        given,
        arguments,
        scored,
        refused,
        title="MoLE's evaluation",
        rows=[*rows_of(scored), *concept_rows(scored)],
        notes=[_NOTE],
        request=request,
        model=studio.status.model,
        sets=len(chosen),
        training=given.training,
    )


_NOTE = (
    "As MoLE ([arXiv 2404.13628](https://arxiv.org/abs/2404.13628)) evaluates: for each set of "
    "LoRAs pictures of its prompts, and CLIP's text alignment and image alignment to each concept. "
    "The paper has 15 sets of three DreamBooth LoRAs of Stable Diffusion 2.1, five prompts with "
    "200 pictures each, DDPM with 50 steps and CFG 7.5; DDIM stands for DDPM here. Its text scores "
    "of 0.6 to 0.86 are no cosines, and presumably 2.5 times as much. Its other rival, SVDiff, is "
    "trained otherwise and is not here."
)


if __name__ == "__main__":
    main()
