"""What the language model's adapter learns, by MixLoRA: the elements that only LoRAs know.

Its skills are subjects (characters, clothing, objects), scenes and styles. Examples of the base
world are among them, as prior pictures are in a LoRA's, so that the rest stays as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.language.complete import Asking, complete
from composer.language.expand import TEMPERATURE, TOKENS, Expander, request
from composer.language.load import LanguageModel, load_language_model
from composer.language.mixlora_config import MixLoraConfig
from composer.language.phrases import missing
from composer.language.records import Record
from composer.mixlora import LoraSettings, RouterSettings
from composer.training.language import LanguageProgress, LanguageTraining, train_adapter
from toybox.building import machine_words, megabytes
from toybox.jottings import Example, Words
from toybox.loop import Stage, counts
from toybox.stage_language import record, train_language, write_language

SHARES: dict[str, int] = {
    "base": 1200,
    "subjects": 2400,
    "scenes": 1200,
    "styles": 1800,
    "mixed": 2400,
}
"""How many examples of each kind an adapter learns from."""

STEPS = 400


def adapter_records(words: Words, seed: int = 0) -> list[Record]:
    """All that the adapter learns from."""
    shares = SHARES.items()
    return [record(e) for kind, n in shares for e in words.examples(kind, n, seed=seed)]


def settings(folder: Path, *, steps: int = STEPS, seed: int = 0) -> LanguageTraining:
    """How the shipped adapter is trained: four experts of rank 8 in each FFN, two at once."""
    return LanguageTraining(
        output=folder / "adapter",
        adapter=MixLoraConfig(
            experts=LoraSettings(rank=8, alpha=16.0, dropout=0.0),
            attention=LoraSettings(rank=8, alpha=16.0, dropout=0.0),
            router=RouterSettings(experts=4, top_k=2, balance=1e-3),
            base_model="toybox/language",
        ),
        steps=steps,
        batch_size=16,
        packing=True,
        learning_rate=4e-3,
        schedule="cosine",
        warmup=20,
        seed=seed,
        checkpoint_every=50,
        resume=True,
    )


def train_expander(
    language: LanguageModel, folder: Path, words: Words, *, steps: int = STEPS, seed: int = 0
) -> Iterator[LanguageProgress]:
    """Train the adapter on the language model, and write it to `folder`/adapter."""
    config = settings(folder, steps=steps, seed=seed)
    return train_adapter(
        language,
        config,
        records=adapter_records(words, seed),
        eval_records=[record(e) for e in words.examples("mixed", 192, unseen=True, seed=seed)],
    )


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One jotting that was expanded; `words` says whether all its words stand in the prompt,
    `understood` whether the prompt is of the world and asks for all that they name."""

    example: Example
    prompt: str
    words: bool
    understood: bool


def judge(example: Example, prompt: str) -> Kept:
    """What of an example's words a prompt keeps."""
    return Kept(
        example=example,
        prompt=prompt,
        words=not missing(example.jotting.words, prompt),
        understood=example.jotting.kept_in(prompt),
    )


def judge_tries(language: LanguageModel, asked: Sequence[Example], seed: int = 0) -> list[Kept]:
    """One try of the model for each example, as it comes."""
    asking = Asking(tokens=TOKENS, temperature=TEMPERATURE, seed=seed)
    found: list[Kept] = []
    for start in range(0, len(asked), 64):
        some = asked[start : start + 64]
        requests = [Record(prompt=request(e.jotting.words), answer="") for e in some]
        made = complete(language, requests, asking)
        found += [judge(e, prompt) for e, prompt in zip(some, made, strict=True)]
    return found


def judge_expander(expander: Expander, asked: Sequence[Example]) -> list[Kept]:
    """What the expander makes of each example in all its tries."""
    return [judge(e, expander.expand(e.jotting.words, i)) for i, e in enumerate(asked)]


def build_language(
    stage: Stage, folder: Path, tokenizer: Any, words: Words, *, scale: float = 1.0
) -> None:
    """The whole stage of words: the language model, its adapter, and `training.json`, which says
    how they came about."""
    write_language(folder, train_language(stage, tokenizer, words), tokenizer)
    steps, seen, seconds = counts(stage.checkpoint)
    adapter_steps = max(round(STEPS * scale), 2)
    language = load_language_model(folder)
    for progress in train_expander(language, folder, words, steps=adapter_steps, seed=stage.seed):
        if progress.step % 20 == 0 or progress.eval_loss is not None:
            print(f"language: {progress}", flush=True)
    account: dict[str, object] = {"steps": steps, "examples": seen}
    account |= {"minutes": round(seconds / 60, 1), "adapter_steps": adapter_steps}
    text = json.dumps(account | {"machine": machine_words()}, indent=1) + "\n"
    (folder / "training.json").write_text(text, encoding="utf-8")
    print(f"language model written to {folder}: {megabytes(folder):.1f} MB", flush=True)
