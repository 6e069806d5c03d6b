"""Gate files for the tiny model: gates that were never trained, but that look and differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.load import load_model
from composer.experts import ModuleNames, read_expert
from composer.fusions.gate_file import GatedExpert, GateFile, gate_sizes, gate_tensors
from composer.mixture import GateSettings, Granularity, attach
from composer.mixture.build import new_gates


def write_gates(
    path: Path,
    folder: Path,
    loras: Mapping[str, Path],
    *,
    granularity: Granularity = "block",
    seed: int = 0,
    model_hash: str | None = None,
) -> Path:
    """Gates for these LoRAs (name -> file) over the model in `folder`; another hash makes them
    gates for another model."""
    model = load_model(folder)
    modules = ModuleNames.of(model.models, model=model.name)
    experts = [read_expert(lora, modules, name=name) for name, lora in loras.items()]
    settings = {"unet": GateSettings(activation="free", time=True, bias=True)}
    with attach(
        model.models, {e.name: e.sites for e in experts}, granularity=granularity
    ) as mixture:

        @torch.no_grad()
        def run() -> None:
            size = model.size // model.multiple
            text = encode_prompts(model, "a fox", None).positive.states
            model.unet(torch.zeros(1, model.latent_channels, size, size), 500, text)

        gates = new_gates(mixture, settings, run, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for gate in gates.values():
                for parameter in (gate.e, gate.b, gate.clock):
                    assert parameter is not None
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        mixture.set_gates(gates)
        file = GateFile(
            model=model.name,
            model_hash=model.hash if model_hash is None else model_hash,
            experts=tuple(
                GatedExpert(
                    name=e.name, tensor_hash=e.tensor_hash, trigger=e.info.trigger, role=e.info.role
                )
                for e in experts
            ),
            granularity=granularity,
            settings=settings,
            sizes=gate_sizes(mixture),
            tensors=gate_tensors(mixture),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    file.write(path)
    return path
