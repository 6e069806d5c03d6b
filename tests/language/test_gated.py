"""Gates over PEFT's LoRAs on Llama, Mistral and T5: PEFT is the oracle, and what must never change
does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from language_loras import MODELS, experts, make_lora, outputs, requests, three_loras
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.language.gated import (
    Sight,
    answering,
    attach_loras,
    check_settings,
    look,
    sight_of,
)
from composer.language.parts import find_adapters, parts_of, read_adapters, weights_hash
from composer.mixture import GRANULARITIES, GateSettings, LearnedGate, Mixture
from composer.mixture.build import new_gates

KINDS = tuple(MODELS)
MEAN, EXPERTS = GateSettings(), GateSettings(input="experts")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    return {kind: three_loras(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def gated(
    kind: str,
    folders: dict[str, dict[str, Path]],
    settings: GateSettings | None = MEAN,
    granularity: Any = "block",
) -> Iterator[Any]:
    model = MODELS[kind]()
    mixture = attach_loras(model, experts(kind, model, folders[kind]), granularity=granularity)
    if settings is not None:
        put_gates(mixture, model, settings)
    return model, mixture


def put_gates(mixture: Mixture, model: Any, settings: GateSettings) -> dict[str, LearnedGate]:
    """Gates that give other weights for each input."""
    check_settings(settings)
    wanted = dict.fromkeys(mixture.models, settings)
    look(mixture, sight(model, torch.ones(3, 6)))
    gates = new_gates(mixture, wanted, lambda: outputs(model, requests()), seed=0)
    with torch.no_grad():
        for gate in gates.values():
            gate.e.mul_(300)
    mixture.set_gates(gates)
    return gates


def sight(model: Any, mask: Tensor, answer: int = 0) -> Sight:
    """Of a request that T5 is to answer with so many tokens."""
    found = sight_of(mask, encoder=model.config.is_encoder_decoder)
    if found.given is None:
        return found
    return Sight(request=nn.functional.pad(found.request, (0, answer)), given=found.given)


def by_peft(kind: str, folder: Path) -> Any:
    import peft

    return peft.PeftModel.from_pretrained(MODELS[kind](), str(folder)).eval()


def said(mixture: Mixture, run: Any) -> dict[str, Tensor]:
    with mixture.record_weights() as tape:
        run()
    return dict(tape)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_nobody_is_the_base_and_detaching_restores_it(kind: str, folders: Any) -> None:
    model, mixture = gated(kind, folders)
    base = outputs(MODELS[kind](), requests())
    look(mixture, sight(model, torch.ones(3, 6)))
    assert not torch.equal(outputs(model, requests()), base)
    for name in mixture.names:
        mixture.toggle(name, False)
    assert torch.equal(outputs(model, requests()), base)
    mixture.detach()
    assert torch.equal(outputs(model, requests()), base)
    assert weights_hash(model) == weights_hash(MODELS[kind]())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ada", "ink", "sun"])
@torch.no_grad()
def test_one_alone_is_what_peft_makes_of_it(kind: str, name: str, folders: Any) -> None:
    model, mixture = gated(kind, folders)
    for other in mixture.names:
        mixture.toggle(other, other == name)
    look(mixture, sight(model, torch.ones(3, 6), 4))
    answer = requests(3, 4)
    wanted = outputs(by_peft(kind, folders[kind][name]), requests(), answer)
    torch.testing.assert_close(outputs(model, requests(), answer), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_dora_is_what_peft_makes_of_it(tmp_path: Path) -> None:
    dora = make_lora("llama", tmp_path / "dora", 1, use_dora=True)
    model, mixture = gated("llama", {"llama": {"dora": dora}}, settings=None)
    mixture.set_weights({"dora": 1.0})
    wanted = outputs(by_peft("llama", dora), requests())
    torch.testing.assert_close(outputs(model, requests()), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_even_is_pefts_cat_at_one_nth(kind: str, folders: Any) -> None:
    import peft

    names = list(folders[kind])
    wrapped: Any = by_peft(kind, folders[kind]["ada"])
    wrapped = peft.PeftModel.from_pretrained(MODELS[kind](), str(folders[kind]["ada"]), "ada")
    for name in names[1:]:
        wrapped.load_adapter(str(folders[kind][name]), name)
    # "cat" is the exact sum; "linear" would add up the factors apart, with products across LoRAs
    wrapped.add_weighted_adapter(names, [1 / 3] * 3, "even", combination_type="cat")
    wrapped.set_adapter("even")
    wanted = outputs(wrapped.eval(), requests())

    model, mixture = gated(kind, folders, settings=None)
    mixture.set_weights(dict.fromkeys(names, 1 / 3))
    torch.testing.assert_close(outputs(model, requests()), wanted, atol=1e-5, rtol=1e-5)
    # and so act gates that have learnt nothing
    gates = put_gates(mixture, model, MEAN)
    with torch.no_grad():
        for gate in gates.values():
            gate.e.zero_()
    assert all(all(unit.present) for unit in mixture.units.values())
    torch.testing.assert_close(outputs(model, requests()), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_others_share_what_one_leaves(kind: str, folders: Any) -> None:
    model, mixture = gated(kind, folders)
    look(mixture, sight(model, torch.ones(3, 6)))
    first = next(iter(mixture.units))
    before = said(mixture, lambda: outputs(model, requests()))
    mixture.toggle("ink", False)
    after = said(mixture, lambda: outputs(model, requests()))
    assert all(float(weights[..., 1].abs().max()) == 0 for weights in after.values())
    for weights in after.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    # the first unit sees the same as before: its others keep their proportions
    kept = before[first][..., [0, 2]]
    torch.testing.assert_close(after[first][..., [0, 2]], kept / kept.sum(-1, keepdim=True))


def padded(ids: Tensor, left: int, right: int, pad: int = 257) -> tuple[Tensor, Tensor]:
    whole = nn.functional.pad(ids, (left, right), value=pad)
    mask = nn.functional.pad(torch.ones_like(ids), (left, right), value=0)
    return whole, mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [MEAN, EXPERTS], ids=["mean", "experts"])
@torch.no_grad()
def test_padding_changes_nothing(kind: str, settings: GateSettings, folders: Any) -> None:
    model, mixture = gated(kind, folders, settings, "layer")
    look(mixture, sight(model, torch.ones(3, 6), 2))
    bare = outputs(model, requests(), requests(3, 2))
    ids, mask = padded(requests(), 0, 5)
    look(mixture, sight(model, mask, 2))
    found = outputs(model, ids, requests(3, 2), attention_mask=mask)
    found = found if kind == "t5" else found[:, :6]
    torch.testing.assert_close(found, bare, atol=1e-5, rtol=1e-4)


def gates_that_are_allowed() -> list[tuple[str, str, GateSettings]]:
    """All but those that test_what_words_cannot_give_is_refused names."""
    found = [(k, g, s) for k in KINDS for g in GRANULARITIES for s in (MEAN, EXPERTS)]
    return [
        (kind, granularity, settings)
        for kind, granularity, settings in found
        if not (settings is EXPERTS and granularity == "network")
    ]


@pytest.mark.parametrize(("kind", "granularity", "settings"), gates_that_are_allowed())
@torch.no_grad()
def test_with_a_cache_and_without_the_same_is_written(
    kind: str, granularity: Any, settings: GateSettings, folders: Any
) -> None:
    model, mixture = gated(kind, folders, settings, granularity)
    ids, mask = padded(requests(), 3, 0)
    beams = 2 if granularity == "block" else 1
    made: list[Any] = []
    for cache in (True, False):
        with answering(mixture, sight(model, mask)):
            made.append(
                model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=4,
                    use_cache=cache,
                    num_beams=beams,
                    do_sample=False,
                    eos_token_id=None,
                    output_scores=True,
                    return_dict_in_generate=True,
                )
            )
    with_cache, without = made
    assert torch.equal(with_cache.sequences, without.sequences)
    for one, two in zip(with_cache.scores, without.scores, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_is_learnt_is_what_is_written(kind: str, folders: Any) -> None:
    """The logits of one pass over request and answer, as in training, are those of the generation,
    one token after the other."""
    model, mixture = gated(kind, folders, MEAN)
    ids = requests()
    mask = torch.ones_like(ids)
    with answering(mixture, sight(model, mask)):
        made = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False,
            eos_token_id=None, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    told = torch.stack(made.logits, dim=1)
    if kind == "t5":
        answer = made.sequences[:, 1:]
        look(mixture, sight(model, mask, 5))
        found = outputs(model, ids, answer)[:, :-1]
    else:
        request = (torch.arange(made.sequences.shape[1]) < 6).long().expand(3, -1)
        look(mixture, Sight(request=request))
        found = outputs(model, made.sequences)[:, 5:-1]
    torch.testing.assert_close(found, told, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_units_come_in_the_order_of_the_calls(kind: str, tmp_path: Path) -> None:
    folder = make_lora(kind, tmp_path / "all", 1, targets="all-linear")
    for granularity in GRANULARITIES:
        model = MODELS[kind]()
        mixture = attach_loras(
            model, experts(kind, model, {"all": folder}), granularity=granularity
        )
        put_gates(mixture, model, MEAN)
        called = said(mixture, lambda model=model: outputs(model, requests()))
        assert list(called) == list(mixture.units), granularity
        wanted = {"network": 1, "block": 2, "layer": 4, "matrix": 14}[granularity]
        if kind == "t5":
            wanted = {"network": 2, "block": 4, "layer": 10, "matrix": 36}[granularity]
        assert len(called) == wanted


def test_the_units_are_layers_and_their_parts(folders: Any) -> None:
    def units(kind: str, granularity: Any) -> list[str]:
        return list(gated(kind, folders, None, granularity)[1].units)

    assert units("llama", "block") == ["model.layers.0", "model.layers.1"]
    assert units("mistral", "layer")[:2] == ["model.layers.0.self_attn", "model.layers.0.mlp"]
    assert units("t5", "network") == ["encoder", "decoder"]
    assert units("t5", "layer")[4:7] == [f"decoder.block.0.layer.{i}" for i in range(3)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (GateSettings(time=True), "no timestep"),
        (GateSettings(input="placed"), "no places"),
        (GateSettings(reduce="flatten"), "bound to its length"),
    ],
)
def test_what_words_cannot_give_is_refused(settings: GateSettings, message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        check_settings(settings)


def test_a_gate_told_of_other_tokens_says_so(folders: Any) -> None:
    model, mixture = gated("llama", folders)
    look(mixture, Sight(request=torch.ones(3, 4)))
    with pytest.raises(ComposerError, match=re.escape("(3, 4)")):
        outputs(model, requests())


def test_adapters_are_found_and_wrong_ones_refused(folders: Any, tmp_path: Path) -> None:
    home = folders["llama"]["ada"].parent
    assert find_adapters([home, tmp_path]) == folders["llama"]
    assert list(find_adapters([home / "ada"])) == ["ada"]
    model = MODELS["llama"]()
    with pytest.raises(ComposerError, match=r"has no adapter_model\.safetensors"):
        read_adapters({"none": tmp_path}, model, "tiny")
    with pytest.raises(ComposerError, match="made for another model"):
        read_adapters({"t5": folders["t5"]["ada"]}, model, "tiny")
    head = make_lora("llama", tmp_path / "head", 1, targets=["q_proj", "lm_head"])
    with pytest.raises(ComposerError, match="outside of the model's layers"):
        read_adapters({"head": head}, model, "tiny")


def test_the_hash_is_of_the_weights_in_either_precision() -> None:
    model = MODELS["llama"]()
    first = weights_hash(model)
    assert weights_hash(MODELS["llama"]().to(torch.bfloat16)) == first
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    assert weights_hash(model) != first
    assert set(parts_of(MODELS["t5"]())) == {"encoder", "decoder"}
