from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_gates import write_gates
from typer.testing import CliRunner, Result

from composer.cli import app
from composer.diffusion.png import read_png
from composer.experts.hashes import file_hash_of


def generate(tiny_sd: Path, lora_folder: Path, output: Path, *arguments: str) -> Result:
    folders = ["--model", tiny_sd, "--lora-dir", lora_folder, "--output", output]
    fixed = [*map(str, folders), "--device", "cpu", "--steps", "2", "--seed", "3"]
    return CliRunner().invoke(app, ["generate", *arguments, *fixed])


def test_it_paints_and_prints_the_files(tiny_sd: Path, lora_folder: Path, tmp_path: Path) -> None:
    arguments = ("a fox <lora:neon:0.5>", "--lora", "zibo=0.8,0.2", "--size", "16x24")
    done = generate(tiny_sd, lora_folder, tmp_path, *arguments, "--count", "2")
    assert done.exit_code == 0, done.output
    paths = [Path(line) for line in done.stdout.split()]
    assert [path.name for path in paths] == ["0001-3.png", "0002-4.png"]
    record = read_png(paths[0])
    assert (record.request.width, record.request.height) == (16, 24)
    weights = {lora.name: (lora.unet, lora.text_encoder) for lora in record.loras}
    assert weights == {"zibo": (0.8, 0.2), "neon": (0.5, 0.5)}


def test_a_tag_in_the_negative_prompt_is_refused(
    tiny_sd: Path, lora_folder: Path, tmp_path: Path
) -> None:
    asked = ("a fox", "--negative", "<lora:neon:1> blurry")
    done = generate(tiny_sd, lora_folder, tmp_path, *asked)
    assert done.exit_code == 2 and "holds the tag '<lora:neon:1>'" in done.output
    assert not list(tmp_path.glob("**/*.png"))


