"""What an exported LoRA says of itself: its words, where it came from and what it lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from composer.experts import Expert, LoraInfo
from composer.fusions.gate_file import GateFile
from composer.training.gates.export_plan import Exported, ExportedLora, GateExport


def info_of(
    file: GateFile,
    experts: Sequence[Expert],
    config: GateExport,
    exported: Exported,
    told: ExportedLora,
) -> LoraInfo:
    """For the metadata of the file `told`; its origin is under the key `composer.export`."""
    names = " + ".join(expert.name for expert in file.experts)
    by_name = {expert.name: expert.info for expert in experts}
    triggers = [e.trigger.strip() or by_name[e.name].trigger for e in file.experts]
    bases = {info.base for info in by_name.values()}
    part = "" if len(exported.files) == 1 else f", for steps {told.first} to {told.last}"
    origin = {
        "gates": config.gates,
        "model": file.model,
        "model_hash": file.model_hash,
        "loras": [asdict(expert) for expert in file.experts],
        "loss": told.loss,
        "loss_of_all_steps": exported.loss,
        "steps": [told.first, told.last],
        "of_steps": told.steps,
        "timesteps": list(told.timesteps),
        "cfg_scale": config.cfg_scale,
        "pictures": config.pictures,
        "block_weights": {name: list(numbers) for name, numbers in told.blocks.items()},
    }
    return LoraInfo(
        trigger=", ".join(trigger for trigger in triggers if trigger),
        role="other",
        base=bases.pop() if len(bases) == 1 else "",
        title=told.path.stem,
        description=(
            f"{names}, merged by the constant weights nearest to what their gates say{part}; of "
            f"what the gates do it loses {told.loss:.1%}."
        ),
        extra={"composer.export": json.dumps(origin, ensure_ascii=False)},
    )
