"""Weights are read bit for bit as diffusers and transformers read them, and into memory once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.weights import Weights, build
from composer.errors import ComposerError

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["tiny_sd", "tiny_sdxl"])
def test_all_parts_are_as_their_own_libraries_load_them(
    kind: str, request: pytest.FixtureRequest
) -> None:
    import diffusers
    import transformers

    folder: Path = request.getfixturevalue(kind)
    model = load_model(folder)
    libraries: Any = (diffusers, transformers)
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    for part, ours in {**model.models, "vae": model.vae}.items():
        name = classes.get(part, type(ours).__name__)
        theirs: Any = getattr(libraries[part.startswith("text")], name).from_pretrained(
            folder / part
        )
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
        for name, tensor in theirs.named_buffers():  # also those that no file holds
            assert torch.equal(dict(ours.named_buffers())[name], tensor), name


def test_the_scheduler_and_the_empty_prompt_are_as_in_the_pipeline(
    tiny_zero_snr_sd: Path, tiny_sdxl: Path
) -> None:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    for folder in (tiny_zero_snr_sd, tiny_sdxl):
        theirs: Any = DiffusionPipeline.from_pretrained(folder)  # pyright: ignore
        model = load_model(folder)
        assert dict(model.scheduler_config) == dict(theirs.scheduler.config)
        assert model.zero_negative == bool(theirs.config.get("force_zeros_for_empty_prompt"))


def test_the_names_of_a_vae_of_old(tiny_sd: Path, tmp_path: Path) -> None:
    """As in the folder in which Stable Diffusion 1.5 was published."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tiny_sd / "vae" / "diffusion_pytorch_model.safetensors")
    renamed = dict(tensors)
    for name in tensors:
        for now, before in old.items():
            if f"attentions.0.{now}." in name:
                renamed[name.replace(f".{now}.", f".{before}.")] = renamed.pop(name)
    assert len(renamed.keys() - tensors.keys()) == 16
    save_file(renamed, tmp_path / "old.safetensors")
    model, other = load_model(tiny_sd), load_model(tiny_sd, vae=tmp_path / "old.safetensors")
    assert same(model.vae, other.vae)


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_memory_holds_the_weights_once(tmp_path: Path) -> None:
    """While they are read, what the process has in memory grows by them and one tensor more."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory is read from /proc")

    def resident() -> int:
        """In bytes."""
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmRSS"].split()[0]) * 1024

    def make() -> nn.Module:
        return nn.Sequential(*(nn.Linear(1000, 1000, bias=False) for _ in range(24)))

    save_file(make().state_dict(), tmp_path / "wide.safetensors")
    whole, one = 96e6, 4e6
    for dtype, share in ((torch.float32, 1), (torch.bfloat16, 0.5)):
        weights, before = Weights([tmp_path / "wide.safetensors"]), resident()
        seen: list[int] = []

        def look(weights: Weights = weights, seen: list[int] = seen) -> None:
            seen.append(resident())
            weights.forget()

        network = build(make, weights.tensors, source="x", device=CPU, dtype=dtype, forget=look)
        assert max(seen) - before < whole * share + 3 * one
        assert next(network.parameters()).dtype == dtype


def test_modules_that_another_thread_makes_meanwhile_have_memory(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "one.safetensors")
    weights, others = Weights([tmp_path / "one.safetensors"]), list[nn.Module]()

    def make() -> nn.Module:
        thread = threading.Thread(target=lambda: others.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        return nn.Linear(2, 2, bias=False)

    made = build(make, weights.tensors, source="x", device=CPU, dtype=torch.float16)
    assert not others[0].weight.is_meta
    assert torch.equal(made.weight, torch.ones(2, 2, dtype=torch.float16))
    assert not made.weight.requires_grad and not made.training


def test_tensors_at_odd_places_and_matrices_as_convolutions(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"flag": torch.ones(1, dtype=torch.uint8), "weight": torch.rand(3, 2, 1, 1)}, path)
    weights = Weights([path])
    made = build(
        lambda: nn.Linear(2, 3, bias=False), weights.tensors, source="x", device=CPU,
        dtype=torch.float32,
    )  # fmt: skip
    assert torch.equal(made.weight, weights.tensors["weight"][:, :, 0, 0])


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Linear(2, 3)

    def built(**tensors: torch.Tensor) -> Any:
        return build(make, tensors, source="The x of y", device=CPU, dtype=torch.float32)

    with pytest.raises(ComposerError, match="The x of y lacks 1 of 2 tensors, such as bias"):
        built(weight=torch.zeros(3, 2))
    with pytest.raises(ComposerError, match=r"weight is \(2, 3\) there, and the model's is \(3, 2"):
        built(weight=torch.zeros(2, 3), bias=torch.zeros(3))
    (tmp_path / "none.safetensors").write_bytes(b"<html>")
    with pytest.raises(ComposerError, match=r"none.safetensors"):
        Weights([tmp_path / "none.safetensors"])


def test_a_checkpoint_with_both_weights_gives_those_that_are_no_average(
    tiny_sd: Path, tmp_path: Path
) -> None:
    import shutil

    from test_single_file import save_checkpoint

    path = save_checkpoint(tiny_sd, tmp_path / "both.safetensors")
    ema = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): torch.zeros_like(tensor)
        for name, tensor in load_file(path).items()
        if name.startswith("model.diffusion_model.")
    }
    save_file({**load_file(path), **ema}, path)
    shutil.copytree(tiny_sd, tmp_path / "both", ignore=shutil.ignore_patterns("*.safetensors"))
    model: Model = load_model(path)
    assert same(model.unet, load_model(tiny_sd).unet)
