"""ComposLoRA (arXiv 2402.16843) on its own LoRAs and models, which the user has.

Every way of fusing on all sets of two to five of a subset's LoRAs with one character: the published
prompts, sizes, steps and guidance, from `composlora.json`. `--loras` is the folder of a subset as
`ComposLoRA.zip` has it, `lora/anime` or `lora/reality`; missing files are named with their ids at
Civitai.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

from benchmarks.shared.protocols import (
    Composition,
    open_studio,
    painted_and_scored,
    protocol_parser,
    publish_protocol,
    references_in,
    request_of,
    rows_of,
    ways_for,
)
from benchmarks.shared.sets import in_turn
from benchmarks.shared.vision_judge import check_judge, judged, judged_rows
from benchmarks.shared.ways import read_ways
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.experts.library import GATES_FOLDER
from composer.files import write_atomically
from composer.fusions import Gates
from composer.fusions.registry import PLAIN
from composer.studio.axes import ALONE, BARE

NAME = "compos.composlora"
FACTS = Path(__file__).with_name("composlora.json")
WAYS = (BARE, ALONE, *(recipe.key for recipe in PLAIN), Gates.kind)
CHARACTER = "character"
LORAS = range(2, 6)
WEIGHT = 0.8
"""Of each LoRA."""
SEED, SEEDS = 111, 3


@dataclass(frozen=True, kw_only=True)
class Lora:
    """One of the LoRAs: what it is called, the words that call it, and what Civitai calls it.

    version: None where only its model is published.
    """

    id: str
    name: str
    trigger: tuple[str, ...]
    model: int
    version: int | None

    @property
    def kind(self) -> str:
        """As of a `LoraInfo`."""
        return self.id.rpartition("_")[0]

    @property
    def description(self) -> str:
        """What it shows, in a line."""
        return f"- {self.kind} ({self.name}): {', '.join(self.trigger)}"

    @property
    def file(self) -> str:
        """As it is published."""
        return f"{self.id}.safetensors"

    def __str__(self) -> str:
        version = f"version {self.version}" if self.version else "no version is published"
        return f"{self.file} ({self.name}: Civitai's model {self.model}, {version})"


@dataclass(frozen=True, kw_only=True)
class Subset:
    """LoRAs for one model, and how pictures of them are made. model, vae: hub names."""

    model: str
    vae: str | None
    request: Request
    loras: tuple[Lora, ...]


def subsets() -> dict[str, Subset]:
    """What is published, by the names of the two subsets."""
    found: dict[str, Any] = json.loads(FACTS.read_text(encoding="utf-8"))["subsets"]
    return {
        name: Subset(
            model=told["model"],
            vae=told["vae"],
            request=Request(
                prompt=told["prompt"],
                negative_prompt=told["negative"],
                width=told["width"],
                height=told["height"],
                steps=told["steps"],
                cfg_scale=told["cfg"],
                sampler="DPM++ 2M",
                seed=SEED,
            ),
            loras=tuple(map(_lora, told["loras"])),
        )
        for name, told in found.items()
    }


def _lora(told: Mapping[str, Any]) -> Lora:
    given: dict[str, Any] = {**told, "trigger": tuple(told["trigger"])}
    return Lora(**given)


def sets_of(loras: Sequence[Lora]) -> list[tuple[Lora, ...]]:
    """All sets with one character and at most one of each other kind; in a fixed order in which the
    first are even over the sizes."""
    by_kind: dict[str, list[Lora]] = {}
    for one in loras:
        by_kind.setdefault(one.kind, []).append(one)
    others = [kind for kind in by_kind if kind != CHARACTER]

    def of_size(size: int) -> Iterator[tuple[Lora, ...]]:
        kinds = ((CHARACTER, *more) for more in combinations(others, size - 1))
        every = list(chain.from_iterable(product(*(by_kind[k] for k in some)) for some in kinds))
        random.Random(size).shuffle(every)
        return iter(every)

    return list(in_turn([of_size(size) for size in LORAS]))


def prompt_for(some: Sequence[Lora], prefix: str) -> str:
    """The subset's own words, and the trigger words of each LoRA."""
    return ", ".join([prefix, *(words for one in some for words in one.trigger)])