def test_embeddings_and_texts_that_change(tiny_sd: Path, lora_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    path = folder / "embeddings" / "bad-hands.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"emb_params": torch.ones(2, 32)}, path)
    asked = ("a [fox:owl:1] <lora:neon:0.5>", "--negative", "(Bad-Hands:1.2), ink")
    both = ("--lora-dir", str(folder))
    done = generate(tiny_sd, lora_folder, tmp_path, *asked, *both)
    assert done.exit_code == 0, done.output
    record = read_png(Path(done.stdout.strip()))
    assert record.embeddings == {"bad-hands": file_hash_of(path)}
    assert record.request.prompt == "a [fox:owl:1]"
    gone = generate(tiny_sd, lora_folder, tmp_path, "a fox, embedding:bad-hand", *both)
    assert gone.exit_code == 2 and "Did you mean 'bad-hands'?" in gone.output


def test_json_says_all_of_each_picture(tiny_sd: Path, lora_folder: Path, tmp_path: Path) -> None:
    done = generate(tiny_sd, lora_folder, tmp_path, "a fox", "--json", "--fusion", "nla")
    told = json.loads(done.stdout)
    assert Path(told["path"]).is_file()
    assert told["request"]["seed"] == 3 and told["fusion"] == {"name": "nla"}


def test_a_picture_is_made_again_and_changed(
    tiny_sd: Path, lora_folder: Path, tmp_path: Path
) -> None:
    first = generate(tiny_sd, lora_folder, tmp_path, "a fox", "--lora", "zibo=0.8", "--cfg", "2")
    picture = first.stdout.strip()
    folders = ["--model", tiny_sd, "--lora-dir", lora_folder, "--output", tmp_path]
    command = ["generate", "--again", picture, "--device", "cpu", *map(str, folders)]
    same = CliRunner().invoke(app, command)
    assert same.exit_code == 0, same.output
    assert Path(same.stdout.strip()).read_bytes() == Path(picture).read_bytes()
    other = CliRunner().invoke(app, [*command, "--lora", "zibo=0.1", "--lora", "neon", "--seed=9"])
    record, before = (read_png(Path(path.strip())) for path in (other.stdout, picture))
    assert {lora.name: lora.unet for lora in record.loras} == {"zibo": 0.1, "neon": 1.0}
    assert record.request == replace(before.request, seed=9)


@pytest.fixture
def gate_file(tiny_sd: Path, lora_folder: Path, tmp_path: Path) -> Path:
    loras = {name: lora_folder / f"{name}.safetensors" for name in ("zibo", "neon")}
    return write_gates(tmp_path / "pair.safetensors", tiny_sd, loras)


def test_gates_by_path_a_lora_off_and_the_same_again(
    tiny_sd: Path, lora_folder: Path, gate_file: Path, tmp_path: Path
) -> None:
    by_path = ("a fox", "--gates", str(gate_file), "--gate-map")
    done = generate(tiny_sd, lora_folder, tmp_path, *by_path, "--lora", "neon=0")
    assert done.exit_code == 0, done.output
    picture = Path(done.stdout.strip())
    assert read_png(picture).fusion["switches"] == {"zibo": True, "neon": False}
    assert picture.with_suffix(".gates.npz").is_file()
    folders = ["--model", tiny_sd, "--lora-dir", lora_folder, "--output", tmp_path]
    again = ["generate", "--again", str(picture), "--device", "cpu", *map(str, folders)]
    lost = CliRunner().invoke(app, again)
    assert "no such gates" in lost.output and "weighted sum is used" in lost.output
    same = CliRunner().invoke(app, [*again, "--gates", str(gate_file)])
    assert Path(same.stdout.strip()).read_bytes() == picture.read_bytes()
    both = CliRunner().invoke(app, [*again, "--gates", str(gate_file), "--lora", "neon"])
    record = read_png(Path(both.stdout.strip()))
    assert record.fusion["switches"] == {"zibo": True, "neon": True}


def test_gates_by_name_and_again(
    tiny_sd: Path, lora_folder: Path, gate_file: Path, tmp_path: Path
) -> None:
    loras = tmp_path / "loras"
    (loras / "gates").mkdir(parents=True)
    for name in ("zibo", "neon"):
        (loras / f"{name}.safetensors").write_bytes(
            (lora_folder / f"{name}.safetensors").read_bytes()
        )
    gate_file.rename(loras / "gates" / "pair.safetensors")
    limited = ("a fox", "--gates", "Pair", "--lora", "neon=1@0:0.5^0:0.2", "--lora", "zibo=1^0:0.6")
    done = generate(tiny_sd, loras, tmp_path, *limited)
    assert done.exit_code == 0, done.output
    picture = Path(done.stdout.strip())
    assert read_png(picture).fusion["steps"] == {"neon": [0.0, 0.5]}
    assert read_png(picture).fusion["depth"] == {"neon": [0.0, 0.2], "zibo": [0.0, 0.6]}
    folders = ["--model", tiny_sd, "--lora-dir", loras, "--output", tmp_path]
    again = ["generate", "--again", str(picture), "--device", "cpu", *map(str, folders)]
    same = CliRunner().invoke(app, again)
    assert same.exit_code == 0, same.output
    assert Path(same.stdout.strip()).read_bytes() == picture.read_bytes()
    weighted = CliRunner().invoke(app, [*again, "--fusion", "weighted"])
    assert read_png(Path(weighted.stdout.strip())).fusion == {
        "name": "weighted",
        "steps": {"neon": [0.0, 0.5]},
        "depth": {"neon": [0.0, 0.2], "zibo": [0.0, 0.6]},
    }


def test_mistakes_are_told_in_one_line(tiny_sd: Path, lora_folder: Path, tmp_path: Path) -> None:
    for arguments, told in {
        ("a fox", "--lora", "zibbo"): "zibo",
        ("a fox", "--lora", "zibo=much"): "--lora NAME=0.8",
        ("a fox", "--size", "big"): "64x64",
        ("a fox", "--fusion", "magic"): "weighted",
        ("a fox", "--gates", "pear"): "no such gates",
        ("a fox", "--gates", "x", "--fusion", "nla"): "not both",
        ("a fox", "--lora", "zibo", "--pin", "mid_block"): "zibo=1, neon=0.5",
        ("a fox", "--lora", "zibo", "--pin", "mid_block:zibo=1"): "for no unit",
        ("a fox", "--lora", "zibo", "--pin", "*:neon=1"): "not chosen",
        ("a fox", "--lora", "zibo=1@half"): "NAME=1@0:0.5",
        ("a fox", "--lora", "zibo=1^deep"): "NAME=1^0:0.2",
        ("a fox", "--lora", "zibo=1^0:0.2^0.5:1"): "NAME=1^0:0.2",
        ("a fox", "--lora", "zibo=1^0.2:0"): "of the depth",
        ("a fox", "--gates", str(lora_folder / "zibo.safetensors")): "holds no gates",
    }.items():
        done = generate(tiny_sd, lora_folder, tmp_path, *arguments)
        assert done.exit_code == 2 and told in done.output, done.output
        assert "Traceback" not in done.output
