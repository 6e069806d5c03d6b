"""LoRAs that PEFT itself makes for the tiny language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_language import tiny_llama, tiny_mistral, tiny_t5

from composer.experts import Expert
from composer.language.parts import read_adapters

MODELS = {"llama": tiny_llama, "mistral": tiny_mistral, "t5": tiny_t5}
ATTENTION = {"llama": ("q_proj", "v_proj"), "mistral": ("q_proj", "v_proj"), "t5": ("q", "v")}
EVERYWHERE: dict[str, Sequence[str] | str] = {
    "llama": "all-linear",
    "mistral": "all-linear",
    "t5": "all-linear",
}


def make_lora(
    kind: str,
    folder: Path,
    seed: int,
    *,
    rank: int = 2,
    alpha: float = 4.0,
    targets: Sequence[str] | str | None = None,
    **settings: Any,
) -> Path:
    """A LoRA whose both factors are random, as PEFT writes it."""
    import peft

    wanted = targets if targets is not None else ATTENTION[kind]
    config: Any = peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=wanted if isinstance(wanted, str) else list(wanted),
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = peft.get_peft_model(MODELS[kind](), config)
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(folder)
    return folder


def three_loras(kind: str, folder: Path) -> dict[str, Path]:
    """Of other ranks, alphas and modules each."""
    return {
        "ada": make_lora(kind, folder / "ada", 1),
        "ink": make_lora(kind, folder / "ink", 2, rank=3, alpha=3.0, targets=EVERYWHERE[kind]),
        "sun": make_lora(kind, folder / "sun", 3, rank=4, use_rslora=True),
    }


def experts(kind: str, model: Any, folders: Mapping[str, Path]) -> list[Expert]:
    return read_adapters(folders, model, kind)


def requests(rows: int = 3, tokens: int = 6) -> torch.Tensor:
    """Token numbers, the same each time."""
    return torch.randint(0, 250, (rows, tokens), generator=torch.Generator().manual_seed(5))


def outputs(model: Any, ids: torch.Tensor, answer: torch.Tensor | None = None, **more: Any) -> Any:
    """Logits, (rows, tokens, vocabulary); of T5 for `answer`."""
    if not model.config.is_encoder_decoder:
        return model(input_ids=ids, use_cache=False, **more).logits
    start = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
    told = start if answer is None else torch.cat([start, answer], dim=1)
    return model(input_ids=ids, decoder_input_ids=told, use_cache=False, **more).logits
