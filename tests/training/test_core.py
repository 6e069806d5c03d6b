"""What all trainings do alike: a stopped one goes on as if it had never stopped, a bad step is
skipped, and a state that cannot be used is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gate_training
import language_training
import pytest
import torch
from language_loras import three_loras
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_loras import experts_for

from composer.diffusion.load import load_model
from composer.errors import ComposerError
from composer.language.gates_config import LoraGatesConfig
from composer.mixlora import LoraSettings, MixLoraSettings, RouterSettings
from composer.training.core import Learner, learning_rate_factor
from composer.training.gates.train import train_gates
from composer.training.language import train_adapter
from composer.training.lora.settings import LoraTraining
from composer.training.lora.train import train_lora
from composer.training.mixlora import ImageSet, PictureMixLoraTraining, train_picture_mixlora
from composer.training.pictures import TrainingPicture
from composer.training.state import KEY

STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of training, tiny: its settings, how it is begun, and the module that runs."""

    config: Any
    begin: Callable[..., Iterator[Any]]
    runs: torch.nn.Module

    def at(self, folder: Path, **changes: Any) -> Kind:
        output = folder / self.config.output.name
        return replace(self, config=replace(self.config, output=output, **changes))

    def reports(self, stop_after: int = STEPS) -> dict[int, Any]:
        """Those of the steps, by step; and the last of all as -1."""
        seen: dict[int, Any] = {}
        for report in self.begin(self.config, cancelled=lambda: stop_after in seen):
            if report.stage == "train":
                seen[report.step] = report
        return seen

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was written."""
        output = self.config.output
        return load_file(output / "adapter_model.safetensors" if output.is_dir() else output)

    def running_means(self) -> list[Any]:
        """What the file says of the way there, but for the time and the settings."""
        if self.config.output.is_dir():
            return []
        with safe_open(self.config.output, framework="pt") as file:
            told = json.loads(file.metadata().get("composer.mixlora", "{}")).get("training", {})
        return [told.get(name) for name in ("loads", "balance_loss", "loss")]


def picture(color: str, caption: str, **more: Any) -> TrainingPicture:
    return TrainingPicture(image=Image.new("RGB", (16, 16), color), caption=caption, **more)


SHARED: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 2}
ON_PICTURES: dict[str, Any] = {
    **SHARED, "batch_size": 3, "learning_rate": 1e-2, "file_type": "float32", "warmup": 2,
    "flip": True, "caption_dropout": 0.3, "noise_offset": 0.1,
}  # fmt: skip


def lora(folder: Path, tiny_sd: Path, optimizer: str = "adamw") -> Kind:
    model = load_model(tiny_sd)
    pictures = [picture("red", "zibo"), picture("grey", "a cat", is_prior=True)]
    config = LoraTraining(
        output=folder / "zibo.safetensors", rank=2, optimizer=optimizer, text_encoder=True,
        **ON_PICTURES,
    )  # fmt: skip
    return Kind(
        config=config,
        begin=lambda config, **more: train_lora(model, config, pictures=pictures, **more),
        runs=model.unet,
    )


def picture_mixlora(folder: Path, tiny_sd: Path, optimizer: str = "muon") -> Kind:
    model = load_model(tiny_sd)
    plain = LoraSettings(rank=2, alpha=2.0, dropout=0.3)
    router = RouterSettings(experts=3, top_k=2, balance=0.1)
    adapter = MixLoraSettings(experts=plain, attention=plain, convolutions=plain, router=router)
    sets = (ImageSet(trigger="zibo"), ImageSet(trigger="tavo"))
    pictures = {"zibo": [picture("red", "zibo")], "tavo": [picture("blue", "a tavo")]}
    config = PictureMixLoraTraining(
        output=folder / "both.safetensors", sets=sets, adapter=adapter, optimizer=optimizer,
        **ON_PICTURES,
    )  # fmt: skip
    return Kind(
        config=config,
        begin=lambda config, **more: train_picture_mixlora(
            model, config, pictures=pictures, **more
        ),
        runs=model.unet,
    )


def gates(folder: Path, tiny_sd: Path) -> Kind:
    model = load_model(tiny_sd)
    experts = experts_for(model, folder)
    return Kind(
        config=gate_training.training(folder, **SHARED),
        begin=lambda config, **more: train_gates(model, experts, config, **more),
        runs=model.unet,
    )


def on_records(folder: Path, adapter: Any, name: str) -> Kind:
    language = language_training.language()
    settings = {"schedule": "cosine", "warmup": 2, **SHARED}
    config = language_training.training(folder, name, adapter=adapter, **settings)
    records = language_training.records()
    return Kind(
        config=config,
        begin=lambda config, **more: train_adapter(language, config, records=records, **more),
        runs=language.model,
    )


def language_gates(folder: Path, _: Path) -> Kind:
    loras = three_loras("llama", folder / "loras")
    return on_records(
        folder, LoraGatesConfig(loras=tuple(map(str, loras.values()))), "gates.safetensors"
    )


KINDS: dict[str, Callable[[Path, Path], Kind]] = {
    "lora": lora,
    "lora by muon": lambda folder, model: lora(folder, model, "muon"),
    "gates": gates,
    "picture MixLoRA": picture_mixlora,
    "language MixLoRA": lambda folder, _: on_records(
        folder, language_training.mixlora(dropout=0.3), "reverse"
    ),
    "language LoRA": lambda folder, _: on_records(
        folder, language_training.plain(dropout=0.3), "reverse"
    ),
    "language gates": language_gates,
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest, tiny_sd: Path, tmp_path: Path) -> Kind:
    return KINDS[request.param](tmp_path, tiny_sd)


def losses(reports: dict[int, Any]) -> dict[int, float | None]:
    return {step: report.loss for step, report in reports.items()}


def test_it_goes_on_after_a_stop_and_after_a_write_that_was_killed(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; the last whole state is what it goes on from."""

    class Killed(BaseException):
        pass

    def killed(number: int) -> None:
        raise Killed

    whole, parts = kind.at(tmp_path / "whole"), kind.at(tmp_path / "parts")
    expected = whole.reports()
    first = parts.reports(stop_after=1)
    assert list(first) == [1] and not parts.config.output.exists()
    again = parts.at(tmp_path / "parts", resume=True)
    second: dict[int, Any] = {}
    reports = again.begin(again.config)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        for report in reports:
            if report.stage == "train":
                second[report.step] = report
                if report.step == 3:  # the state of step 2 is there; that of step 4 is not to be
                    patched.setattr(os, "fsync", killed)
    assert list(second) == [2, 3]
    third = again.reports()
    assert list(third) == [3, 4, 5]
    assert losses({**first, **second, **third}) == losses(expected)
    assert third[5].smoothed_loss == expected[5].smoothed_loss
    there, here = whole.tensors(), parts.tensors()
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in there)
    assert whole.running_means() == parts.running_means()
    assert not parts.config.checkpoint.exists()