def with_words(loras: Sequence[Lora], given: Path, folder: Path) -> Path:
    """The files again in a folder, as links where that can be, beside what is known of each: the
    files do not say their words and kinds.

    Raises:
        ComposerError: some are missing.
    """
    if missing := [str(one) for one in loras if not (given / one.file).is_file()]:
        raise ComposerError(f"{given} lacks {'; '.join(missing)}: put them there by these names.")
    folder.mkdir(parents=True, exist_ok=True)
    for one in loras:
        path = folder / one.file
        path.unlink(missing_ok=True)
        try:
            os.link(given / one.file, path)
        except OSError:
            shutil.copyfile(given / one.file, path)
        told = {"activation text": ", ".join(one.trigger), "role": one.kind}
        write_atomically(path.with_suffix(".json"), json.dumps(told).encode())
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint what is not there yet, score all, and write the results."""
    known = subsets()
    asked = protocol_parser(NAME, __doc__ or "", count=SEEDS)
    asked.add_argument("--subset", choices=known, required=True)
    asked.add_argument(
        "--gates", type=Path, help="folder of gate files (default: the LoRAs' gates)"
    )
    asked.add_argument(
        "--judge",
        type=Path,
        help="folder of a vision-language model of transformers: scores each way beside the "
        "weighted sum",
    )
    given = asked.parse_args(arguments)
    if given.judge:
        check_judge(given.judge)
    subset, ways = known[given.subset], read_ways(given.ways, WAYS)
    request = request_of(given, subset.request)
    folder = with_words(subset.loras, given.loras, given.out / "loras" / given.subset)
    references = references_in(given.references, [one.id for one in subset.loras])
    studio = open_studio(given, folder)
    for path in sorted((given.gates or given.loras / GATES_FOLDER).glob("*.safetensors")):
        studio.lend(Gates, path)
    chosen = sets_of(subset.loras)[: given.sets]
    compositions: list[Composition] = []
    for some in chosen:
        names = tuple(one.id for one in some)
        compositions.append(
            Composition(
                name="+".join(names),
                loras=names,
                prompt=prompt_for(some, subset.request.prompt),
                ways=ways_for(studio, names, ways),
            )
        )
    scored, refused = painted_and_scored(
        NAME, given, studio, compositions, request, weight=WEIGHT, references=references
    )
    rows, notes = list(rows_of(scored)), _notes(subset, request)
    if given.judge:
        described = {one.id: one.description for one in subset.loras}
        found, unread = judged(
            NAME,
            scored,
            lambda names: "\n".join(described[name] for name in names),
            given.judge,
            given.out / "judged.json",
            given.device,
        )
        rows += judged_rows(found)
        notes.append(
            f"{given.judge.name} judged the pictures of each way in pairs with those of the "
            "weighted sum, in both orders, whose points are averaged; it wins where it has more, "
            f"and equal points count half. {unread} pairs have no answer that can be read."
        )
    publish_protocol(
        NAME,
        given,
        arguments,
        scored,
        refused,
        title=f"ComposLoRA, {given.subset}",
        rows=rows,
        notes=notes,
        request=request,
        model=studio.status.model,
        subset=given.subset,
        sets=len(chosen),
        weight=WEIGHT,
    )


def _notes(subset: Subset, request: Request) -> list[str]:
    vae = f" with the VAE {subset.vae}" if subset.vae else ""
    usual = request == subset.request
    return [
        "Sets, prompts and settings are those of ComposLoRA "
        f"([arXiv 2402.16843](https://arxiv.org/abs/2402.16843)), which uses {subset.model}{vae}"
        f"{'' if usual else '; some settings here are others'}. Every LoRA has its weight in all "
        "ways with weights; alone it has weight 1, and gates have their own. A way that is for "
        "another number of LoRAs takes no part in a set. What differs from the published code: a "
        "prompt of more than 75 tokens is read whole, in parts, where that cuts it; text encoders "
        "are treated alike by all ways; and each picture has a seed of its own."
    ]


if __name__ == "__main__":
    main()
