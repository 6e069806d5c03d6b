"""Recipes: how LoRAs are fused, as one sum type.

A recipe is a small value that a form, a command or a picture's record holds: `Sum()`,
`Gates(file="pair")`. It finds the files that it needs (`plan`), attaches them to a model
(`attach`), words itself for the picture's record (`to_record`) and reads itself back (`recalled`).
A further way of fusing is one more class in `RECIPES`; nothing else asks which one a recipe is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from composer.errors import ComposerError
from composer.fusions.rows import (
    ALWAYS,
    LoraRow,
    Pin,
    limit,
    spans_to_record,
)
from composer.settings import Settings, fields_of

if TYPE_CHECKING:
    from torch import Tensor

    from composer.experts import Expert
    from composer.experts.info import LoraInfo
    from composer.experts.library import Entry, Library
    from composer.fusions.libraries import Libraries, MixLoraCard
    from composer.fusions.passes import Passes
    from composer.mixture import Granularity, Mixture
MOLE = "https://arxiv.org/abs/2404.13628"
MIXLORA = "https://arxiv.org/abs/2404.15159"

Weight = float | Mapping[str, float]
"""One number for all parts of the model, or a number for each part: {"unet": 0.8, ...}."""
File = TypeVar("File")
NONE: Mapping[str, float] = {}


class Bench(Protocol):
    """What recipes attach to: a model that keeps what was read and attached before."""

    fitted: Any
    """What was fitted into the mixture last, a gate file; None after another was attached."""

    passes: Passes | None
    """How a step's prediction is made of several passes; None for one pass."""

    notes: list[str]
    """What people should know of what was attached last."""

    def read(self, name: str, path: Path) -> Expert:
        """The expert in a LoRA file."""
        ...

    def open(self, card: Entry[Any], read: Callable[[Path], File]) -> File:
        """The file of a card, for this model; ComposerError for another model's."""
        ...

    def place(self, card: MixLoraCard | None) -> None:
        """Let this MixLoRA stand in the model, and no other."""
        ...

    def attach(self, granularity: Granularity, experts: Mapping[str, Expert]) -> Mixture | None:
        """Attach these experts, and no others; None without any."""
        ...

    def observe(self, experts: Mapping[str, Expert]) -> Mapping[str, Sequence[Tensor]]:
        """By site of the U-Net the inputs that each of these sees when it paints alone, in their
        order, (samples, in · kh · kw); ComposerError for one without trigger words."""
        ...

    def derive(self, key: Hashable, make: Callable[[], File]) -> File:
        """What was made for an equal key the last time, or what is made now."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe with the LoRAs and files that its names mean.

    rows: by the expert's name, which under gates is that of the gate file, in the order in which
        they are recorded. paths: of their LoRA files. pins: by the same names.
    tools: LoRAs for few steps by the library's names, which are added below whatever the recipe
        fuses; tool_paths: of their files.
    source: the file that the recipe itself needs, and its hash.
    embeddings: files whose names stand in the prompts.
    """

    recipe: Recipe
    rows: Mapping[str, LoraRow]
    paths: Mapping[str, Path]
    pins: tuple[Pin, ...] = ()
    tools: Mapping[str, LoraRow] = field(default_factory=dict[str, LoraRow])
    tool_paths: Mapping[str, Path] = field(default_factory=dict[str, Path])
    source: Entry[Any] | None = None
    hash: str = ""
    embeddings: tuple[Entry[Any], ...] = ()

    @property
    def by_unit(self) -> bool:
        """Whether weights differ between units, so that the mixture needs several."""
        return bool(self.pins) or any(row.depth != ALWAYS for row in self.rows.values())

    @property
    def spans(self) -> dict[str, Any]:
        """The limits and pins, for the picture's record."""
        return spans_to_record(self.rows, self.pins)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A recipe whose file fits the model and the LoRAs at hand, or weights for a sum of some.

    loras: by the names that they have now: just those that it fuses, or those in whose place it
        stands if `instead`.
    titles: for people, of what it fuses or has learned.
    description: what it does, for people.
    weights: of a sum, by the same names; found_by: how they were found.
    """

    recipe: Recipe
    loras: tuple[str, ...]
    titles: tuple[str, ...]
    description: str
    instead: bool = False
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    found_by: str = ""

    @property
    def title(self) -> str:
        """For people: "Learned gates: Zibo + Neon"."""
        return f"{self.recipe.title}: {' + '.join(self.titles)}"

    def fits(self, names: Iterable[str]) -> bool:
        """Whether it is for LoRAs so chosen."""
        chosen = set(names)
        return bool(chosen & set(self.loras)) if self.instead else chosen == set(self.loras)

    def rows(self, names: Iterable[str]) -> tuple[LoraRow, ...]:
        """The rows with it, of LoRAs so chosen."""
        return tuple(
            LoraRow(name=name, weight=self.weights.get(name, 1.0))
            for name in names
            if not (self.instead and name in self.loras)
        )


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """One way of fusing LoRAs; its parameters are its other fields.

    file: the name of the gate file or MixLoRA that it needs; empty where it needs none.
    kind: for the command line and files. paper: where it is from.
    title, description, brief: for people, brief in a few words.
    source: in which library its file is, and under which key a record names it; empty for none.
    called: the key under which other programs' texts name that file.
    missing: how messages name it, and what is done without it.
    none: what to say where no such file fits the LoRAs; page: where one is made.
    gated: gates decide, all of whose LoRAs are attached, with units of their own.
    by_blocks: each LoRA's weight may be another in each block of the U-Net.
    by_places: each LoRA may have a place in the picture.
    numbers: those of a page's row that count: the weights of a sum, or the strength under gates.
    exactly: for how many LoRAs it is; 0 for any number.
    passes_needed: of the U-Net for each step, of k LoRAs, for people.
    usual: whether a comparison holds it unless something else is asked for.
    """

    noun: ClassVar[str] = "parameters of the fusion"

    kind: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    brief: ClassVar[str]
    paper: ClassVar[str] = MOLE
    source: ClassVar[Literal["", "gates", "mixlora"]] = ""
    called: ClassVar[str] = ""
    missing: ClassVar[tuple[str, str, str, str]] = ("", "", "", "")
    none: ClassVar[str] = ""
    page: ClassVar[str] = ""
    gated: ClassVar[bool] = False
    by_blocks: ClassVar[bool] = False
    by_places: ClassVar[bool] = False
    numbers: ClassVar[tuple[str, ...]] = ("weight", "text_encoder")
    exactly: ClassVar[int] = 0
    passes_needed: ClassVar[str] = "1"
    usual: ClassVar[bool] = True

    file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.file) != bool(self.source):
            what = "a file's name" if self.source else "no file"
            raise ComposerError(f"The fusion {self.kind!r} needs {what}, not {self.file!r}.")

    @property
    def key(self) -> str:
        """One line that `read_recipe` reads: "weighted", "gates:pair", "ties:density=0.3"."""
        if self.source:
            return f"{self.kind}:{self.file}"
        usual = type(self)().parameters
        changed = [f"{n}={v}" for n, v in self.parameters.items() if v != usual[n]]
        return f"{self.kind}:{','.join(changed)}" if changed else self.kind

    @property
    def label(self) -> str:
        """For people: "Weighted sum", "Learned gates: pair", "TIES: density=0.3"."""
        _, colon, rest = self.key.partition(":")
        return f"{self.title}: {rest}" if colon else self.title

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters by name, without the file."""
        return {name: value for name, value in self.to_json().items() if name != "file"}

    @classmethod
    def read_parameters(cls, text: str) -> Recipe:
        """Of a line, "density=0.3,rank=8"; what is left out has its default.

        Raises:
            ComposerError: it is not written so, or a parameter is unknown or out of its range.
        """
        known = {name: kind for name, (kind, _) in fields_of(cls).items() if name != "file"}
        values: dict[str, Any] = {}
        for part in filter(str.strip, text.split(",")):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in known:
                names = ", ".join(known) or "none"
                raise ComposerError(
                    f"The fusion {cls.kind!r} has no parameter {name[:40]!r}; it has {names}. "
                    f"Write {cls.kind}:NAME=VALUE,NAME=VALUE."
                )
            try:
                values[name] = known[name](value) if known[name] in (int, float) else value
            except (ValueError, OverflowError):
                raise ComposerError(
                    f"{name} of the fusion {cls.kind!r} is {value[:40]!r}: give a number."
                ) from None
        return cls(**values)

    def check_count(self, loras: Sequence[str]) -> None:
        """Refuse another number of LoRAs than it is for.

        Raises:
            ComposerError: how many are chosen, and how many it takes.
        """
        if self.exactly and len(loras) not in (0, self.exactly):
            raise ComposerError(
                f"{self.title} is for {self.exactly} LoRAs, and {len(loras)} are chosen: "
                f"{', '.join(loras)}. Choose {self.exactly}, or another fusion."
            )

    @classmethod
    def evenly(cls, count: int) -> tuple[str, str] | None:
        """Its title and detail, for people, with weights of 1 for so many LoRAs; None where it
        needs a file, or comes to a sum then."""
        return None

    def offer(self, card: Entry[Any], loras: Library[LoraInfo]) -> Offer:
        """This recipe with its file, which fits the model, for the LoRAs of the last scan; files
        that were not read before are not read for it.

        Raises:
            ComposerError: a LoRA that it needs is missing.
        """
        raise NotImplementedError

    def plan(self, rows: Iterable[LoraRow], pins: Iterable[Pin], libraries: Libraries) -> Plan:
        """Find the files; nothing is read but headers.

        rows, pins: by the names of the library of LoRAs.

        Raises:
            ComposerError: a file is missing or cannot be used, or a pin is for a LoRA that was not
                chosen.
        """
        raise NotImplementedError

    def attach(self, plan: Plan, bench: Bench) -> dict[str, Expert]:
        """Attach what the plan names and set its weights; the experts that are active, in order.

        Raises:
            ComposerError: a file is for another model or damaged; a pin is for no unit.
        """
        raise NotImplementedError

    def to_record(self, plan: Plan) -> dict[str, Any]:
        """The fusion of the picture's record."""
        return {"name": self.kind, **self.parameters, **plan.spans}

    def recalled(
        self,
        fusion: Mapping[str, Any],
        rows: Sequence[LoraRow],
        pins: Sequence[Pin],
        names: Mapping[str, str],
        libraries: Libraries,
    ) -> tuple[tuple[LoraRow, ...], tuple[Pin, ...]]:
        """The rows and pins of a picture that was made with this recipe.

        fusion: `to_record` of it, by anybody. rows: as its LoRAs are recorded, by their names now.
        names: by the recorded name of a LoRA, its name now.
        """
        return tuple(rows), tuple(pin.renamed(names) for pin in pins)

    def names(self, plan: Plan) -> tuple[str, ...]:
        """What is active in the plan's pictures, by the libraries' names, sorted."""
        return tuple(sorted(self.loras(plan)))

    def loras(self, plan: Plan) -> tuple[str, ...]:
        """The LoRAs that are active, by the library's names, in the order of their triggers."""
        return tuple(sorted(plan.rows[name].name for name in self.active(plan)))

    def number(self, row: LoraRow) -> str:
        """A row's weight, for people."""
        return f"{row.weight:g}"

    def off(self, fusion: Mapping[str, Any]) -> tuple[str, ...]:
        """The LoRAs that were attached and switched off, by a picture's record."""
        return ()

    def active(self, plan: Plan) -> tuple[str, ...]:
        """The experts of a plan that are active, in the order of its rows."""
        return tuple(plan.rows)

    def triggers(self, libraries: Libraries) -> tuple[str, ...]:
        """The words that call what the recipe's own file has learned.

        Raises:
            ComposerError: the file is missing or cannot be used.
        """
        return ()

    def notes(self, plan: Plan, experts: Iterable[Expert], prompt: str) -> Iterator[str]:
        """What people should know before the pictures of a plan come."""
        yield from ()

    def outcome(self, rows: Sequence[LoraRow]) -> object:
        """Equal for two recipes and their rows (sorted by name) that give the same pictures."""
        return self.key

    def chosen_again(
        self, rows: Iterable[LoraRow], recipe: Recipe, usual: Mapping[str, float] = NONE
    ) -> tuple[LoraRow, ...]:
        """The rows of this recipe for another one: a sum's weights are no strengths of gates.

        usual: by LoRA, the weight in a sum that its maker prefers.
        """
        if self.numbers == recipe.numbers:
            return tuple(rows)
        known = usual if "weight" in recipe.numbers else NONE
        return tuple(
            replace(row, weight=known.get(row.name, 1.0), text_encoder=None) for row in rows
        )

    def pins_for(self, recipe: Recipe, pins: tuple[Pin, ...]) -> tuple[Pin, ...]:
        """The pins of this recipe for another one: the units of gates are called otherwise."""
        return () if self.gated and not recipe.gated else pins


def own_file(recipe: Recipe, libraries: Libraries) -> dict[str, Any]:
    """The fields of a plan for the recipe's own file."""
    library = libraries.of(recipe)
    card = library.find(recipe.file, rescan=False)
    return {"source": card, "hash": library.hash(card)}


def switch(mixture: Mixture, plan: Plan) -> None:
    """Which experts are active, in a sampling that has not begun, where, when and how strongly."""
    active = plan.recipe.active(plan)
    mixture.at_rest()
    mixture.follow(None)
    mixture.strengthen(strengths(plan))
    for name, unit in mixture.units.items():
        if unit.pinned is not None:
            mixture.pin(name, None)
    for name in mixture.names:
        mixture.toggle(name, name in active)
    limit(mixture, plan.rows, plan.pins)


def strengths(plan: Plan) -> dict[str, float]:
    """Of gates' experts that are to be stronger or weaker than they give: how many times."""
    if not plan.recipe.gated:
        return {}
    return {name: row.weight for name, row in plan.rows.items() if row.weight not in (0, 1)}
