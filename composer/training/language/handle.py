"""What is under training: MixLoRA's adapters, a plain LoRA or gates, behind one handle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from composer.errors import ComposerError
from composer.language.batches import Batch
from composer.language.checkpoint import save_adapter
from composer.language.gates_config import LoraGatesConfig
from composer.language.load import LanguageModel
from composer.language.mixlora_config import MixLoraConfig
from composer.language.parts import has_encoder
from composer.language.plain_lora import PlainLora, PlainLoraConfig
from composer.mixlora import Masks, MixLora, attach_mixlora
from composer.training.language.gated import LoraGates
from composer.training.language.settings import LanguageTraining


class Adapters(Protocol):
    """What a trainer needs of adapters that are attached to a model; see `MixLora`."""

    @property
    def names(self) -> tuple[str, ...]: ...
    def assign(self, rows: Sequence[str | None] | str | None) -> None: ...
    def record_routing(self, masks: Masks | None = None) -> AbstractContextManager[Any]: ...
    def router_loss(self, tape: Any, name: str) -> Tensor: ...
    def loads(self, tape: Any, name: str) -> dict[str, Tensor]: ...
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
    alone = [c for c in configs if isinstance(c.adapter, PlainLoraConfig | LoraGatesConfig)]
    if alone and len(configs) > 1:
        what = "has gates" if alone[0].is_gates else "is a plain LoRA"
        raise ComposerError(
            f"{alone[0].name} {what}, and those are trained one at a time: train it"
            " alone, or as MixLoRA."
        )
    first = configs[0]
    if isinstance(first.adapter, PlainLoraConfig):
        return PlainLora(language.model, names[0], first.adapter, first.seed)
    if isinstance(first.adapter, LoraGatesConfig):
        return LoraGates(language, names[0], first.adapter, first.seed)
    if has_encoder(language.model):
        raise ComposerError(
            f"{language.name} reads requests by an encoder, and MixLoRA is for causal models:"
            " choose the method lora, or a causal model."
        )
    wanted = {
        config.name: config.adapter
        for config in configs
        if isinstance(config.adapter, MixLoraConfig)
    }
    if len(configs) == 1:
        return attach_mixlora(language.model, wanted, seed=configs[0].seed)
    fresh: dict[str, Mapping[str, Tensor]] = {}
    for config in configs:
        with attach_mixlora(
            language.model, {config.name: wanted[config.name]}, seed=config.seed
        ) as single:
            fresh[config.name] = single.state_dict(config.name)
    together = attach_mixlora(language.model, wanted, seed=configs[0].seed)
    for name, tensors in fresh.items():
        together.load_state_dict(name, tensors)
    return together


def show_batch(adapters: Adapters, batch: Batch) -> None:
    """Give gates, which look at more than one token at a time, what the model runs on next."""
    if isinstance(adapters, LoraGates):
        adapters.show(batch)


def save_trained(adapters: Adapters, name: str, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write one adapter to its folder, or gates to their file; each file whole or not at all."""
    if isinstance(adapters, PlainLora | LoraGates):
        adapters.save(folder, metadata)
    elif isinstance(adapters, MixLora):
        save_adapter(adapters, name, folder, metadata=metadata)


def _twice(names: Sequence[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
