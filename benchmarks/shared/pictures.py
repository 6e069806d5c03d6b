"""Make pictures, keep them, and have the oracle judge them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.shared.options import Options
from composer.clock import Clock, left
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.regions import EVERY, REACHES
from composer.errors import ComposerError
from composer.evaluation.sampling import Shot, sample
from composer.experts import Expert
from composer.fusions import Gates, LoraRow, MixLora, Plan, Sum, read_recipe
from composer.fusions.gate_file import read_facts
from composer.fusions.libraries import GateCard, MixLoraCard
from composer.fusions.mixlora_file import read_mixlora_facts
from composer.studio.engine import Engine
from toybox import measure
from toybox.measure import Judged
from toybox.oracle import Oracle
from toybox.render import render
from toybox.world import ELEMENTS, Element, element


@dataclass(frozen=True, kw_only=True)
class Case(measure.Case):
    """A picture to be made and judged: what it should show, its prompt, and how it is fused.

    weights: LoRAs by weight, as `fusion` takes them: the key of a recipe.
    gates: a gate file instead, which names its LoRAs; those in `off` are switched off, and the
        weights of those in `strengths` are multiplied by their strength.
    lora: one LoRA file instead, at weight 1.
    mixlora: a MixLoRA, below the LoRAs if there are any.
    """

    weights: tuple[tuple[str, float], ...] = ()
    fusion: str = "weighted"
    gates: Path | None = None
    off: tuple[str, ...] = ()
    strengths: tuple[tuple[str, float], ...] = ()
    lora: Path | None = None
    mixlora: Path | None = None

    @property
    def fused(self) -> tuple[object, ...]:
        """What stands in the model while the picture is made."""
        chosen = self.gates, self.off, self.strengths
        return self.weights, self.fusion, *chosen, self.lora, self.mixlora


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a picture cost when it was made.

    setup: seconds until its LoRAs were fused in the model, once for all pictures fused alike.
    seconds: its share of the sampling of its batch.
    passes: rows that the U-Net computed, as many times as one fused model's.
    """

    setup: float
    seconds: float
    passes: float


