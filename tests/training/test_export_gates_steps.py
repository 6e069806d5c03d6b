"""An export asks for no more steps than the model's noise schedule has."""

from __future__ import annotations

from pathlib import Path

import pytest
from gate_training import assert_untouched, state_of
from tiny_gates import write_gates
from tiny_loras import experts_for

from composer.diffusion.load import load_model
from composer.diffusion.samplers import check_steps
from composer.errors import ComposerError
from composer.fusions.gate_file import read_gates
from composer.training.gates.export import export_gates
from composer.training.gates.settings import GateExport


def test_more_steps_are_refused_before_any_work(tiny_sd: Path, tmp_path: Path) -> None:
    model = load_model(tiny_sd)
    experts = experts_for(model, tmp_path)
    loras = {expert.name: expert.path for expert in experts}
    file = read_gates(write_gates(tmp_path / "gates.safetensors", tiny_sd, loras))
    before, output = state_of(model), tmp_path / "new" / "out.safetensors"

    def config(steps: int) -> GateExport:
        return GateExport(output=output, prompts=("ada in ink",), pictures=1, steps=steps)

    with pytest.raises(ComposerError) as wanted:
        check_steps(1000, model.scheduler_config)
    with pytest.raises(ComposerError, match="1000 steps are more than the 999") as refused:
        export_gates(model, experts, file, config(1000))  # and nobody has asked for a report
    assert str(refused.value) == str(wanted.value)
    assert not output.parent.exists()
    export_gates(model, experts, file, config(999))
    assert_untouched(model, before)
