"""NLA, PEFT's merges and LoRAHub on language models, each against a sum made by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from language_loras import MODELS, experts, make_lora, outputs, requests, three_loras
from language_training import records
from tiny_language import tiny_tokenizer

from benchmarks.language.lorahub import BOUND, lorahub, mean_loss, search
from benchmarks.language.merges import PEFT_WAYS, merge_factors, merged_by_peft
from composer.errors import ComposerError
from composer.fusions import Normalised
from composer.language.batches import collate
from composer.language.gated import attach_loras
from composer.language.load import LanguageModel
from composer.language.parts import weights_hash
from composer.language.samples import encode

WEIGHTS = {"ada": 0.9, "ink": 0.3, "sun": 0.6}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fixed")


@pytest.fixture(scope="module")
def mixed(home: Path) -> dict[str, dict[str, Path]]:
    """Of all kinds."""
    return {kind: three_loras(kind, home / kind) for kind in ("llama", "t5")}


@pytest.fixture(scope="module")
def alike(home: Path) -> dict[str, Path]:
    """Of one rank and on the same modules."""
    return {name: make_lora("llama", home / "alike" / name, i) for i, name in enumerate(WEIGHTS)}


def language(kind: str = "llama") -> LanguageModel:
    model = MODELS[kind]()
    model.requires_grad_(False)
    return LanguageModel(model=model, tokenizer=tiny_tokenizer(), name=kind)


def by_hand(kind: str, folders: dict[str, Path], weights: dict[str, float]) -> Any:
    """The model with sum_i w_i dW_i added to its own weights."""
    model = MODELS[kind]()
    with torch.no_grad():
        for expert in experts(kind, model, folders):
            for site, factors in expert.sites.items():
                weight = model.get_submodule(site).weight
                weight += weights[expert.name] * factors.dense()
    return model


@pytest.mark.parametrize("kind", ["llama", "t5"])
@torch.no_grad()
def test_nla_is_the_sum_with_weights_that_sum_to_one(kind: str, mixed: Any) -> None:
    lm = language(kind)
    wanted = by_hand(kind, mixed[kind], {name: w / 1.8 for name, w in WEIGHTS.items()})
    with attach_loras(lm.model, experts(kind, lm.model, mixed[kind])) as mixture:
        mixture.set_weights(Normalised().weigh(WEIGHTS))
        found = outputs(lm.model, requests())
    torch.testing.assert_close(found, outputs(wanted, requests()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@torch.no_grad()
def test_pefts_cat_is_the_exact_sum_and_leaves_nothing(kind: str, mixed: Any) -> None:
    lm = language(kind)
    before = weights_hash(lm.model)
    with merged_by_peft(lm, mixed[kind], WEIGHTS, "cat"):
        found = outputs(lm.model, requests())
    wanted = outputs(by_hand(kind, mixed[kind], WEIGHTS), requests())
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert weights_hash(lm.model) == before
    assert not hasattr(lm.model, "peft_config")


@torch.no_grad()
def test_all_of_pefts_merges_run_and_each_is_another(alike: Any) -> None:
    lm = language()
    found: dict[str, Any] = {}
    for way in PEFT_WAYS:
        with merged_by_peft(lm, alike, WEIGHTS, way, density=0.5):
            found[way] = outputs(lm.model, requests())
    names = list(found)
    for i, one in enumerate(names):
        assert bool(found[one].isfinite().all()), one
        assert not any(torch.equal(found[one], found[two]) for two in names[:i]), one
    with merged_by_peft(lm, alike, WEIGHTS, "dare_ties", density=0.5):
        assert torch.equal(outputs(lm.model, requests()), found["dare_ties"]), "by the seed"


def test_merges_that_cannot_be_are_refused(mixed: Any, alike: Any, tmp_path: Path) -> None:
    lm = language()
    before = weights_hash(lm.model)

    def refused(folders: Any, weights: Any, way: Any, message: str) -> None:
        with (
            pytest.raises(ComposerError, match=message),
            merged_by_peft(lm, folders, weights, way),
        ):
            pass
        assert weights_hash(lm.model) == before

    refused(mixed["llama"], WEIGHTS, "linear", "cannot merge ada, ink, sun by 'linear'")
    refused(alike, WEIGHTS, "median", "no merge 'median'")
    refused(alike, {"ada": 1.0}, "cat", "one for each")
    begun = {name: tmp_path / name for name in alike}
    for name, folder in alike.items():
        shutil.copytree(folder, begun[name])
        config = begun[name] / "adapter_config.json"
        fields = json.loads(config.read_text()) | {"init_lora_weights": "pissa"}
        config.write_text(json.dumps(fields))
    refused(begun, WEIGHTS, "cat", "began as 'pissa'.* plain LoRA")


@torch.no_grad()
def test_factors_are_added_up_apart(alike: Any, mixed: Any) -> None:
    lm = language()
    loras = experts("llama", lm.model, alike)
    merged = merge_factors(loras, WEIGHTS)
    for site, factors in merged.sites.items():
        down = sum(WEIGHTS[e.name] * e.sites[site].down for e in loras)
        up = sum(WEIGHTS[e.name] * e.sites[site].up for e in loras)
        # all have the scale 2
        torch.testing.assert_close(factors.dense(), 2.0 * up @ down)
    with pytest.raises(ComposerError, match="differ in ranks or modules"):
        merge_factors(experts("llama", lm.model, mixed["llama"]), WEIGHTS)


def test_a_search_finds_known_weights_within_its_bounds() -> None:
    best = {"a": 0.8, "b": -0.4, "c": 9.0}

    def loss(weights: Any) -> float:
        assert all(abs(weight) <= BOUND for weight in weights.values())
        return 10 * sum((weights[name] - best[name]) ** 2 for name in best)

    found = search(list(best), loss, tries=300, seed=0)
    assert found.tries == 300
    assert found.weights["a"] == pytest.approx(0.8, abs=0.05)
    assert found.weights["b"] == pytest.approx(-0.4, abs=0.05)
    assert found.weights["c"] == pytest.approx(BOUND, abs=0.05)
    assert search(list(best), loss, tries=7, seed=0).tries == 7


@pytest.mark.parametrize(
    ("kind", "adding"), [("llama", "changes"), ("llama", "factors"), ("t5", "changes")]
)
def test_lorahub_is_better_than_nobody_and_leaves_nothing(
    kind: str, adding: Any, alike: Any, mixed: Any
) -> None:
    lm = language(kind)
    before = weights_hash(lm.model)
    loras = experts(kind, lm.model, alike if kind == "llama" else mixed["t5"])
    found = lorahub(lm, loras, records(), adding=adding, tries=40)
    assert found.weights.keys() == WEIGHTS.keys()
    assert weights_hash(lm.model) == before
    encoder = lm.start is not None
    samples = encode(records(), lm.tokenizer, 64, encoder=encoder).samples
    batch = collate([[sample] for sample in samples], lm.pad, start=lm.start)
    bare = mean_loss(lm, batch)
    if adding == "changes":
        with attach_loras(lm.model, loras) as mixture:
            mixture.set_weights(found.weights)
            again = mean_loss(lm, batch)
    else:
        with attach_loras(lm.model, [merge_factors(loras, found.weights)]):
            again = mean_loss(lm, batch)
    penalty = 0.05 * sum(abs(w) for w in found.weights.values()) / 3
    assert found.loss == pytest.approx(again + penalty, rel=1e-4)
    assert again < bare
    with pytest.raises(ComposerError, match="nothing to search"):
        lorahub(lm, loras, [])