def test_a_step_without_a_finite_loss_is_skipped_and_named(kind: Kind, tmp_path: Path) -> None:
    step = 0

    def spoil(module: Any, given: Any, said: Any) -> Any:
        if step != 2 or not torch.is_grad_enabled():
            return None
        if isinstance(said, tuple):
            return (said[0] * float("nan"), *said[1:])
        said.logits = said.logits * float("nan")
        return said

    handle = kind.runs.register_forward_hook(spoil)
    seen: list[Any] = []
    for report in kind.begin(kind.config):
        if report.stage == "train":
            step = report.step
        seen.append(report)
    handle.remove()
    made = [report for report in seen if report.stage == "train"]
    assert [report.step for report in made if report.loss is None] == [3]
    assert [report.skipped for report in made] == [0, 0, 1, 1, 1]
    assert seen[-1].stage == "saved" and seen[-1].path == kind.config.output
    assert all(bool(tensor.isfinite().all()) for tensor in kind.tensors().values())


def test_a_state_of_another_training_is_refused_before_any_work(kind: Kind, tmp_path: Path) -> None:
    kind.reports(stop_after=2)
    path = kind.config.checkpoint
    again = kind.at(tmp_path, resume=True)
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()[KEY])
    tensors = load_file(path)

    def refused(message: str, **changes: Any) -> None:
        save_file(tensors, path, {KEY: json.dumps({**state, **changes})})
        with pytest.raises(ComposerError, match=message) as caught:
            again.begin(again.config)
        assert str(path) in str(caught.value) and "without resume" in str(caught.value)

    for name in state["facts"]:
        refused(f"was trained on {name}", facts={**state["facts"], name: "another"})
    assert "another model" in state["facts"] and len(state["facts"]) == 2
    refused("with seed 7, not 0", config={**state["config"], "seed": 7})
    refused("by 2 processes, not 1", processes=2)
    refused("another kind of training", kind="Other")
    removed = {**state["config"], "objective": "distill"}  # a setting that there is no more
    refused("another version", version=state["version"] - 1, config=removed)
    for broken in ({"step": "3"}, {"step": True}, {"skipped": None}, {"smoothed": [1]}):
        refused("no training state of Composer", **broken)
    save_file(tensors, path, {KEY: json.dumps(state)[:-1]})
    with pytest.raises(ComposerError, match="no training state of Composer"):
        again.begin(again.config)


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"\x10\0\0\0\0\0\0\0{", b"\x02\0\0\0\0\0\0\0{}"]
)
def test_a_file_that_is_no_state_is_named(content: bytes, tiny_sd: Path, tmp_path: Path) -> None:
    kind = lora(tmp_path, tiny_sd).at(tmp_path, resume=True)
    kind.config.checkpoint.write_bytes(content)
    with pytest.raises(ComposerError, match=r"zibo\.resume is no training state of Composer"):
        kind.begin(kind.config)


