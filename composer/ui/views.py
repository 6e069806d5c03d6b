"""What the page's own components are fed: plain JSON values made from the studio's.

Texts go in as they are: the components put them into the page as text, never as markup. Only
`recipe` returns markup, and escapes.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image, ImageChops, UnidentifiedImageError

from composer.clock import duration, left
from composer.diffusion.request import Start
from composer.errors import ComposerError
from composer.fusions import PLAIN, RECIPES, LoraRow, Recipe, read_recipe
from composer.fusions.places import Place
from composer.fusions.rows import recorded_pins, recorded_places, recorded_spans
from composer.outside import number
from composer.studio import (
    Event,
    Finished,
    Progress,
    Queued,
    SavedPicture,
    Started,
    Status,
    Studio,
)

if TYPE_CHECKING:
    import gradio as gr

    from composer.experts.card import Card

SHOWN_SIDE = 384  # a small picture is enlarged to this for the eye; files keep their size
THUMBNAIL_SIDE = 160
MAX_PREVIEW_PIXELS = 2**24

Json = dict[str, Any]
log = logging.getLogger("composer")


def cards_of(studio: Studio, *, refresh: bool = False) -> dict[str, Card]:
    """The LoRAs by name; none where a folder is missing, as Compose reports."""
    try:
        return {card.name: card for card in studio.cards(refresh=refresh)}
    except ComposerError:
        return {}


def trigger_of(studio: Studio, event: gr.EventData) -> str:
    """The words that call the LoRA that was chosen or removed."""
    card = cards_of(studio).get(str(event.name))
    return card.info.trigger if card else ""


def failure(error: Exception, what: str) -> str:
    """The message people see of an error; one that was not expected goes to the log, too."""
    if isinstance(error, ComposerError):
        return str(error)
    log.error(what, exc_info=error)
    return f"{type(error).__name__}: {error}. The log has the whole story."


def data_url(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """The image as text that stands in for an address, so that no file is served."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return as_data_url(buffer.getvalue(), kind)


def as_data_url(content: bytes, kind: str = "PNG") -> str:
    """The bytes of an image file as an address."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


@lru_cache(maxsize=4096)
def _read_thumbnail(path: Path, stamp: tuple[int, int]) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PREVIEW_PIXELS:
                return None
            return _fitted(image.convert("RGB"), THUMBNAIL_SIDE)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None  # a broken preview is no reason to hide a LoRA


def thumbnail(path: Path | None) -> Image.Image | None:
    """The preview picture beside a LoRA, made small; read again only when the file changes."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return _read_thumbnail(path, (status.st_mtime_ns, status.st_size))


def thumbnail_url(image: Image.Image | None) -> str:
    """A small WebP, enlarged if the picture is tiny; empty without a picture."""
    if image is None:
        return ""
    return data_url(_fitted(image.convert("RGB"), THUMBNAIL_SIDE), "WEBP", quality=88)


def preview_url(image: Image.Image) -> str:
    """A preview: small to send, as it changes several times a second."""
    return data_url(_fitted(image.convert("RGB"), SHOWN_SIDE), "JPEG", quality=82)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def card_view(card: Card, thumbnail: Image.Image | None) -> Json:
    """A card of the library."""
    info = card.info
    title = info.title or card.name
    kinds = ", ".join(kind for kind in info.kinds if kind != "LoRA")
    words = f"embeddings: {', '.join(info.embeddings)}" if info.embeddings else ""
    rank = f"rank {info.rank}" if info.rank else ""
    part = info.share is not None and info.share < 1
    share = f"{int(100 * (info.share or 0))} % of it fits this model" if part else ""
    facts = " · ".join(fact for fact in (kinds, rank, info.base, words, share) if fact)
    searched = " ".join((title, card.name, info.trigger, info.role, info.base, info.description))
    return {
        "name": card.name,
        "title": title,
        "role": info.role,
        "trigger": info.trigger,
        "facts": facts,
        "description": info.description,
        "weight": info.weight,
        "thumbnail": thumbnail_url(thumbnail),
        "haystack": " ".join((searched, *info.tags, info.notes)).lower(),
    }


def row_view(row: LoraRow, card: Card | None, recipe: Recipe) -> Json:
    """A line of the mixer. It keeps the weight of a sum and the strength under gates apart, so that
    each is there again when the fusion is changed back."""
    numbers = {"weight": card.info.weight if card else 1.0, "strength": 1.0}
    return {
        "name": row.name,
        "title": (card.info.title or card.name) if card else row.name,
        "role": card.info.role if card else "other",
        "trigger": card.info.trigger if card else "",
        "on": row.on,
        **numbers,
        recipe.numbers[0]: row.weight,
        "text_encoder": row.text_encoder,
        "steps": list(row.steps),
        "depth": list(row.depth),
        "place": str(row.place) if row.place else "",
    }


