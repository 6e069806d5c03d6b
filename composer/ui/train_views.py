"""What the components of the page that trains gates are fed: plain values from the studio's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from composer.clock import left
from composer.errors import ComposerError
from composer.outside import whole
from composer.studio import Training
from composer.ui.views import card_view, thumbnail, thumbnail_url

if TYPE_CHECKING:
    from composer.experts.card import Card

Json = dict[str, Any]
Cards = Mapping[str, "Card"]

SMOOTHING = 0.9
MOST_POINTS = 240  # of a curve, more cannot be seen
STAGES = (("alone", "LoRAs alone", 0.3), ("train", "Training", 0.7))
BLANK: Json = {"text": "", "drafted": ""}


def picker_view(cards: Iterable[Card]) -> Json:
    """The LoRAs to choose from: those that can be used."""
    usable = [card for card in cards if not card.error]
    return {"cards": [card_view(card, thumbnail(card.info.preview)) for card in usable]}


# --- what the gates learn from


def lora_line(card: Card) -> Json:
    """A chosen LoRA, before prompts are drafted."""
    info = card.info
    title = info.title or card.name
    return {"name": card.name, "title": title, "role": info.role, "trigger": info.trigger, **BLANK}


def no_prompts(loras: Sequence[Json] = ()) -> Json:
    """The value of the page's prompts, before any is written."""
    return {"turn": 0, "loras": list(loras), "together": dict(BLANK)}


def read_prompts(value: object) -> Json:
    """The chosen LoRAs and prompts as the page sends them, checked.

    Raises:
        ComposerError: no page of ours sends such a thing.
    """
    try:
        given = cast("dict[str, Any]", value or no_prompts())
        loras = [
            {name: str(line[name]) for name in ("name", "title", "role", "trigger", *BLANK)}
            for line in cast("list[Json]", given["loras"])
        ]
        together = {name: str(given["together"][name]) for name in BLANK}
        return {"turn": whole(given["turn"]), "loras": loras, "together": together}
    except (TypeError, KeyError, ValueError) as error:
        raise ComposerError("The page sent invalid training prompts. Reload the page.") from error


def redrafted(group: Json, prompts: Sequence[str], *, keep: bool = True) -> Json:
    """A group of prompts drafted anew; what the user wrote there stays if it is to be kept."""
    drafted = "\n".join(prompts)
    own = keep and group["text"].strip() and group["text"] != group["drafted"]
    return {**group, "text": group["text"] if own else drafted, "drafted": drafted}


def lines(text: str) -> tuple[str, ...]:
    """The prompts of a text with one on each line, each once."""
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


# --- how it goes


def training_view(training: Training, cards: Cards) -> Json:
    """The training that is shown."""
    step = 0 if training.stage != "train" else training.step
    total = max(training.request.steps, 1)
    return {
        "state": training.state,
        "title": training.name,
        "loras": _loras(training, cards),
        "stages": _stages(training),
        "what": _what(training),
        "left": _left(training),
        "message": _message(training),
        "good": training.state == "finished",
        "step": step,
        "total": total,
        "curves": _curves(training, cards),
        "entropy": _thin(_smooth((p.step, p.entropy) for p in training.history), 3),
    }


def previews_view(training: Training) -> Json:
    """The pictures made on the way."""
    pictures = [
        {"step": shown.step, "src": thumbnail_url(thumbnail(shown.path))}
        for shown in training.previews
    ]
    return {"prompt": training.request.prompts[0] if pictures else "", "pictures": pictures}


def trainings_view(trainings: Iterable[Training], cards: Cards, shown: str | None) -> Json:
    """The list of all trainings."""
    return {
        "shown": shown,
        "rows": [
            {
                "name": training.name,
                "state": training.state,
                "about": _about(training),
                "loras": _loras(training, cards),
                "resumes": resumes(training),
                "forgets": not training.active,
            }
            for training in trainings
        ],
    }


def resumes(training: Training) -> bool:
    """Whether it can go on. What failed before any work is mended in the form."""
    begun = training.stage != "prepare"
    return training.state == "stopped" or (training.state == "failed" and begun)


def _loras(training: Training, cards: Cards) -> list[Json]:
    return [_named(name, cards) for name in training.request.loras]


