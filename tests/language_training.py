"""What the tests of training language adapters share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tiny_language import tiny_llama, tiny_tokenizer
from torch import Tensor

from composer.language.load import LanguageModel
from composer.language.mixlora_config import MixLoraConfig
from composer.language.plain_lora import PlainLoraConfig
from composer.language.records import Record
from composer.mixlora import LoraSettings, RouterSettings
from composer.training.language import LanguageProgress, LanguageTraining, train_adapter

STEPS = 6


def language() -> LanguageModel:
    """The same tiny Llama each time."""
    model = tiny_llama()
    model.requires_grad_(False)
    return LanguageModel(model=model, tokenizer=tiny_tokenizer(), name="tiny")


def records(count: int = 12, mark: str = "") -> list[Record]:
    """Words to be written backwards, of several lengths."""
    words = [f"{mark}{'abcdefgh'[: 2 + i % 6]}{i % 10}" for i in range(count)]
    return [
        Record(prompt=f"{word}>", answer=word[::-1], origin=f"record {i}")
        for i, word in enumerate(words)
    ]


def mixlora(*, dropout: float = 0.0, experts: int = 4, rank: int = 2) -> MixLoraConfig:
    lora = LoraSettings(rank=rank, alpha=2.0 * rank, dropout=dropout)
    router = RouterSettings(experts=experts, top_k=2, balance=0.01)
    return MixLoraConfig(experts=lora, attention=lora, router=router)


def plain(*, dropout: float = 0.0) -> PlainLoraConfig:
    return PlainLoraConfig(lora=LoraSettings(rank=4, alpha=8.0, dropout=dropout))


def training(folder: Path, name: str = "reverse", **settings: Any) -> LanguageTraining:
    values: dict[str, Any] = {
        "output": folder / name,
        "adapter": mixlora(),
        "steps": STEPS,
        "batch_size": 3,
        "learning_rate": 1e-3,
    }
    return LanguageTraining(**{**values, **settings})


def losses(reports: list[LanguageProgress], name: str = "reverse") -> list[float | None]:
    return [r.loss for r in reports if r.stage == "train" and r.name == name]


def run(config: LanguageTraining, **more: Any) -> list[LanguageProgress]:
    """All reports of a training on the tiny model."""
    return list(train_adapter(language(), config, **{"records": records(), **more}))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")