def read_lines(value: object) -> list[Json]:
    """The mixer's lines, whatever fuses them; they come from a browser.

    Raises:
        ComposerError: no page of ours sends such a thing.
    """
    for recipe in RECIPES.values():
        _read(value, recipe)
    return [dict(line) for line in cast("list[Json]", value or [])]


def read_rows(value: object, fusion: object) -> tuple[LoraRow, ...]:
    """The mixer's lines as rows. Their names are only ever looked up.

    fusion: the form's, which says what counts: the weights of a sum, or strengths under gates.

    Raises:
        ComposerError: no page of ours sends such a thing.
    """
    return _read(value, read_recipe(fusion))


def _read(value: object, recipe: Recipe | type[Recipe]) -> tuple[LoraRow, ...]:
    lines = cast("list[Any]", value or [])
    try:
        return tuple(_read_row(line, recipe.numbers) for line in lines)
    except (TypeError, KeyError, IndexError, ValueError) as error:
        if isinstance(error, ComposerError):
            raise
        raise ComposerError("The page sent rows that are not rows. Reload the page.") from error


def _read_row(line: Any, numbers: tuple[str, ...]) -> LoraRow:
    words = line["text_encoder"] if "text_encoder" in numbers else None
    return LoraRow(
        name=str(line["name"]),
        on=bool(line["on"]),
        weight=number(line[numbers[0]]),
        text_encoder=None if words is None else number(words),
        steps=(number(line["steps"][0]), number(line["steps"][1])),
        depth=(number(line["depth"][0]), number(line["depth"][1])),
        place=Place.read(str(line["place"])) if line["place"] else None,
    )


def status_view(status: Status) -> Json:
    """The model's state, at the head of the page."""
    if status.state == "ready":
        return {"state": "ready", "model": status.model, "about": f"{status.size} × {status.size}"}
    return {"state": status.state, "model": "", "about": status.message}


def library_view(cards: Iterable[Card], problems: Iterable[str] = ()) -> Json:
    """The library: a card for each file that can be used, a line for each that cannot."""
    cards = tuple(cards)
    usable = [card_view(card, thumbnail(card.info.preview)) for card in cards if not card.error]
    return {"cards": usable, "problems": [*problems, *(card.error for card in cards if card.error)]}


def event_view(event: Event) -> Json:
    """The stage while there is no finished picture yet."""
    if isinstance(event, Queued):
        ahead = "Waiting for the model" if not event.ahead else f"Waiting for {event.ahead}"
        others = "" if not event.ahead else " other job" + ("s" if event.ahead > 1 else "")
        return {"phase": "waiting", "title": ahead + others}
    if isinstance(event, Started):
        return {"phase": "starting", "title": "Starting", "detail": " ".join(event.notes)}
    if isinstance(event, Progress):
        return progress_view(event)
    return {"phase": "idle"}


def progress_view(progress: Progress) -> Json:
    """The stage while a picture is painted."""
    first, last = progress.pictures.start + 1, progress.pictures.stop
    which = f"{first}" if first == last else f"{first}–{last}"
    word = "picture" if first == last else "pictures"
    several = f" · {word} {which} of {progress.count}" if progress.count > 1 else ""
    return {
        "phase": "working",
        "src": preview_url(progress.preview) if progress.preview else None,
        "title": f"Step {progress.step} of {progress.steps}{several}",
        "detail": left(progress.seconds_left),
        "fraction": progress.step / progress.steps,
    }


def ended(event: Finished) -> str:
    """How a job ended that made pictures."""
    many = len(event.pictures)
    made = "" if many == 1 else f"{many} pictures in "
    return f"{'Stopped after ' if event.cancelled else ''}{made}{duration(event.seconds)}"


def picture_view(saved: SavedPicture, *, phase: str = "done", detail: str = "") -> Json:
    """The stage with a finished picture. Small ones are enlarged; what they say stays with them."""
    return {
        "phase": phase,
        "src": as_data_url(saved.shown(SHOWN_SIDE)),
        "alt": saved.record.request.prompt or "a picture without a prompt",
        "title": saved.path.name,
        "detail": detail,
        "fraction": 1.0,
    }