def _named(name: str, cards: Cards) -> Json:
    info = cards[name].info if name in cards else None
    return {
        "title": (info.title if info else "") or name,
        "role": info.role if info else "other",
    }


def _curves(training: Training, cards: Cards) -> list[Json]:
    """The whole first, then each LoRA's own. CLIP's is the whole but for a constant."""
    words = {"loss": "all"}
    loras = training.request.loras
    groups = dict.fromkeys(group for point in training.history for group in point.losses)
    order = [*(g for g in ("loss", *loras) if g in groups)]
    order += [group for group in groups if group not in order and group != "CLIP"]
    curves: list[Json] = []
    for group in order:
        named = _named(group, cards) if group in loras else {"title": words.get(group, group)}
        points = [(p.step, p.losses[group]) for p in training.history if group in p.losses]
        curves.append(
            {
                "key": group,
                "label": named["title"],
                "role": named.get("role"),
                "main": group == "loss",
                "points": _thin(points, 4),
            }
        )
    return curves


def _smooth(points: Iterable[tuple[int, float | None]]) -> list[tuple[int, float]]:
    """A batch of prompts more or less makes entropy jump; its course is what counts."""
    found: list[tuple[int, float]] = []
    for step, number in points:
        if number is not None:
            before = found[-1][1] if found else number
            found.append((step, SMOOTHING * before + (1 - SMOOTHING) * number))
    return found


def _thin(points: Sequence[tuple[int, float]], digits: int) -> list[list[float]]:
    """So many points as can be seen; the last one is kept."""
    every = -(-len(points) // MOST_POINTS) or 1
    kept = [*points[::every]]
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return [[step, round(number, digits)] for step, number in kept]


def _stages(training: Training) -> list[Json]:
    names = [name for name, _, _ in STAGES]
    now = names.index(training.stage) if training.stage in names else -1
    done = training.step / training.total if training.total else 0.0
    stages: list[Json] = []
    for place, (key, label, share) in enumerate(STAGES):
        fraction = 1.0 if place < now or training.state == "finished" else 0.0
        if place == now and training.state != "finished":
            fraction = done
        here = place == now and training.state == "running"
        stages.append(
            {"key": key, "label": label, "share": share, "fraction": fraction, "now": here}
        )
    return stages


def _what(training: Training) -> str:
    step, total = training.step, training.total
    if training.state == "waiting":
        many = training.ahead
        return f"Waits for {many} other training{'s' if many > 1 else ''}" if many else "Starting"
    if training.state == "finished":
        # one LoRA needs none
        return f"Finished after {training.trained} steps" if training.trained else "Finished"
    if training.state == "failed":
        return f"Failed at step {training.trained}" if training.trained else "It did not start"
    if training.state == "stopped":
        trained, asked = training.trained, training.request.steps
        return (
            f"Stopped at step {trained} of {asked}" if trained else "Stopped before the first step"
        )
    if training.state == "stopping":
        return "Stopping after this step"
    if training.gives_way:
        return "Waits while a picture is made"
    return {
        "prepare": "Getting ready",
        "alone": f"Each LoRA draws alone · {step} of {total}",
        "train": f"Step {step} of {total}",
    }[training.stage]


def _left(training: Training) -> str:
    if training.state != "running" or training.seconds_left is None:
        return ""
    then = {"alone": ", then the training"}.get(training.stage, "")
    return left(training.seconds_left) + then


def _message(training: Training) -> str:
    if training.state == "finished" and not training.message:
        return f"The gates “{training.name}” are ready in Compose."
    parts = [training.message] if training.message else []
    if training.skipped and training.state != "failed":
        several = "s" if training.skipped > 1 else ""
        parts.append(f"{training.skipped} step{several} without a finite loss skipped.")
    return " ".join(parts)


def _about(training: Training) -> str:
    last = training.history[-1].losses.get("loss") if training.history else None
    loss = f" · loss {last:.3f}" if last is not None else ""
    of = f"{training.trained} of {training.request.steps} steps"
    return {
        "waiting": "waits",
        "running": f"running · {of}",
        "stopping": f"stopping · {of}",
        "stopped": f"stopped · {of}",
        "failed": f"failed · {of}",
        "finished": f"finished · {training.trained} steps{loss}".removesuffix(" · 0 steps"),
    }[training.state]
