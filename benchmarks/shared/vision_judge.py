"""A vision-language model that scores pictures in pairs, as ComposLoRA asks GPT-4V.

For composition and for quality each picture gets 0 to 10 points, and every pair is shown in both
orders, for such models prefer one place. The points of the two orders are averaged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from PIL import Image

from benchmarks.shared.pictures import PictureCount
from benchmarks.shared.protocols import Scored, mean_columns
from benchmarks.shared.results import Row, Value
from benchmarks.shared.ways import title_of_way
from composer.diffusion.load import choose_device
from composer.errors import ComposerError
from composer.experts.hashes import file_hash_of
from composer.files import write_atomically
from composer.fusions import Sum
from composer.outside import number, parse_object
from composer.studio.axes import ALONE, BARE

TABLE = "Judged beside the weighted sum"
ASPECTS = ("composition", "quality")
MOST = 10.0
WORDS = 800
"""Tokens of an answer, at most."""
QUESTION = """Two pictures were made by two programs that were both asked to show all of these:

{elements}

Judge each picture twice, from 0 to 10 points in steps of a half.
Composition: begin at 10; take away 3 for each of the things above that is missing or is something \
else, 1 for each of its features that is missing or wrong, and 1 where things do not fit together.
Quality: begin at 10; take away 3 for each deformity, such as too many limbs or fingers or a \
distorted face, 2 for bad texture, light or colour, and 1 for each small flaw.
Be strict, and avoid equal points if one picture is better.

First go through the list for each picture in a few sentences. Then end with one line of this form:
{{"first": {{"composition": 0, "quality": 0}}, "second": {{"composition": 0, "quality": 0}}}}"""

_OF_ONE = r":\s*\{[^{}]*\}\s*"
_POINTS = re.compile(rf'\{{\s*"first"\s*{_OF_ONE},\s*"second"\s*{_OF_ONE}\}}')
Points = tuple[float, float]
"""Of the aspects, in their order."""
Ask = Callable[[Image.Image, Image.Image, str], str]
"""The answer to a question on two pictures."""


def check_judge(folder: Path) -> None:
    """Refuse what is no such model, by its small files alone.

    Raises:
        ComposerError: it is not there, is another model, or its weights are not safetensors.
    """
    from transformers.models.auto import modeling_auto

    known: Mapping[str, Any] = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    remedy = "give the folder of a model of transformers that takes pictures and text, with its "
    remedy += "processor and safetensors weights"
    try:
        kind = parse_object((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError) as error:
        raise ComposerError(f"The judge {folder} has no config.json to read: {remedy}.") from error
    if kind not in known:
        raise ComposerError(f"The judge {folder} is a model of the kind {kind!r}: {remedy}.")
    if not any(folder.glob("*.safetensors")):
        raise ComposerError(f"The judge {folder} has no weights in safetensors: {remedy}.")


def load_judge(folder: Path, device: str) -> Ask:
    """What asks the model in a folder; the same answer each time.

    Raises:
        ComposerError: as `check_judge`, or it cannot be read.
    """
    import torch
    import transformers

    check_judge(folder)
    try:
        # their types are not known to the checker
        loader = cast(Any, transformers)
        processor = loader.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        model = loader.AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, dtype="auto"
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ComposerError(f"The judge {folder} cannot be read: {error}") from error
    if not getattr(processor, "chat_template", None):
        raise ComposerError(
            f"The judge {folder} has no chat template: give a model that was tuned for questions."
        )
    place = choose_device(device)
    model = model.eval().to(place)

    @torch.no_grad()
    def ask(first: Image.Image, second: Image.Image, question: str) -> str:
        shown = [{"type": "image", "image": image} for image in (first, second)]
        given = processor.apply_chat_template(
            [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(place, dtype=model.dtype)  # numbers of pictures alone have the model's type
        made = model.generate(**given, do_sample=False, max_new_tokens=WORDS)
        answer = made[:, given["input_ids"].shape[1] :]
        return str(processor.batch_decode(answer, skip_special_tokens=True)[0])

    return ask


def read_points(answer: str) -> tuple[Points, Points] | None:
    """Those of the first and the second picture in the last line that has them; None for none."""
    for found in reversed(_POINTS.findall(answer)):
        try:
            told = parse_object(found)
            first, second = (
                tuple(number(told[place][aspect]) for aspect in ASPECTS)
                for place in ("first", "second")
            )
        except (KeyError, TypeError, ValueError):
            continue
        if all(0 <= value <= MOST for value in (*first, *second)):
            return (first[0], first[1]), (second[0], second[1])
    return None


def fingerprint(folder: Path) -> str:
    """Of a model, by its small files and the sizes of its weights."""
    digest = hashlib.sha256(QUESTION.encode())
    for path in sorted(folder.iterdir()):
        if path.is_file():
            small = path.suffix in (".json", ".jinja")
            own = path.read_bytes() if small else str(path.stat().st_size).encode()
            digest.update(path.name.encode() + own)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One picture beside the weighted sum's of the same LoRAs, prompt and seed."""

    scored: Scored
    own: Points
    other: Points


