"""What the pictures on the way of a gate training are of, where no prompt is given for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_training import run, training
from tiny_loras import experts_for

from composer.diffusion.load import load_model
from composer.diffusion.model import Model


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def test_they_are_of_the_first_prompt(model: Model, tmp_path: Path) -> None:
    experts = experts_for(model, tmp_path)
    seen: dict[str, Any] = {}
    for told in ("", "ada in ink", "something else"):
        config = training(
            tmp_path,
            prompts=("ada in ink", "cat"),
            steps=1,
            preview_every=1,
            preview_prompt=told,
        )
        picture = run(model, experts, config)[1].preview
        assert picture is not None
        seen[told] = np.asarray(picture)
    np.testing.assert_array_equal(seen[""], seen["ada in ink"])
    assert not np.array_equal(seen[""], seen["something else"])