@pytest.mark.parametrize(
    "key", ["composer_gate_training_state", "composer_language_training_state"]
)
def test_a_state_of_before_is_refused_with_a_remedy(
    key: str, tiny_sd: Path, tmp_path: Path
) -> None:
    kind = lora(tmp_path, tiny_sd).at(tmp_path, resume=True)
    save_file({"factor.a": torch.zeros(1)}, kind.config.checkpoint, {key: "{}"})
    with pytest.raises(ComposerError, match="another version of Composer: start without resume"):
        kind.begin(kind.config)


@pytest.mark.parametrize("spoiled", ["gone", "of another shape"])
def test_a_state_that_lacks_a_tensor_changes_nothing(
    spoiled: str, tiny_sd: Path, tmp_path: Path
) -> None:
    kind = lora(tmp_path, tiny_sd)
    kind.reports(stop_after=2)
    path = kind.config.checkpoint
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = max(name for name in tensors if name.startswith("parameter."))
    tensors[name] = torch.zeros(7)
    if spoiled == "gone":
        del tensors[name]
    save_file(tensors, path, metadata)
    with pytest.raises(ComposerError, match="lacks some of what is trained"):
        kind.at(tmp_path, resume=True).reports()


def test_a_training_of_which_every_step_is_bad_writes_nothing() -> None:
    """Of fewer than three steps, too."""
    one = torch.nn.Parameter(torch.ones(2))
    config = LoraTraining(output=Path("a.safetensors"), steps=2)
    learner = Learner(
        config=config, parameters={"one": one}, optimizer=torch.optim.SGD([one], lr=1.0),
        total=2, facts={},
    )  # fmt: skip
    alone: Any = type("Alone", (), {"num_processes": 1})
    for _ in range(2):
        assert learner.running
        learner.begin()
        learner.finish(alone, float("nan"), {})
    assert learner.diverged and not learner.running
    assert torch.equal(one.detach(), torch.ones(2))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.8535533906, 0.5, 0.1464466094]),
    ],
)
def test_the_learning_rate_rises_and_falls(schedule: Any, expected: list[float]) -> None:
    factors = [learning_rate_factor(step, 6, warmup=2, schedule=schedule) for step in range(6)]
    assert factors == pytest.approx(expected)
    assert learning_rate_factor(9, 6, warmup=2, schedule=schedule) == pytest.approx(
        1.0 if schedule == "constant" else 0.0
    )
