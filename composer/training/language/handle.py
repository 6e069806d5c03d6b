"""The adapters under training: MixLoRA's or a plain LoRA, behind one handle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from composer.errors import ComposerError
from composer.language.checkpoint import save_adapter
from composer.language.load import LanguageModel
from composer.language.mixlora_config import MixLoraConfig
from composer.language.plain_lora import PlainLora, PlainLoraConfig
from composer.mixture.mixlora import MixLora, attach_mixlora
from composer.mixture.rows import Masks, Tape
from composer.training.language.config import LanguageTraining


class Adapters(Protocol):
    """What a trainer needs of adapters that are attached to a model; see `MixLora`."""

    @property
    def names(self) -> tuple[str, ...]: ...
    def assign(self, rows: Sequence[str | None] | str | None) -> None: ...
    def listen(self, masks: Masks | None = None) -> AbstractContextManager[Tape]: ...
    def router_loss(self, tape: Tape, name: str) -> Tensor: ...
    def loads(self, tape: Tape, name: str) -> dict[str, Tensor]: ...
    def named_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]: ...
    def parameter_groups(
        self, name: str, *, lr: float, weight_decay: float = 0.01, lora_plus: float = 1.0
    ) -> list[dict[str, Any]]: ...
    def detach(self) -> None: ...


def attach_adapters(language: LanguageModel, configs: Sequence[LanguageTraining]) -> Adapters:
    """Attach a fresh adapter for each training, with the first weights it would have alone.

    Raises ComposerError for names given twice, several plain LoRAs, or modules that are not there;
    the model is then as before.
    """
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise ComposerError(
            f"Several trainings are to write an adapter called {_twice(names)}: give each output"
            " a name of its own."
        )
    plain = [config for config in configs if isinstance(config.adapter, PlainLoraConfig)]
    if plain and len(configs) > 1:
        raise ComposerError(
            f"{plain[0].name} is a plain LoRA, and those are trained one at a time: train it"
            " alone, or as MixLoRA."
        )
    if plain and isinstance(plain[0].adapter, PlainLoraConfig):
        return PlainLora(language.model, names[0], plain[0].adapter, plain[0].seed)
    wanted = {
        config.name: config.adapter
        for config in configs
        if isinstance(config.adapter, MixLoraConfig)
    }
    if len(configs) == 1:
        return attach_mixlora(language.model, wanted, seed=configs[0].seed)
    first: dict[str, Mapping[str, Tensor]] = {}
    for config in configs:
        with attach_mixlora(
            language.model, {config.name: wanted[config.name]}, seed=config.seed
        ) as alone:
            first[config.name] = alone.state_dict(config.name)
    together = attach_mixlora(language.model, wanted, seed=configs[0].seed)
    for name, tensors in first.items():
        together.load_state_dict(name, tensors)
    return together


def save_trained(adapters: Adapters, name: str, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write one adapter to its folder, each file whole or not at all."""
    if isinstance(adapters, PlainLora):
        adapters.save(folder, metadata)
    elif isinstance(adapters, MixLora):
        save_adapter(adapters, name, folder, metadata=metadata)


def _twice(names: Sequence[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
