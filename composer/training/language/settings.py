"""What one training of a language adapter is asked to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from composer.errors import ComposerError
from composer.language.gates_config import LoraGatesConfig
from composer.language.mixlora_config import MixLoraConfig
from composer.language.plain_lora import PlainLoraConfig
from composer.language.template import Template
from composer.settings import setting
from composer.training.progress import Progress
from composer.training.settings import Training

Schedule = Literal["constant", "cosine", "linear"]
AdapterConfig = MixLoraConfig | PlainLoraConfig | LoraGatesConfig

_METHODS: dict[str, type[AdapterConfig]] = {
    "mixlora": MixLoraConfig,
    "lora": PlainLoraConfig,
    "gates": LoraGatesConfig,
}


@dataclass(frozen=True, kw_only=True)
class LanguageTraining(Training):
    """Every setting of one adapter's training; serialises to JSON and is kept with the adapter.

    Learning rate, schedule, decay and epochs are MixLoRA's (table 3). Settings that cannot work
    raise ComposerError.
    """

    output: Path = setting(help="The folder to write the adapter to; of gates, a file.")
    data: Path | None = setting(
        None, help="A .jsonl file, a folder of them, or a folder of the datasets library."
    )
    eval_data: Path | None = setting(None, help="Records to measure on.")
    eval_share: float = setting(
        0.0,
        at_least=0,
        below=1,
        hint="0.1, say",
        help="Share of the data kept for that, where there is no eval_data.",
    )

    # MixLoRA, a plain LoRA, or gates over LoRAs that were trained before
    adapter: AdapterConfig = field(default_factory=MixLoraConfig)

    template: Template = setting("auto", help="How requests are written.")
    window: int | None = setting(
        None, help="Most tokens of a row; 512, or what the model reads, if that is less."
    )
    packing: bool = setting(
        False, help="Fill rows with several records, which do not see each other."
    )

    steps: int | None = setting(None, above=0, help="Optimiser steps, not epochs.")
    epochs: float = setting(2.0, above=0, help="Times through the data.")
    batch_size: int = setting(16, at_least=1, help="Rows at once, for each process.")
    learning_rate: float = setting(2e-4, above=0, help="Highest learning rate.")
    lora_plus: float = setting(
        1.0, above=0, help="B learns so many times as fast as A (LoRA+, Hayou et al. 2024)."
    )
    schedule: Schedule = setting("constant", help="How the learning rate goes on.")
    warmup: int = setting(0, at_least=0, help="Steps until the highest learning rate.")
    weight_decay: float = setting(1e-2, at_least=0, help="AdamW's.")
    clip_norm: float | None = setting(1.0, above=0)
    compile: bool = setting(
        False, help="By torch.compile, which takes a minute first; saves little on a CPU."
    )

    eval_every: int = setting(
        0, at_least=0, help="Steps between measurements; 0 measures at the end alone."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """As plain values; `adapter` says its method beside its own."""
        values = super().to_json()
        method = next(name for name, kind in _METHODS.items() if isinstance(self.adapter, kind))
        return {**values, "adapter": {"method": method, **values["adapter"]}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LanguageTraining:
        """What `to_json` gave; ComposerError for a setting that is not known or is missing."""
        read = dict(values)
        if isinstance(read.get("adapter"), dict):
            read["adapter"] = _read_adapter(cast("dict[str, Any]", read["adapter"]))
        return super().from_json(read)


def _read_adapter(values: Mapping[str, Any]) -> AdapterConfig:
    own = dict(values)
    method = own.pop("method", "mixlora")
    if method not in _METHODS:
        raise ComposerError(f"Unknown method {method!r} of an adapter: update Composer.")
    return _METHODS[method].from_json(own)


@dataclass(frozen=True, kw_only=True)
class LanguageProgress(Progress):
    """One report of one adapter, the one called `name`. `loss` is the mean cross-entropy of an
    answer's token in nats.

    router_loss: the balance loss with its coefficient, as it was added.
    load: what part of all choices went to each expert, over all layers; sums to 1.
    eval_loss: on the data kept for it, in the steps in which it was measured.
    cut: requests that lost their beginning, for the window was too short.
    """

    name: str
    router_loss: float | None = None
    load: tuple[float, ...] = ()
    eval_loss: float | None = None
    cut: int = 0
