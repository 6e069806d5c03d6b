"""Training gates over LoRAs of a language model: what learns, what is written, who is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_loras import MODELS, three_loras
from language_training import STEPS, losses, records
from tiny_language import tiny_tokenizer

from composer.errors import ComposerError
from composer.fusions.gate_file import read_facts, read_gates
from composer.language.complete import Asking, complete, with_gates
from composer.language.gates_config import LoraGatesConfig
from composer.language.load import LanguageModel
from composer.language.parts import weights_hash
from composer.language.plain_lora import PlainLoraConfig
from composer.mixlora import LoraSettings
from composer.mixture import GateSettings
from composer.training.language import LanguageProgress, LanguageTraining, train_adapter
from composer.training.language.dataset import prepare_dataset
from composer.training.language.gated import LoraGates


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    return {kind: three_loras(kind, tmp_path_factory.mktemp(kind)) for kind in ("llama", "t5")}


def language(kind: str) -> LanguageModel:
    model = MODELS[kind]()
    model.requires_grad_(False)
    return LanguageModel(model=model, tokenizer=tiny_tokenizer(), name=kind)


def training(folder: Path, loras: dict[str, Path], **settings: Any) -> LanguageTraining:
    adapter = {n: settings.pop(n) for n in ("gate", "granularity", "balance") if n in settings}
    values: dict[str, Any] = {
        "output": folder / "both.safetensors",
        "adapter": LoraGatesConfig(loras=tuple(map(str, loras.values())), **adapter),
        "steps": STEPS,
        "batch_size": 3,
        "learning_rate": 1e-2,
    }
    return LanguageTraining(**{**values, **settings})


def run(kind: str, config: LanguageTraining, **more: Any) -> list[LanguageProgress]:
    return list(train_adapter(language(kind), config, **{"records": records(), **more}))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_gates_alone_learn_and_are_written(kind: str, loras: Any, tmp_path: Path) -> None:
    lm = language(kind)
    before = weights_hash(lm.model)
    settings: dict[str, Any] = {"batch_size": 9, "learning_rate": 0.05, "eval_share": 0.25}
    config = training(tmp_path, loras[kind], steps=12, **settings)
    *_, last = reports = list(train_adapter(lm, config, records=records()))
    told = [loss for loss in losses(reports, "both") if loss is not None]
    assert told[-1] < told[0], "on all rows at once"
    assert last.stage == "saved"
    assert last.path == config.output
    assert last.eval_loss is not None
    assert weights_hash(lm.model) == before
    assert not any(p.requires_grad for p in lm.model.parameters())

    facts = read_facts(config.output)
    assert [expert.name for expert in facts.experts] == ["ada", "ink", "sun"]
    assert (facts.model, facts.model_hash) == (kind, before)
    assert set(facts.settings) == ({"model"} if kind == "llama" else {"encoder", "decoder"})
    assert facts.training["steps"] == 12
    assert facts.training["settings"]["adapter"]["loras"] == ["ada", "ink", "sun"]
    assert str(tmp_path) not in str(facts.training)
    assert facts.training["eval_loss"] == pytest.approx(last.eval_loss, rel=1e-4)
    load = reports[-2].load
    assert sum(load) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_what_is_measured_is_what_the_file_gives(kind: str, loras: Any, tmp_path: Path) -> None:
    """The loss of the written file on the same records, by a pass of our own without padding."""
    config = training(tmp_path, loras[kind])
    *_, last = run(kind, config, eval_records=records(mark="m"))
    lm = language(kind)
    total, tokens = 0.0, 0
    rows = prepare_dataset(lm, replace(config, batch_size=1), records=records(mark="m"))
    with with_gates(lm, config.output, list(loras[kind].values())) as mixture:
        handle = object.__new__(LoraGates)  # its way of telling gates what they may look at
        handle.model, handle.mixture = lm.model, mixture
        for number in range(len(rows.rows)):
            batch = rows.batch(number)
            handle.show(batch)
            model: Any = lm.model
            with torch.no_grad():
                logits = model(**batch.inputs("cpu")).logits[0, :-1].log_softmax(-1)
            for place, label in enumerate(batch.labels[0, 1:].tolist()):
                if label != -100:
                    total, tokens = total - float(logits[place, label]), tokens + 1
    assert last.eval_loss == pytest.approx(total / tokens, rel=1e-4)


def test_the_loss_is_cross_entropy_and_balance(loras: Any, tmp_path: Path) -> None:
    """Gates that have learnt nothing give even shares: alpha N log N."""
    for balance in (0.0, 0.5, 2.0):
        config = training(tmp_path, loras["llama"], steps=1, balance=balance)
        report = next(r for r in run("llama", config) if r.stage == "train")
        assert report.router_loss == pytest.approx(balance * 3 * math.log(3), rel=1e-3)


def test_balance_keeps_one_from_taking_over(loras: Any, tmp_path: Path) -> None:
    def largest(balance: float) -> float:
        config = training(tmp_path, loras["llama"], steps=15, balance=balance, learning_rate=0.05)
        return max([r for r in run("llama", config) if r.stage == "train"][-1].load)

    assert largest(5.0) < largest(0.0)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"gradient_checkpointing": True}),
        ("llama", {"gradient_checkpointing": True, "granularity": "matrix"}),
        ("llama", {"accumulation": 3, "batch_size": 1}),
        ("t5", {"gradient_checkpointing": True, "granularity": "layer"}),
    ],
)
def test_the_way_of_computing_changes_nothing(
    kind: str, more: dict[str, Any], loras: Any, tmp_path: Path
) -> None:
    shared = {"granularity": more["granularity"]} if "granularity" in more else {}
    one = run(kind, training(tmp_path / "one", loras[kind], balance=0.0, **shared))
    two = run(kind, training(tmp_path / "two", loras[kind], balance=0.0, **more))
    assert losses(one, "both") == pytest.approx(losses(two, "both"), rel=1e-4)


def test_a_stopped_training_over_an_encoder_goes_on_as_if_it_had_not(
    loras: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"checkpoint_every": 2, "schedule": "cosine"}
    whole = run("t5", training(tmp_path / "whole", loras["t5"], **settings))
    config = training(tmp_path / "parts", loras["t5"], **settings)
    first: list[LanguageProgress] = []
    for report in train_adapter(
        language("t5"),
        config,
        records=records(),
        cancelled=lambda: len(losses(first, "both")) >= 3,
    ):
        first.append(report)
    second = run("t5", replace(config, resume=True))
    assert losses(first, "both") + losses(second, "both") == losses(whole, "both")
    one, two = (read_gates(tmp_path / p / "both.safetensors") for p in ("whole", "parts"))
    for unit, named in one.tensors.items():
        assert all(torch.equal(t, two.tensors[unit][name]) for name, t in named.items())


def test_an_answer_is_the_same_with_the_loras_renamed(loras: Any, tmp_path: Path) -> None:
    import shutil

    for kind in ("llama", "t5"):
        config = training(tmp_path / kind, loras[kind], steps=2)
        run(kind, config)
        lm, asked = language(kind), records(3)
        asking = Asking(tokens=5)
        bare = complete(lm, asked, asking)
        with with_gates(lm, config.output, [loras[kind]["ada"].parent]) as mixture:
            told = complete(lm, asked, asking, gates=mixture)
            alone = [complete(lm, [one], asking, gates=mixture)[0] for one in asked]
        assert told == alone, "whoever else asks"
        assert complete(lm, asked, asking) == bare
        for name, other in (("ada", "x"), ("ink", "ada"), ("sun", "ink")):
            shutil.copytree(loras[kind][name], tmp_path / kind / "moved" / other)
        with with_gates(lm, config.output, [tmp_path / kind / "moved"]) as mixture:
            assert complete(lm, asked, asking, gates=mixture) == told


def test_other_loras_and_bases_are_refused(loras: Any, tmp_path: Path) -> None:
    config = training(tmp_path, loras["llama"], steps=1)
    run("llama", config)
    lm = language("llama")

    def refused(who: LanguageModel, folders: list[Path], message: str) -> None:
        with pytest.raises(ComposerError, match=message), with_gates(who, config.output, folders):
            pass

    home = loras["llama"]["ada"].parent
    refused(lm, [loras["llama"]["ada"], loras["llama"]["ink"]], "'sun', which is not here")
    other = three_loras("llama", tmp_path / "others")
    (other["sun"] / "adapter_model.safetensors").write_bytes(
        (other["ada"] / "adapter_model.safetensors").read_bytes()
    )
    refused(lm, [tmp_path / "others"], "'sun' is another file")
    with torch.no_grad():
        lm.model.get_parameter("model.norm.weight").mul_(2)
    refused(lm, [home], "trained on llama")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": Path("gates")}, "no gate file"),
        ({"packing": True}, "without packing"),
        ({"granularity": "word"}, "granularity 'word'"),
        ({"balance": -1.0}, "balance is -1"),
        ({"gate": GateSettings(reduce="flatten")}, "bound to its length"),
    ],
)
def test_wrong_settings_are_refused(
    change: dict[str, Any], message: str, loras: Any, tmp_path: Path
) -> None:
    with pytest.raises(ComposerError, match=message):
        run("llama", training(tmp_path, loras["llama"], **change))


def test_one_lora_is_none_to_choose_from(loras: Any) -> None:
    with pytest.raises(ComposerError, match="two LoRAs or more"):
        LoraGatesConfig(loras=(str(loras["llama"]["ada"]),))


def test_the_settings_are_plain_values(loras: Any, tmp_path: Path) -> None:
    config = training(tmp_path, loras["llama"], gate=GateSettings(activation="free", bias=True))
    assert LanguageTraining.from_json(config.to_json()) == config


def test_t5_learns_a_lora_of_its_own(tmp_path: Path) -> None:
    config = LanguageTraining(
        output=tmp_path / "mine",
        adapter=PlainLoraConfig(lora=LoraSettings(rank=4, alpha=8.0, dropout=0.0)),
        steps=30,
        batch_size=4,
        learning_rate=1e-2,
    )
    told = [loss for loss in losses(run("t5", config), "mine") if loss is not None]
    assert sum(told[-5:]) < 0.9 * sum(told[:5])
    assert (config.output / "adapter_config.json").is_file()
    with pytest.raises(ComposerError, match="MixLoRA is for causal models"):
        run("t5", LanguageTraining(output=tmp_path / "mix", steps=1))
