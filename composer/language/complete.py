"""Text from a language model, with an adapter on it, with gates over several, or bare."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.experts.hashes import tensor_hash_of
from composer.fusions.gate_file import read_gates
from composer.language.checkpoint import attach_checkpoints
from composer.language.gated import answering, attach_loras, sight_of
from composer.language.load import LanguageModel
from composer.language.parts import WEIGHTS_FILE, find_adapters, read_adapters, weights_hash
from composer.language.records import Record
from composer.language.samples import encode_request
from composer.language.template import Template, worded
from composer.mixture import Mixture
from composer.outside import parse_object
from composer.settings import Settings, setting

PEFT_TYPES = ("LORA",)


@dataclass(frozen=True, kw_only=True)
class Asking(Settings):
    """How an answer is made."""

    noun: ClassVar[str] = "settings of an answer"

    tokens: int = setting(128, at_least=1, help="Most tokens of an answer.")
    temperature: float = setting(0.0, at_least=0, help="0 for the likeliest words.")
    top_p: float = setting(1.0, above=0, at_most=1, help="Only the likeliest words of this share.")
    seed: int = setting(0, help="Of what is drawn above temperature 0.")
    template: Template = setting("auto", help="How requests are written.")


@contextmanager
def with_adapter(language: LanguageModel, folder: Path | None) -> Generator[None, None, None]:
    """The adapter of a folder on the model, as `attach_adapter` puts it there; gone again after."""
    if folder is None:
        yield
        return
    detach = attach_adapter(language, folder)
    try:
        yield
    finally:
        detach()


def attach_adapter(language: LanguageModel, folder: Path) -> Callable[[], None]:
    """Put the adapter of a folder on the model, MixLoRA's or a plain LoRA's; returns what takes it
    off again.

    Raises ComposerError for a folder that holds neither, or that does not fit the model.
    """
    if _is_plain(folder):
        return _attach_plain(language, folder)
    return attach_checkpoints(language.model, {"adapter": folder}).detach


@contextmanager
def with_gates(
    language: LanguageModel, file: Path, folders: Sequence[Path]
) -> Generator[Mixture, None, None]:
    """Trained gates and their LoRAs on the model; gone again after.

    folders: where the LoRAs lie, each a LoRA's folder or one that holds several; they are known by
        their tensors, whatever they are called now.

    Raises:
        ComposerError: no gate file, gates for another model, or a LoRA that is not there.
    """
    gates = read_gates(file)
    gates.check_model(language.name, weights_hash(language.model))
    hashes = {
        folder: tensor_hash_of(folder / WEIGHTS_FILE) for folder in find_adapters(folders).values()
    }
    by_hash = {tensor: folder for folder, tensor in hashes.items()}
    named = {folder.name: tensor for folder, tensor in hashes.items()}
    same = {e.name: e.tensor_hash for e in gates.experts if e.tensor_hash in by_hash}
    gates.check_experts(named | same)
    experts = read_adapters(
        {name: by_hash[tensor] for name, tensor in same.items()}, language.model, language.name
    )
    with attach_loras(language.model, experts, granularity=gates.granularity) as mixture:
        gates.fit(mixture)
        yield mixture


@torch.no_grad()
def complete(
    language: LanguageModel,
    requests: list[Record],
    asking: Asking | None = None,
    *,
    gates: Mixture | None = None,
) -> list[str]:
    """An answer to each request, as records without their answer, in one batch.

    gates: learned gates that are attached to the model; they are given the tokens they may look at.

    Random numbers follow from the seed alone, whatever other threads draw meanwhile.
    """
    asking = asking or Asking()
    tokenizer, device = language.tokenizer, language.device
    encoder = language.start is not None
    rows: list[list[int]] = []
    for record in requests:
        asked, _, special = worded(record, tokenizer, asking.template)
        asked_ids = encode_request(asked, tokenizer, special=special, encoder=encoder)
        rows.append(asked_ids or [language.pad])
    length = max(len(row) for row in rows)
    limit = int(getattr(cast(Any, language.model).config, "max_position_embeddings", 0) or 1 << 30)
    if length >= limit:
        raise ComposerError(
            f"The request has {length} tokens, and this model reads {limit}: give a shorter one."
        )
    # padded on the left, so that all go on from their last token
    ids = torch.tensor([[language.pad] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    sight = sight_of(mask.to(device), encoder=encoder)
    with nullcontext() if gates is None else answering(gates, sight):
        made: Any = cast(Any, language.model).generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=min(asking.tokens, limit - length),
            pad_token_id=language.pad,
            eos_token_id=_ends(language) or None,
            do_sample=False,
            logits_processor=[_Draw(asking, device)] if asking.temperature > 0 else [],
        )
    # a decoder's row begins with a token of its own, a causal model's with the request
    answers = made[:, 1 if encoder else length :]
    texts: list[str] = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [text.strip() for text in texts]


class _Draw:
    """Draws each token by taking the likeliest after Gumbel noise was added to the logits: the
    Gumbel-max trick. `generate` would draw from the global random state, which all threads share.
    """

    def __init__(self, asking: Asking, device: torch.device) -> None:
        self._temperature, self._top_p = asking.temperature, asking.top_p
        self._generator = torch.Generator(device).manual_seed(asking.seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits (rows, tokens) with noise; a token outside of `top_p` stays impossible."""
        logits = scores.float() / self._temperature
        if self._top_p < 1:
            from transformers import TopPLogitsWarper

            logits = cast(Any, TopPLogitsWarper)(self._top_p)(input_ids, logits)
        waits = torch.empty_like(logits).exponential_(generator=self._generator)
        return logits - waits.clamp_min_(torch.finfo(waits.dtype).tiny).log()


def _ends(language: LanguageModel) -> list[int]:
    """The tokens that end an answer: those the model's files name, and the one that training here
    puts after each answer."""
    named: Any = getattr(getattr(language.model, "generation_config", None), "eos_token_id", None)
    ends: list[Any] = [*named] if isinstance(named, list) else [named]
    return sorted({int(end) for end in (*ends, language.tokenizer.eos_token_id) if end is not None})


def _is_plain(folder: Path) -> bool:
    """Whether peft wrote the folder."""
    try:
        config = parse_object((folder / "adapter_config.json").read_bytes())
        return config["peft_type"] in PEFT_TYPES
    except (OSError, ValueError, KeyError, TypeError):
        return False  # whoever reads it as MixLoRA reports what is wrong with it


def _attach_plain(language: LanguageModel, folder: Path) -> Callable[[], None]:
    import peft

    if not (folder / "adapter_model.safetensors").is_file():
        raise ComposerError(f"{folder} has no adapter_model.safetensors: others are not opened.")
    try:
        attached: Any = cast(Any, peft).PeftModel.from_pretrained(language.model, str(folder))
    except (ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ComposerError(f"{folder} does not fit {language.name} ({first}).") from error

    def detach() -> None:
        attached.unload()
        if hasattr(language.model, "peft_config"):
            del language.model.peft_config

    return detach
