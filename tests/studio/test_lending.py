from __future__ import annotations

from pathlib import Path

import torch
from tiny_loras import write_lora

from composer.diffusion.load import load_model
from composer.experts import ModuleNames, read_expert
from composer.mixture import attach
from composer.studio.lending import copy_for_training


def test_a_copy_shares_the_weights_and_nothing_else(tiny_sd: Path, tmp_path: Path) -> None:
    model = load_model(tiny_sd)
    modules = {name: list(part.modules()) for name, part in model.models.items()}
    copied = copy_for_training(model)
    assert copied.hash == model.hash
    for part, encoder in model.encoders.items():
        assert copied.encoders[part].tokenizer is not encoder.tokenizer
    pairs = [(model.models[part], copied.models[part]) for part in model.models]
    for ours, theirs in [*pairs, (model.vae, copied.vae)]:
        for (name, one), (_, other) in zip(
            ours.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert one is not other and one.data_ptr() == other.data_ptr(), name
            other.requires_grad_(True)
            assert not one.requires_grad
        assert not set(ours.modules()) & set(theirs.modules())
    expert = read_expert(
        write_lora(tmp_path / "ada.safetensors", seed=1), ModuleNames.of(copied.models, model="")
    )
    with attach(copied.models, {"ada": expert.sites}):
        for name, part in model.models.items():
            assert list(part.modules()) == modules[name]


def test_a_copy_of_half_precision_can_be_trained(tiny_sd: Path) -> None:
    model = load_model(tiny_sd, dtype=torch.float16)
    copied = copy_for_training(model)
    for loaded, dtype in ((model, torch.float16), (copied, torch.float32)):
        assert loaded.dtype == dtype
        for part in loaded.models.values():
            assert {p.dtype for p in part.parameters()} == {dtype}
        assert next(loaded.vae.parameters()).dtype == torch.float32
