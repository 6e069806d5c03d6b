"""The benchmarks of gates: that they run, and how they count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_benchmark import judged_model, options_of
from tiny_loras import write_lora

from benchmarks.gates import ablations, company, export, learned, merges, paper
from benchmarks.gates.files import default_training, trained
from benchmarks.shared.results import read_results
from toybox.world import element

TAUGHT = ("zibo", "neon")


@pytest.fixture
def told(tiny_zero_snr_sd: Path, tmp_path: Path) -> list[str]:
    """A tiny model with an oracle that was never trained, and LoRAs of a character and a style."""
    model = judged_model(tiny_zero_snr_sd, tmp_path / "tiny")
    for seed, taught in enumerate(map(element, TAUGHT)):
        write_lora(tmp_path / "loras" / f"{taught.file}.safetensors", seed=seed)
    return options_of(model, tmp_path / "loras", tmp_path)


def quickly(*given: Any) -> Path:
    """Gates of one step."""
    short = {"prompts": ("zibo, neon",), "alone": {n: (n,) for n in TAUGHT}}
    return trained(*given, steps=1, **short)


def test_gates_and_sums_are_tuned_alike(
    told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [*told, "--count", "2", "--sets", "1", "--tuning", "1", "--kinds", "character+style"]
    merges.main([*few, "--keep-weights", str(tmp_path / "loras" / "weights")])
    (tuned_sum,) = (
        r for r in read_results(tmp_path / "results/gates_merges.json").rows if "weights" in r
    )
    monkeypatch.setattr(learned, "trained", quickly)
    learned.main(few)
    whole, summed, plain, louder = read_results(tmp_path / "results" / "gates_learned.json").rows
    names = [name for name in tuned_sum if name not in ("fusion", "weights")]
    assert [summed[name] for name in names] == [tuned_sum[name] for name in names]
    assert set(str(summed["weights"]).split(" + ")) == set(str(tuned_sum["weights"]).split(" + "))
    assert whole["fusion"] == "sum, weights 1"
    assert "weights" not in plain and str(louder["weights"]).count(" + ") == 1
    strengths = {float(part.split()[-1]) for part in str(louder["weights"]).split(" + ")}
    assert strengths <= set(learned.GRID)


@pytest.mark.slow
def test_it_runs_for_the_kinds_that_have_files(
    told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "trained", quickly)
    export.main([*told, "--count", "2", "--sets", "1"])
    results = read_results(tmp_path / "results" / "gates_export.json")
    ways = [str(row["way"]) for row in results.rows]
    assert [way.split()[0] for way in ways] == ["average", "sum,", "learned", "exported"]
    last = results.rows[-1]
    (file,) = (tmp_path / "cache" / "gates").glob("*-lora.safetensors")
    assert last["loss"] == pytest.approx(export.loss_of(file), abs=1e-4)
    assert last["file (kB)"] == round(file.stat().st_size / 1000)
    assert len(list((tmp_path / "cache" / "pictures").glob("*.png"))) == 2 * len(ways)


def test_what_is_kept_is_counted_from_the_average() -> None:
    assert export.kept(0.2, 0.6, 0.5) == pytest.approx(0.75)
    assert export.kept(0.2, 0.2, 0.5) is None


@pytest.mark.slow
def test_ablations_train_each_variant_and_draw_how_they_went(
    told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quickly(*given: Any, **changes: Any) -> Path:
        short = {"prompts": ("zibo, neon",), "alone": {n: (n,) for n in TAUGHT}}
        return trained(*given, **{**short, **changes})

    monkeypatch.setattr(ablations, "trained", quickly)
    monkeypatch.setattr(ablations, "KINDS", ("character", "style"))
    table, variants = next(iter(ablations.TABLES.items()))
    few = dict(list(variants.items())[:2])
    monkeypatch.setattr(ablations, "TABLES", {table: few})
    ablations.main([*told, "--count", "2", "--optimiser-steps", "2"])
    results = read_results(tmp_path / "results" / "gates_ablations.json")
    assert [row["variant"] for row in results.rows[2:]] == list(few)
    assert all(row["loss"] is not None for row in results.rows[2:])
    curves = list((tmp_path / "cache" / "gates").glob("*.curve.json"))
    assert len(curves) == len(few)
    for curve in curves:
        assert [step for step, _ in json.loads(curve.read_text())] == [1, 2]
    assert (tmp_path / "images" / "gates_ablations.webp").stat().st_size > 1000


@pytest.mark.slow
def test_a_company_that_changes_nothing_is_trained_once(
    told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    companies: list[str] = []

    def training(*given: Any, **changes: Any) -> Path:
        companies.append(changes.pop("company"))
        return quickly(*given, **changes)

    monkeypatch.setattr(company, "trained", training)
    kinds = ["--kinds", "character+style"]
    company.main([*told, "--count", "2", "--sets", "1", *kinds])
    results = read_results(tmp_path / "results" / "gates_company.json")
    assert companies == ["nobody", "fitting"]  # one figure: all fit
    assert [row["fusion"] for row in results.rows] == [company.WAYS[c] for c in companies]
    assert (tmp_path / "images" / "gates_company.webp").stat().st_size > 1000


def test_every_ablation_is_a_training_that_could_be_made(tmp_path: Path) -> None:
    some = (element("sunglasses"), element("pixel art"))
    seen = [
        default_training(tmp_path / "gates.safetensors", some, **changes).to_json()
        for variants in (*ablations.TABLES.values(), *paper.TABLES.values())
        for changes in variants.values()
    ]
    assert all(seen.count(values) == 1 for values in seen)