def read_seed(value: object) -> int:
    """The seed that a page's field holds.

    Raises:
        ComposerError: it is no whole number.
    """
    try:
        return int(str(value))
    except ValueError:
        raise ComposerError(
            f"The seed {str(value)[:40]!r} is not a whole number: give one, or -1 to draw one."
        ) from None


def read_start(value: object) -> Start | None:
    """The picture that the page's editor holds, with what was painted over it as its mask."""
    if not isinstance(value, Mapping):
        return None
    held = cast("Mapping[str, Any]", value)
    image: Any = held.get("background")
    if not isinstance(image, Image.Image):
        return None
    layers = cast("list[Image.Image]", held.get("layers") or [])
    # the paint is translucent: what it touched at all is painted
    painted = [layer.convert("RGBA").getchannel("A").point([0] + [255] * 255) for layer in layers]
    mask = functools.reduce(ImageChops.lighter, painted) if painted else None
    # a layer on which nothing was painted is there too
    return Start(image=image, mask=mask if mask is not None and mask.getbbox() else None)


def strip_view(pictures: Iterable[SavedPicture], selected: str | None) -> Json:
    """The strip of finished pictures; one that cannot be read has no thumbnail and says why."""
    shown: list[Json] = []
    for saved in pictures:
        try:
            title = f"{saved.path.name}: {saved.record.request.prompt}"
            small = thumbnail_url(thumbnail(saved.path))
        except ComposerError as error:
            title, small = f"{saved.path.name}: {error}", ""
        shown.append({"id": saved.id, "thumbnail": small, "title": title})
    return {"selected": selected, "pictures": shown}


def recipe(saved: SavedPicture, cards: Mapping[str, Card]) -> str:
    """The settings of a picture, as markup."""
    request, fusion = saved.record.request, saved.record.fusion
    chips = "".join(
        f'<span class="{kind}">{html.escape(text)}</span>' for kind, text in _chips(saved, cards)
    )
    facts = {
        "Seed": request.seed,
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule": request.schedule,
        "CFG": f"{request.cfg_scale:g}",
        "Size": f"{request.width} × {request.height}",
        "Fusion": saved.recipe.label if saved.recipe else str(fusion.get("name", "")),
        "Model": saved.record.model_name,
    }
    if request.hires > 1:
        facts["Second pass"] = f"× {request.hires:g}"
    if request.hires > 1 or saved.record.start:
        facts["Denoising"] = f"{request.strength:g}"
    if saved.record.start:
        facts["Began from"] = "a picture"
    if pins := recorded_pins(fusion):
        facts["Pinned"] = " · ".join(map(str, pins))
    if request.negative_prompt:
        facts["Negative prompt"] = request.negative_prompt
    pairs = "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(str(value))}</dd></div>"
        for name, value in facts.items()
    )
    prompt = html.escape(request.prompt) or "(no prompt)"
    loras = f'<div class="loras">{chips}</div>' if chips else ""
    return f'<div class="recipe"><p class="prompt">{prompt}</p>{loras}<dl>{pairs}</dl></div>'


def _chips(saved: SavedPicture, cards: Mapping[str, Card]) -> Iterator[tuple[str, str]]:
    """For each LoRA its class and its text: with its weight, or with what gates heed."""

    def titled(name: str) -> tuple[str, str]:
        card = cards.get(name)
        title = (card.info.title or card.name) if card else name
        return f"lora role-{card.info.role if card else 'other'}", title

    recipe, spans = saved.recipe or PLAIN[0], recorded_spans(saved.record.fusion)
    places = recorded_places(saved.record.fusion)
    for row in saved.rows:
        kind, title = titled(row.name)
        aside = [] if row.text_encoder is None else [f"text {row.text_encoder:g}"]
        for part, (start, end) in spans.get(row.name, {}).items():
            aside.append(f"{part} {100 * start:.0f} to {100 * end:.0f} %")
        aside += ["in its place"] if row.name in places else []
        details = f"({', '.join(aside)})" if aside else ""
        yield kind, " ".join(filter(None, (title, recipe.number(row), details)))
    for name in recipe.off(saved.record.fusion):
        kind, title = titled(name)
        yield f"{kind} off", f"{title} off"


def download(picture: SavedPicture) -> str:
    """A link that saves the file itself, with all that it says of how it was made."""
    address = as_data_url(picture.path.read_bytes())
    return f'<a class="download" download="{picture.path.name}" href="{address}">Download PNG</a>'


def escaped(message: object) -> str:
    """Text for one of Gradio's notes, which are markup."""
    return html.escape(str(message))