class _Engine(Engine):
    """Calls each LoRA by the words and the kind of the element it teaches, where its file does not
    say them."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._named: dict[str, Expert] = {}

    def read(self, name: str, path: Path) -> Expert:
        """The expert in a file, the same one while the file does not change."""
        found = super().read(name, path)
        taught = next((one for one in ELEMENTS if one.file == path.stem), None)
        if taught is None or (found.info.trigger and found.info.role != "other"):
            return found
        kept = self._named.get(name)
        if kept is None or kept.sha256 != found.sha256:
            words = found.info.trigger or taught.trigger
            info = replace(found.info, trigger=words, role=taught.kind)
            self._named[name] = kept = replace(found, info=info)
        return kept


class Studio:
    """The model, its LoRAs and the oracle of one benchmark."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.model: Model = load_model(options.model)
        self.oracle = Oracle.load(options.model / "oracle")
        self.engine = _Engine(self.model)
        self._model_hash = _hash_of(options.model)

    def elements(self, names: Sequence[str] = ()) -> tuple[Element, ...]:
        """The elements whose LoRAs are there, all or those named; a named one must be there."""
        wanted = [element(name) for name in names] or list(ELEMENTS)
        there = tuple(e for e in wanted if self.options.truth or self.path(e).exists())
        missing = [str(self.path(e).name) for e in wanted if e not in there]
        if missing and (names or not there):
            raise ComposerError(
                f"{self.options.loras} lacks {', '.join(missing)}: make them with "
                "`python -m toybox build --stage loras`."
            )
        if missing:
            print(f"left out, for their files are missing: {', '.join(missing)}", flush=True)
        return there

    def path(self, taught: Element) -> Path:
        """The file of the LoRA that teaches it."""
        return self.options.loras / f"{taught.file}.safetensors"

    def expert(self, name: str) -> Expert:
        """The LoRA of an element, read once."""
        return self.engine.read(name, self.path(element(name)))

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """Make all pictures that are not there yet, and judge all, in the order of `cases`."""
        self.make(cases)
        images = self._truth(cases) if self.options.truth else [_read(p) for p in self._kept(cases)]
        verdicts = self.oracle.judge(images)
        return [
            Judged(case=case, image=image, verdict=verdict)
            for case, image, verdict in zip(cases, images, verdicts, strict=True)
        ]

    def _truth(self, cases: Sequence[Case]) -> list[Image.Image]:
        return [render(case.scene, random.Random(f"truth {case.seed}")) for case in cases]

    def make(
        self, cases: Sequence[Case], refused: dict[tuple[object, ...], str] | None = None
    ) -> None:
        """Make all pictures that are not there yet, and keep them; none where renderings are
        judged.

        refused: takes why, by `Case.fused`, where a way of fusing refuses the LoRAs; these
            pictures are left out.

        Raises:
            ComposerError: one is refused, and `refused` is not given.
        """
        if self.options.truth:
            return
        todo = {p: c for p, c in zip(self._kept(cases), cases, strict=True) if not p.exists()}
        alike: dict[tuple[object, ...], list[Path]] = {}
        for path, case in todo.items():
            alike.setdefault(case.fused, []).append(path)
        progress = PictureCount(self.options.name, len(todo))
        self.options.cache.mkdir(parents=True, exist_ok=True)
        at_once = self.options.sampling.batch_size
        for fused, paths in alike.items():
            try:
                with _Meter(self.model, self.options) as meter, self.attached(todo[paths[0]]):
                    meter.begin()
                    for some in (paths[i : i + at_once] for i in range(0, len(paths), at_once)):
                        self._make([(path, todo[path]) for path in some], meter, progress)
            except ComposerError as error:
                if refused is None:
                    raise
                refused[fused] = str(error)
                print(f"{self.options.name}: left out, for {error}", flush=True)
                for _ in paths:
                    progress.tick()

    def _make(
        self, some: Sequence[tuple[Path, Case]], meter: _Meter, progress: PictureCount
    ) -> None:
        """The pictures of one batch, with what is attached."""
        made = sample(
            self.model,
            [Shot(prompt=case.prompt, seed=case.seed) for _, case in some],
            self.options.sampling,
            regions=self.engine.regions(),
            passes=self.engine.in_passes(),
            before_step=self.engine.at_step,
        )
        images = list(made)
        cost = meter.read(len(some))
        for (path, _), image in zip(some, images, strict=True):
            _save(path, image, cost)
            progress.tick()

    def cost(self, case: Case) -> Cost | None:
        """What the picture of this case cost; None where it was not measured."""
        if self.options.truth:
            return None
        with Image.open(self._kept([case])[0]) as image:
            noted = image.info.get("cost")
        return Cost(**json.loads(noted)) if noted else None

    @contextmanager
    def attached(self, case: Case) -> Generator[None]:
        """The LoRAs of this case, fused as it asks, for as long as the context lasts."""
        try:
            self.engine.mix(self._plan(case))
            if case.gates is None and self.engine.mixture is not None:
                for name in case.off:
                    self.engine.mixture.toggle(name, False)
            yield
        finally:
            self.engine.release()

    def _plan(self, case: Case) -> Plan:
        """How its LoRAs are fused, and the files of all that it names."""
        if case.lora is not None:
            rows = {case.lora.stem: LoraRow(name=case.lora.stem)}
            return Plan(recipe=Sum(), rows=rows, paths={case.lora.stem: case.lora})
        recipe = read_recipe(case.fusion) if case.gates is None else Gates(file="gates")
        given, card = dict(case.weights), None
        if case.gates is not None:
            facts = read_facts(case.gates)
            given = {expert.name: 1.0 for expert in facts.experts} | dict(case.strengths)
            card = GateCard(name=case.gates.stem, path=case.gates, facts=facts)
        if case.mixlora is not None:
            learned = read_mixlora_facts(case.mixlora)
            recipe = MixLora(file=case.mixlora.stem)
            card = MixLoraCard(name=case.mixlora.stem, path=case.mixlora, facts=learned)
        on = {name: case.gates is None or name not in case.off for name in given}
        return Plan(
            recipe=recipe,
            rows={name: LoraRow(name=name, weight=w, on=on[name]) for name, w in given.items()},
            paths={name: self.path(_taught(name)) for name in given},
            source=card,
        )

    def _kept(self, cases: Sequence[Case]) -> list[Path]:
        """Where these pictures are kept: names made of everything that decides them."""
        return [self._place(case) for case in cases]

    def _place(self, case: Case) -> Path:
        sampling = self.options.sampling
        loras = [(self.expert(name).sha256, weight) for name, weight in case.weights]
        decides: list[Any] = [self._model_hash, loras, case.prompt, case.seed]
        if case.fusion != "weighted":
            decides += [case.fusion, case.off, repr(sorted(REACHES.items())), EVERY]
        if case.gates is not None:
            decides += [hashlib.sha256(case.gates.read_bytes()).hexdigest(), case.off]
        if case.strengths:
            decides.append(case.strengths)
        if case.lora is not None:
            decides.append(hashlib.sha256(case.lora.read_bytes()).hexdigest())
        if case.mixlora is not None:
            decides.append(hashlib.sha256(case.mixlora.read_bytes()).hexdigest())
        decides += [sampling.steps, sampling.cfg_scale, sampling.sampler]
        name = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:24]
        return self.options.cache / f"{name}.png"


