"""What one training of a language adapter is asked to do."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from composer.errors import ComposerError
from composer.language.gates_config import LoraGatesConfig
from composer.language.mixlora_config import MixLoraConfig
from composer.language.plain_lora import PlainLoraConfig
from composer.language.template import TEMPLATES, Template
from composer.mixture import GateSettings
from composer.mixture.lora_settings import LoraSettings
from composer.mixture.routers import RouterSettings

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "cosine", "linear"]
AdapterConfig = MixLoraConfig | PlainLoraConfig | LoraGatesConfig

_METHODS: dict[str, type[AdapterConfig]] = {
    "mixlora": MixLoraConfig,
    "lora": PlainLoraConfig,
    "gates": LoraGatesConfig,
}

_CHOICES = {
    "precision": get_args(Precision),
    "schedule": get_args(Schedule),
    "template": TEMPLATES,
}
_AT_LEAST: dict[str, float] = {
    "batch_size": 1,
    "accumulation": 1,
    "warmup": 0,
    "weight_decay": 0,
    "eval_every": 0,
    "checkpoint_every": 0,
    "seed": 0,
}
_ABOVE_ZERO = ("steps", "epochs", "learning_rate", "lora_plus", "clip_norm")
_PATHS = ("output", "data", "eval_data")


@dataclass(frozen=True, kw_only=True)
class LanguageTraining:
    """Every setting of one adapter's training; serialises to JSON and is kept with the adapter.

    Learning rate, schedule, decay and epochs are MixLoRA's (table 3). Settings that cannot work
    raise ComposerError.
    """

    output: Path
    """The folder to write, for gates the .safetensors file; its name is the adapter's."""
    data: Path | None = None
    """A .jsonl file, a folder of them, or a folder of the datasets library."""
    eval_data: Path | None = None
    eval_share: float = 0.0
    """The share of `data` kept from training to measure on, where there is no `eval_data`."""

    adapter: AdapterConfig = field(default_factory=MixLoraConfig)
    """MixLoRA, a plain LoRA, or gates over LoRAs that were trained before."""

    template: Template = "auto"
    window: int | None = None
    """The most tokens of a row; 512 or what the model reads, if that is less."""
    packing: bool = False
    """Rows are filled with several samples, which do not see each other."""

    steps: int | None = None
    """Optimiser steps, in place of `epochs`."""
    epochs: float = 2.0
    batch_size: int = 16
    """Rows at once, for each process."""
    accumulation: int = 1
    learning_rate: float = 2e-4
    lora_plus: float = 1.0
    """B learns so many times as fast as A (LoRA+, Hayou et al. 2024)."""
    schedule: Schedule = "constant"
    warmup: int = 0
    weight_decay: float = 1e-2
    clip_norm: float | None = 1.0
    seed: int = 0
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    """Steps run under torch.compile, which takes a minute first; on a CPU it saves little."""

    eval_every: int = 0
    """Steps between measurements; 0 measures at the end alone."""
    checkpoint_every: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        if self.is_gates and self.output.suffix != ".safetensors":
            raise ComposerError(
                f"output {self.output.name!r} is no gate file: give a name that ends in"
                " .safetensors."
            )
        if self.is_gates and self.packing:
            raise ComposerError("Gates look at each request by itself: train without packing.")
        if not self.is_gates and self.output.suffix in (".safetensors", ".bin", ".json"):
            raise ComposerError(
                f"output {self.output.name!r} is a file's name: an adapter is a folder, give its"
                " name."
            )
        if self.compile and self.gradient_checkpointing:
            raise ComposerError(
                "compile saves time and gradient_checkpointing memory, and they are not used "
                "together: choose one."
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ComposerError(
                    f"{name} {getattr(self, name)!r} is unknown: choose one of"
                    f" {', '.join(choices)}."
                )
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ComposerError(f"{name} is {value}: give {least:g} or more.")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ComposerError(f"{name} is {value}: give a number above 0.")
        if not 0 <= self.eval_share < 1:
            raise ComposerError(
                f"eval_share is {self.eval_share}: give a share from 0, below 1, such as 0.1."
            )

    @property
    def name(self) -> str:
        """The adapter's name."""
        return re.sub(r"[^\w-]", "_", self.output.stem if self.is_gates else self.output.name)

    @property
    def is_gates(self) -> bool:
        """Whether gates are trained, and a file is written and no folder."""
        return isinstance(self.adapter, LoraGatesConfig)

    @property
    def checkpoint(self) -> Path:
        """Where the state to resume from is kept, beside the folder."""
        return self.output.with_name(f"{self.output.name}.resume")

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        values = dataclasses.asdict(self)
        method = next(name for name, kind in _METHODS.items() if isinstance(self.adapter, kind))
        values["adapter"] = {"method": method, **values["adapter"]}
        return {
            key: str(value) if isinstance(value, Path) else value for key, value in values.items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LanguageTraining:
        """The config that `to_json` wrote; raises ComposerError for a setting it does not know."""
        known = {entry.name for entry in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ComposerError(
                f"Unknown training settings {', '.join(unknown)}: take them out, or update"
                " Composer."
            )
        read = dict(values)
        for name in _PATHS:
            if read.get(name) is not None:
                read[name] = Path(read[name])
        if isinstance(read.get("adapter"), dict):
            read["adapter"] = adapter_from_json(read["adapter"])
        return cls(**read)


def adapter_from_json(values: Mapping[str, Any]) -> AdapterConfig:
    """The adapter of a config's JSON."""
    told = dict(values)
    method = told.pop("method", "mixlora")
    for name in ("experts", "attention", "lora"):
        if isinstance(told.get(name), dict):
            told[name] = LoraSettings.from_json(cast("dict[str, Any]", told[name]))
    if isinstance(told.get("router"), dict):
        told["router"] = RouterSettings.from_json(cast("dict[str, Any]", told["router"]))
    if isinstance(told.get("gate"), dict):
        told["gate"] = GateSettings.from_json(cast("dict[str, Any]", told["gate"]))
    for name in ("target_modules", "loras"):
        if told.get(name) is not None:
            told[name] = tuple(told[name])
    if method not in _METHODS:
        raise ComposerError(f"Unknown method {method!r} of an adapter: update Composer.")
    try:
        return _METHODS[method](**told)
    except TypeError as error:
        raise ComposerError(
            f"Unknown settings of an adapter ({error}): update Composer."
        ) from error
