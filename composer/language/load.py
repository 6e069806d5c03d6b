"""Load a language model of transformers, causal or of T5's kind: a folder, or a hub name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from composer.errors import ComposerError
from composer.files import LOADING
from composer.language.paths import check_language_model

Quantisation = Literal["none", "8bit", "4bit"]
QUANTISATIONS: tuple[Quantisation, ...] = get_args(Quantisation)


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A language model with its tokenizer, in evaluation mode and frozen."""

    model: nn.Module
    """A transformers `...ForCausalLM`, or one in which an encoder reads and a decoder writes."""
    tokenizer: Any
    name: str
    """For `base_model_name_or_path` of an adapter: the folder's name, or the hub name."""

    @property
    def device(self) -> torch.device:
        return cast(torch.device, cast(Any, self.model).device)

    @property
    def pad(self) -> int:
        """The token that fills a row up; masked wherever it stands."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(number) for number in ids if number is not None), 0)

    @property
    def start(self) -> int | None:
        """The token that a decoder begins with; None for a causal model."""
        config = cast(Any, self.model).config
        if not getattr(config, "is_encoder_decoder", False):
            return None
        start = config.decoder_start_token_id
        return int(start) if start is not None else self.pad


def load_language_model(
    path_or_name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    quantisation: Quantisation = "none",
) -> LanguageModel:
    """Load a model and its tokenizer; only safetensors are opened, and no code beside them is run.

    What exists on disk, or looks like a path, is never asked of the hub. `quantisation` keeps the
    base's weights in 8 or 4 bits by bitsandbytes (QLoRA, Dettmers et al. 2023). Raises
    ComposerError, naming the remedy, for anything that cannot be loaded.
    """
    path = Path(path_or_name).expanduser()
    check_language_model(path_or_name)
    settings: dict[str, Any] = {
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": path.is_dir(),
    }
    settings["dtype"] = dtype
    if quantisation != "none":
        settings["quantization_config"] = _quantised(quantisation, dtype)
        settings["device_map"] = {"": str(device)}
    source = str(path) if path.is_dir() else str(path_or_name)
    from safetensors import SafetensorError
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
    )

    try:
        config: Any = cast(Any, AutoConfig).from_pretrained(
            source, trust_remote_code=False, local_files_only=path.is_dir()
        )
        pair = bool(getattr(config, "is_encoder_decoder", False))
        kind: Any = AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM
        with LOADING:
            model: Any = kind.from_pretrained(source, **settings)
        tokenizer: Any = cast(Any, AutoTokenizer).from_pretrained(
            source, trust_remote_code=False, local_files_only=path.is_dir()
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ComposerError(
            f"{source} cannot be loaded as a language model ({first}): give a folder that"
            " transformers wrote, with its weights in safetensors and its tokenizer."
        ) from error
    if quantisation == "none":
        model.to(device)
    else:
        _leave_unpacked(model)
    model.requires_grad_(False)
    model.eval()
    name = path.resolve().name if path.is_dir() else source
    return LanguageModel(model=model, tokenizer=tokenizer, name=name)


def _leave_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights for processors with AVX512.

    The product of packed weights has no gradient, so that nothing below it would learn, and it
    refuses many widths.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False


def _quantised(quantisation: Quantisation, dtype: torch.dtype) -> Any:
    """The settings of bitsandbytes; ComposerError where it is not installed."""
    if quantisation not in QUANTISATIONS:
        raise ComposerError(
            f"quantisation {quantisation!r} is unknown: choose one of {', '.join(QUANTISATIONS)}."
        )
    if find_spec("bitsandbytes") is None:
        raise ComposerError(
            f"A base in {quantisation} needs bitsandbytes, which is not installed: pip install"
            " 'composer-sd[quant]', or load the model whole."
        )
    from transformers import BitsAndBytesConfig

    if quantisation == "8bit":
        return cast(Any, BitsAndBytesConfig)(load_in_8bit=True)
    return cast(Any, BitsAndBytesConfig)(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