class _Meter:
    """Measures what pictures that are fused alike cost, batch by batch."""

    def __init__(self, model: Model, options: Options) -> None:
        sampling = options.sampling
        self._rows_of_one = sampling.steps * (2 if sampling.cfg_scale > 1 else 1)
        self._hook = model.unet.register_forward_pre_hook(self._count, with_kwargs=True)
        self._setup, self._since, self._rows = 0.0, time.monotonic(), 0

    def _count(self, unet: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._rows += len(given[0] if given else named["sample"])

    def begin(self) -> None:
        """The LoRAs are fused, and the pictures are made from now on."""
        self._setup = time.monotonic() - self._since
        self._since, self._rows = time.monotonic(), 0

    def read(self, pictures: int) -> Cost:
        """Of each of so many pictures, which were made since it was read last."""
        now = time.monotonic()
        seconds, passes = now - self._since, self._rows / self._rows_of_one
        self._since, self._rows = now, 0
        return Cost(setup=self._setup, seconds=seconds / pictures, passes=passes / pictures)

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *failed: object) -> None:
        self._hook.remove()


class PictureCount:
    """A line every ten seconds: how far, and how long it will take."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.clock, self.printed = Clock(0, total), time.monotonic()

    def tick(self) -> None:
        """One more is there."""
        self.done += 1
        seconds = self.clock.seconds_left(self.done)
        now = time.monotonic()
        if now - self.printed > 10 or self.done == self.total:
            self.printed = now
            print(f"{self.name}: {self.done}/{self.total} pictures, {left(seconds)}", flush=True)


def _hash_of(folder: Path) -> str:
    """Of all weights that decide a picture."""
    digest = hashlib.sha256()
    for part in ("unet", "vae", "text_encoder"):
        for path in sorted((folder / part).glob("*.safetensors")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _taught(name: str) -> Element:
    """The element that a gate file calls so: by its name, or by that of its LoRA's file."""
    return next((one for one in ELEMENTS if one.file == name), None) or element(name)


def _save(path: Path, image: Image.Image, cost: Cost) -> None:
    """Whole or not at all, so that a stopped run leaves no half picture."""
    part = path.with_suffix(".part")
    noted = PngInfo()
    noted.add_text("cost", json.dumps(asdict(cost)))
    image.save(part, "PNG", pnginfo=noted)
    os.replace(part, path)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
