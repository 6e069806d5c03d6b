"""The benchmark of the MixLoRA of all characters runs, on a tiny random model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_benchmark import judged_model, options_of
from tiny_mixlora import tiny_mixlora, write_mixlora

from benchmarks.mixlora import pictures
from benchmarks.shared.results import read_results
from composer.diffusion.load import load_model
from composer.errors import ComposerError
from composer.experts import LoraInfo, LowRank, ModuleNames, write_lora


@pytest.fixture
def told(tiny_zero_snr_sd: Path, tmp_path: Path) -> list[str]:
    """A model with an oracle that was never trained, and a LoRA of each character."""
    model, loras = judged_model(tiny_zero_snr_sd, tmp_path / "tiny"), tmp_path / "loras"
    loras.mkdir()
    names = ModuleNames.of(load_model(model).models, model="tiny")
    site = next(name for name in names.shapes["unet"] if name.endswith("to_q"))
    out, into = names.shapes["unet"][site]
    for taught in pictures.CHARACTERS:
        sites = {
            f"unet.{site}": LowRank(down=torch.ones(2, into), up=torch.ones(out, 2), scale=1.0)
        }
        info = LoraInfo(trigger=taught.trigger, role=taught.kind, base="tiny", rank=2, title="t")
        write_lora(loras / f"{taught.file}.safetensors", sites, info)
    return options_of(model, loras, tmp_path)


@pytest.mark.slow
def test_the_benchmark_runs(told: list[str], tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match="--stage mixlora"):
        pictures.main(["--count", "2", *told])
    file = tiny_mixlora(tmp_path / "tiny")
    loads = {"a": [0.5, 0.49, 0.01], "b": [0.4, 0.3, 0.3]}
    training = {"steps": 2, "settings": {"batch_size": 3}, "loads": loads}
    whole = type(file)(**{**vars(file), "training": training})
    write_mixlora(tmp_path / "loras" / "mixlora" / "characters.safetensors", whole)
    pictures.main(["--count", "2", *told])
    results = read_results(tmp_path / "results" / "mixlora_pictures.json")
    ways = [(row["table"], row["way"], row["n"]) for row in results.rows]
    assert len(ways) == len(pictures.CHARACTERS) * 2 + 1 + 3 + 3
    assert ("One character", "MixLoRA", 2) in ways
    couples = math.comb(len(pictures.CHARACTERS), 2)
    assert ("Two characters side by side", "their two LoRAs", couples) in ways
    assert ("None of them", "the bare model", 2) in ways
    assert results.rows[0]["trained numbers"] == 2 * 32 + 32 * 2
    assert "3 experts of rank 2" in results.notes[0]
    assert "In 1 of the 2 feed-forwards" in results.notes[0]