def judged(
    name: str,
    scored: Sequence[Scored],
    elements: Callable[[Sequence[str]], str],
    folder: Path,
    kept: Path,
    device: str,
) -> tuple[list[Judged], int]:
    """Every picture of a way of fusing that the weighted sum has too, and how many pairs had no
    answer that can be read.

    elements: what LoRAs of these names are to show, a line for each. folder: the judge's.
    kept: a file of the answers' points; what is in it is not asked again.
    """
    sums = {(one.composition.name, one.seed): one for one in scored if one.title == Sum.title}
    asked = [
        (one, sums[key])
        for one in scored
        if one.title not in (Sum.title, title_of_way(BARE), title_of_way(ALONE))
        and (key := (one.composition.name, one.seed)) in sums
    ]
    known = _known(kept)
    judge, ask = fingerprint(folder), load_judge(folder, device)
    counted = PictureCount(f"{name}, judging", len(asked))
    found: list[Judged] = []
    for one, other in asked:
        question = QUESTION.format(elements=elements(one.composition.loras))
        points: list[tuple[Points, Points]] = []
        for first, second in ((one, other), (other, one)):
            paths = [each.filled.painted.saved.path for each in (first, second)]
            decides = json.dumps([judge, question, *map(file_hash_of, paths)])
            key = hashlib.sha256(decides.encode()).hexdigest()
            if key not in known:
                images = [each.filled.painted.saved.image() for each in (first, second)]
                known[key] = read_points(ask(images[0], images[1], question))
                write_atomically(kept, json.dumps(known).encode())
            if known[key] is not None:
                one_place, other_place = (0, 1) if first is one else (1, 0)
                points.append((known[key][one_place], known[key][other_place]))
        if len(points) == 2:
            own, against = (
                (fmean(p[n][0] for p in points), fmean(p[n][1] for p in points)) for n in (0, 1)
            )
            found.append(Judged(scored=one, own=own, other=against))
        counted.tick()
    return found, len(asked) - len(found)


def _known(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return parse_object(path.read_bytes())
    except ValueError as error:
        raise ComposerError(
            f"{path} is damaged ({error}): delete it, and all is judged again."
        ) from error


def judged_rows(found: Sequence[Judged]) -> Iterator[Row]:
    """By way, the points of each aspect beside those of the sum, and how often they are more; equal
    ones count half."""
    for title in dict.fromkeys(one.scored.title for one in found):
        own = [one for one in found if one.scored.title == title]
        sets = {one.scored.composition.loras for one in own}
        row: dict[str, Value] = {"table": TABLE, "fusion": title}
        row |= {"sets": len(sets), "n": len(own)}
        for place, aspect in enumerate(ASPECTS):
            columns: Mapping[str, Callable[[Judged], float]] = {
                f"{aspect} (of 10)": lambda one, n=place: one.own[n],
                f"the sum's {aspect} (of 10)": lambda one, n=place: one.other[n],
                f"{aspect} wins": lambda one, n=place: _win(one.own[n], one.other[n]),
            }
            for column, value in columns.items():
                by_set: dict[tuple[str, ...], list[float]] = {}
                for one in own:
                    by_set.setdefault(one.scored.composition.loras, []).append(value(one))
                row |= mean_columns(column, [fmean(values) for values in by_set.values()])
        yield row


def _win(own: float, other: float) -> float:
    return (own > other) + (own == other) / 2
