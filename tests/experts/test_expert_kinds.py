"""Each kind of adapter adds exactly what the library that writes it adds, and bad ones are refused.

LyCORIS and PEFT are the oracles, with random weights of every factoring they have.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import save
from peft import (
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    get_peft_model,
)
from peft.tuners.boft import layer as boft_layer
from safetensors.torch import load_file
from torch import nn

from composer.errors import ComposerError
from composer.experts import Expert, ModuleNames, read_expert, write_lora
from composer.experts.info import LoraInfo
from composer.mixture import attach

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lycoris import modules as lycoris


class Net(nn.Module):
    """One module of each shape that weights have."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(24, 16)
        self.tall = nn.Linear(16, 32, bias=False)
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.point = nn.Conv2d(16, 8, 1)


SITES = ("wide", "tall", "conv", "point")


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


@pytest.fixture
def names(net: Net) -> ModuleNames:
    return ModuleNames.of({"unet": net}, model="net")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapter.safetensors"


def randomise(module: nn.Module, size: float = 0.3) -> nn.Module:
    """Random numbers for what a trainer trains; zeros would hide a factor in the wrong place."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "dora" in name:
                parameter.mul_(1 + size * torch.rand_like(parameter))
            elif name == "scalar":
                parameter.fill_(0.7)
            else:
                parameter.copy_(size * torch.randn_like(parameter))
    return module.eval()


def from_lycoris(kind: str, net: Net, path: Path, **settings: Any) -> dict[str, nn.Module]:
    """Write a file of LyCORIS', with an adapter for each module; these, by site."""
    made = getattr(lycoris, kind)
    hosts = copy.deepcopy(net) if kind == "FullModule" else net
    adapters: dict[str, Any] = {
        site: made(f"lora_unet_{site}", getattr(hosts, site), **settings) for site in SITES
    }
    for adapter in adapters.values():
        if kind == "FullModule":  # takes the weights away, and only then has whole ones
            adapter.apply_to()
        randomise(adapter)
    save(
        path,
        {
            f"lora_unet_{site}.{slot}": tensor.detach().clone()
            for site, adapter in adapters.items()
            for slot, tensor in adapter.state_dict().items()
        },
    )
    return adapters


@torch.no_grad()
def assert_same(
    expert: Expert,
    net: Net,
    adapted: dict[str, nn.Module],
    dtype: torch.dtype = torch.float64,
) -> None:
    """What the mixture adds to each module's output is what the adapted module adds.

    The module's own call is what was trained: LyCORIS 4.1 merges LoHa and LoKr with s twice.
    """
    assert set(expert.sites) == {f"unet.{site}" for site in adapted}
    assert (expert.unmatched, expert.share) == ((), 1.0)
    net = net.to(dtype)
    for site, module in adapted.items():
        host, factors = getattr(net, site), expert.sites[f"unet.{site}"]
        ins = host.weight.shape[1]
        seen = torch.randn(3, ins, *(5 for _ in host.weight.shape[2:]), dtype=dtype)
        added = module.to(dtype)(seen) - host(seen)
        mixed = copy.deepcopy(net)
        attach({"unet": mixed}, {"one": {f"unet.{site}": factors}})
        error = (getattr(mixed, site)(seen) - host(seen) - added).norm() / added.norm()
        assert float(error) < (1e-5 if dtype == torch.float64 else 1e-4), (site, float(error))


LYCORIS = {
    "LoRA": ("LoConModule", {"lora_dim": 4, "alpha": 2}),
    "LoRA, rs": ("LoConModule", {"lora_dim": 4, "alpha": 2, "rs_lora": True}),
    "LoRA, scalar": ("LoConModule", {"lora_dim": 4, "alpha": 2, "use_scalar": True}),
    "LoRA, Tucker": ("LoConModule", {"lora_dim": 3, "alpha": 2, "use_tucker": True}),
    "LoHa": ("LohaModule", {"lora_dim": 2, "alpha": 1}),
    "LoHa, thick": ("LohaModule", {"lora_dim": 6, "alpha": 4}),
    "LoHa, Tucker": ("LohaModule", {"lora_dim": 3, "alpha": 2, "use_tucker": True}),
    "LoKr": ("LokrModule", {"lora_dim": 2, "alpha": 1, "factor": 4}),
    "LoKr, both": ("LokrModule", {"lora_dim": 1, "alpha": 3, "decompose_both": True}),
    "LoKr, whole": ("LokrModule", {"lora_dim": 9, "alpha": 3, "full_matrix": True}),
    "LoKr, Tucker": ("LokrModule", {"lora_dim": 1, "alpha": 3, "use_tucker": True, "factor": 2}),
    "LoKr, uneven": ("LokrModule", {"lora_dim": 1, "unbalanced_factorization": True}),
    "GLoRA": ("GLoRAModule", {"lora_dim": 3, "alpha": 2}),
    "GLoRA, thick": ("GLoRAModule", {"lora_dim": 12, "alpha": 2}),
    "DoRA": ("LoConModule", {"lora_dim": 3, "weight_decompose": True}),
    "DoRA, inputs": ("LoConModule", {"lora_dim": 3, "weight_decompose": True, "wd_on_out": False}),
    "DoRA of LoHa": ("LohaModule", {"lora_dim": 2, "weight_decompose": True}),
    "DoRA of LoKr": ("LokrModule", {"lora_dim": 2, "weight_decompose": True, "wd_on_out": False}),
    "(IA)³": ("IA3Module", {}),
    "(IA)³, inputs": ("IA3Module", {"train_on_input": True}),
    "OFT": ("DiagOFTModule", {"lora_dim": 4}),
    "OFT, bounded": ("DiagOFTModule", {"lora_dim": 4, "constraint": 0.01, "rescaled": True}),
    "BOFT": ("ButterflyOFTModule", {"lora_dim": 4}),
    "BOFT, rescaled": ("ButterflyOFTModule", {"lora_dim": 2, "constraint": 1, "rescaled": True}),
}


@pytest.mark.parametrize("case", LYCORIS)
def test_what_lycoris_adds(case: str, net: Net, names: ModuleNames, path: Path) -> None:
    kind, settings = LYCORIS[case]
    adapters = from_lycoris(kind, net, path, **settings)
    # LyCORIS inverts in float32, whatever the numbers are.
    dtype = torch.float32 if "OFT" in case else torch.float64
    assert_same(read_expert(path, names), net, adapters, dtype)


def test_plain_lycoris_names(net: Net, names: ModuleNames, path: Path) -> None:
    """Its wrapper and SimpleTuner write `lycoris_`, and leave the part out."""
    adapters = from_lycoris("LoConModule", net, path, lora_dim=2)
    tensors = {n.replace("lora_unet_", "lycoris_"): t for n, t in load_file(path).items()}
    assert_same(read_expert(save(path, tensors), names), net, adapters)


def test_whole_differences_and_biases(net: Net, names: ModuleNames, path: Path) -> None:
    """LyCORIS' full, and a bias beside factors, as ComfyUI reads it."""
    full = from_lycoris("FullModule", net, path)
    assert_same(read_expert(path, names), net, full)
    assert read_expert(path, names).info.kinds == ("full difference", "biases")


@pytest.mark.parametrize("begun", ["principal", "last", "middle"])
def test_tlora(begun: str, net: Net, names: ModuleNames, path: Path) -> None:
    """The file does not say from which singular values it began: that is seen from P."""
    adapters: dict[str, Any] = {
        site: lycoris.TLoraModule(
            f"lora_unet_{site}", getattr(net, site), lora_dim=3, alpha=2, sig_type=begun
        )
        for site in ("wide", "tall", "point")
    }
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for site, adapter in adapters.items():
            for parameter in adapter.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for slot, tensor in adapter.eval().state_dict().items():
                tensors[f"lora_unet_{site}.{slot}"] = tensor.detach().clone()
    # Double precision would begin from the same numbers: they are buffers.
    assert_same(read_expert(save(path, tensors), names), net, adapters, torch.float32)
    torch.manual_seed(3)
    tensors["lora_unet_wide.p_layer.weight"] = torch.randn(16, 3)
    with pytest.raises(ComposerError, match="did not begin as a part of this model's weight"):
        read_expert(save(path, tensors), names)


def test_the_norms_that_lycoris_trains(net: Net, names: ModuleNames, path: Path) -> None:
    """They are named and left out, and what stands beside them is exact."""
    adapters = from_lycoris("LoConModule", net, path, lora_dim=2)
    norm = lycoris.NormModule("lora_unet_norm1", nn.LayerNorm(16))
    tensors = {f"lora_unet_norm1.{slot}": tensor for slot, tensor in norm.state_dict().items()}
    save(path, load_file(path) | tensors)
    with pytest.raises(ComposerError, match=r"changes norms.*lora_unet_norm1"):
        read_expert(path, names)
    expert = read_expert(path, names, partial=True)
    assert (set(expert.unmatched), expert.share) == (set(tensors), 0.8)
    assert expert.info.kinds == ("LoRA", "norms")
    assert_same(replace(expert, unmatched=(), modules=4), net, adapters)


def test_a_bias_alone(net: Net, names: ModuleNames, path: Path) -> None:
    bias = torch.randn(16)
    expert = read_expert(save(path, {"lora_unet_wide.diff_b": bias}), names)
    adapted = copy.deepcopy(net.wide)
    adapted.bias.add_(bias)
    assert_same(expert, net, {"wide": adapted})


PEFT = {
    "LoRA": (LoraConfig, {"r": 3, "lora_alpha": 5}),
    "DoRA": (LoraConfig, {"r": 3, "lora_alpha": 5, "use_dora": True}),
    "biases": (LoraConfig, {"r": 3, "lora_alpha": 5, "lora_bias": True}),
    "PiSSA": (LoraConfig, {"r": 3, "lora_alpha": 5, "init_lora_weights": "pissa"}),
    "PiSSA, thick": (LoraConfig, {"r": 9, "init_lora_weights": "pissa", "use_rslora": True}),
    "OLoRA": (LoraConfig, {"r": 3, "lora_alpha": 5, "init_lora_weights": "olora"}),
    "orthogonal": (LoraConfig, {"r": 4, "init_lora_weights": "orthogonal"}),
    "LoHa": (LoHaConfig, {"r": 2, "alpha": 3}),
    "LoHa, Tucker": (LoHaConfig, {"r": 2, "alpha": 3, "use_effective_conv2d": True}),
    "LoKr": (LoKrConfig, {"r": 2, "alpha": 3, "decompose_both": True}),
    "LoKr, whole": (LoKrConfig, {"r": 20, "alpha": 3, "rank_pattern": {"tall": 10}}),
    "(IA)³": (IA3Config, {"feedforward_modules": []}),
    "(IA)³, inputs": (IA3Config, {"feedforward_modules": ["wide", "tall"]}),
    "OFT": (OFTConfig, {"oft_block_size": 4}),
    "OFT, short": (OFTConfig, {"r": 2, "oft_block_size": 0, "num_cayley_neumann_terms": 2}),
    "OFT, long": (OFTConfig, {"oft_block_size": 8, "num_cayley_neumann_terms": 7}),
    "OFT, exact": (OFTConfig, {"oft_block_size": 4, "use_cayley_neumann": False}),
    "OFT, one block": (OFTConfig, {"oft_block_size": 8, "block_share": True}),
    "OFT, bounded": (OFTConfig, {"oft_block_size": 4, "coft": True, "eps": 0.8}),
    "BOFT": (BOFTConfig, {"boft_block_size": 4}),
    "BOFT, two stages": (BOFTConfig, {"boft_block_size": 4, "boft_n_butterfly_factor": 2}),
    "BOFT, three stages": (
        BOFTConfig,
        {"boft_block_size": 0, "boft_block_num": 4, "boft_n_butterfly_factor": 3},
    ),
    "patterns": (
        LoraConfig,
        {
            "r": 3,
            "lora_alpha": 5,
            "rank_pattern": {"wide|point": 2},
            "alpha_pattern": {"^(t[ae]l+)$": 1, r"(co|wi)\w{2,}": 9, "wide": 7},
        },
    ),
}


class BlockDiagonal:
    """What PEFT's kernel for a GPU computes: matrices (m, blocks, n, n) along m diagonals."""

    @staticmethod
    def apply(blocks: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.block_diag(*stage) for stage in blocks])


@pytest.mark.parametrize("case", PEFT)
def test_what_peft_adds(
    case: str, net: Net, names: ModuleNames, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without this kernel PEFT leaves all stages of BOFT but the first out.
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", BlockDiagonal)
    kind, settings = PEFT[case]
    sites = [
        site
        for site in SITES
        if (case != "biases" or site != "tall")  # which has none
        and (settings.get("init_lora_weights") is None or getattr(net, site).weight.ndim == 2)
        and ("IA" not in case or getattr(net, site).weight.ndim == 2)
        and (kind is not OFTConfig or site != "conv")  # PEFT merges something else than it trains
    ]
    torch.manual_seed(1)
    config: Any = kind(target_modules=sites, **settings)
    model = get_peft_model(copy.deepcopy(net), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "original" not in name and parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path.parent)
    # Read by PEFT anew: some kinds change the base when they begin.
    loaded = PeftModel.from_pretrained(copy.deepcopy(net), path.parent).merge_and_unload().eval()
    expert = read_expert(path.with_name("adapter_model.safetensors"), names)
    assert_same(expert, net, {site: getattr(loaded, site) for site in sites})


def test_a_begun_adapter_that_cannot_be_undone(net: Net, names: ModuleNames, path: Path) -> None:
    config: Any = LoraConfig(target_modules=["wide"], r=2, init_lora_weights="pissa_niter_4")
    get_peft_model(copy.deepcopy(net), config).save_pretrained(path.parent)
    with pytest.raises(ComposerError, match=r"adapter_config.*'pissa_niter_4'.*plain LoRA"):
        read_expert(path.with_name("adapter_model.safetensors"), names)


def peft_file(net: Net, path: Path, config: Any) -> tuple[Path, dict[str, Any]]:
    """A file of PEFT's, and its config."""
    get_peft_model(copy.deepcopy(net), config).save_pretrained(path.parent)
    fields = json.loads(path.with_name("adapter_config.json").read_text())
    return path.with_name("adapter_model.safetensors"), fields


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_version": "0.17.1"}, r"adapter_config.*PEFT before 0.18.*Merge it"),
        ({"peft_version": None}, "PEFT before 0.18"),
        ({"num_cayley_neumann_terms": 0}, "terms is 0; 1 to 100"),
        ({"num_cayley_neumann_terms": "many"}, "num_cayley_neumann_terms 'many' is no number"),
        ({"coft": True, "eps": None}, "eps 'None' is no number"),
    ],
)
def test_an_oft_of_which_the_config_says_too_little(
    change: dict[str, Any], message: str, net: Net, names: ModuleNames, path: Path
) -> None:
    file, fields = peft_file(net, path, OFTConfig(target_modules=["wide"], oft_block_size=4))
    path.with_name("adapter_config.json").write_text(json.dumps(fields | change))
    with pytest.raises(ComposerError, match=message):
        read_expert(file, names)


def test_an_oft_that_peft_trains_otherwise_than_it_merges(
    net: Net, names: ModuleNames, path: Path
) -> None:
    file, _ = peft_file(net, path, OFTConfig(target_modules=["conv"], oft_block_size=4))
    with pytest.raises(ComposerError, match=r"convolution wider than 1×1.*conv"):
        read_expert(file, names)


def test_the_places_that_an_old_boft_repeats(net: Net, names: ModuleNames, path: Path) -> None:
    """PEFT wrote its permutations too, once; others than these mean another adapter."""
    file, _ = peft_file(net, path, BOFTConfig(target_modules=["wide"], boft_block_size=4))
    tensors = load_file(file)
    places = torch.eye(24)[None]
    key = "base_model.model.wide.boft_P"
    assert read_expert(save(file, {**tensors, key: places}), names).unmatched == ()
    with pytest.raises(ComposerError, match="another order of inputs"):
        read_expert(save(file, {**tensors, key: places.flip(1)}), names)


def test_glora_of_old(net: Net, names: ModuleNames, path: Path) -> None:
    """Before LyCORIS 2 the four were the other way round: s (W a2 a1 + b2 b1)."""
    adapters = from_lycoris("GLoRAModule", net, path, lora_dim=2)
    other = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    tensors = {
        name.replace(slot, other.get(slot, slot)): tensor
        for name, tensor in load_file(path).items()
        for slot in (name.split(".")[1],)
    }
    assert_same(read_expert(save(path, tensors), names), net, adapters)


def test_what_depends_on_the_weights_needs_them(net: Net, names: ModuleNames, path: Path) -> None:
    from_lycoris("DiagOFTModule", net, path, lora_dim=4)
    shapes = ModuleNames(model="far", shapes=names.shapes)
    with pytest.raises(ComposerError, match=r"unet.conv of 'far' is quantised or not in memory"):
        read_expert(path, shapes)


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_a_changed_bias_is_written_again(
    naming: Any, net: Net, names: ModuleNames, path: Path
) -> None:
    full = from_lycoris("FullModule", net, path)
    expert = read_expert(path, names)
    again = path.with_name("again.safetensors")
    write_lora(again, expert.sites, LoraInfo(), naming=naming, dtype=torch.float32)
    assert_same(read_expert(again, names), net, full)


def test_reading_leaves_the_model_as_it_is(net: Net, names: ModuleNames, path: Path) -> None:
    """Also while other experts are attached: what a file adds is of the model's own weights."""
    from_lycoris("LoConModule", net, path, lora_dim=3, weight_decompose=True)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    bare = read_expert(path, names).sites["unet.wide"]
    mixture = attach({"unet": net}, {"one": {"unet.wide": bare}})
    again = read_expert(path, names).sites["unet.wide"]
    mixture.detach()
    assert torch.equal(bare.down, again.down) and torch.equal(bare.up, again.up)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


ONE = "lora_unet_wide."


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"hada_w1_a": (16, 2), "hada_w1_b": (2, 24), "hada_w2_a": (16, 2)}, "no hada_w2_b tensor"),
        (
            {"hada_w1_a": (16, 2), "hada_w1_b": (3, 24)}
            | {"hada_w2_a": (16, 2), "hada_w2_b": (2, 24)},
            "factors that do not fit each other",
        ),
        ({"lokr_w1": (4, 4)}, "no lokr_w2_a tensor"),
        ({"lokr_w1": (4, 4), "lokr_w2": (4, 5)}, r"unet.wide is 16×20 in the LoRA"),
        ({"lora_down.weight": (2, 24), "lora_up.weight": (16, 2), "dora_scale": (5, 1)}, "5 magni"),
        ({"diff": (16, 23)}, r"unet.wide is 16×23 in the LoRA and 16×24"),
        ({"diff": (16, 24), "diff_b": (15,)}, r"unet.wide is 15×24"),
        ({"weight": (16,)}, "no on_input tensor"),
        ({"on_input": (), "weight": (5,)}, r"unet.wide is 16×5|unet.wide is 5×24"),
        ({"oft_blocks": (4, 4, 5)}, "blocks of no known shape"),
        ({"oft_blocks": (3, 4, 4)}, r"unet.wide is 12×24"),
        ({"oft_blocks": (9, 2, 8, 8)}, "no butterfly of BOFT"),
        ({"oft_R.weight": (6, 6)}, "no adapter_config.json says how it turns"),
        ({"boft_R": (1, 6, 4, 4)}, "no boft_s tensor"),
        ({"boft_R": (1, 6, 4, 3), "boft_s": (16, 1)}, "blocks of no known shape"),
        ({"boft_R": (1, 5, 4, 4), "boft_s": (16, 1)}, r"unet.wide is 16×20"),
        ({"boft_R": (5, 6, 4, 4), "boft_s": (16, 1)}, "6 blocks that no butterfly"),
        ({"a1.weight": (24, 2), "a2.weight": (2, 24), "b1.weight": (16, 2)}, "no b2 tensor"),
        ({"lora_mid.weight": (2, 3, 3, 3), "lora_down.weight": (2, 24), "lora_up.weight": (16, 2)},
         "middle factor"),
        ({"lora_down.weight": (2, 24), "lora_up.weight": (16, 2), "diff": (16, 24)},
         "LoRA and full difference at once"),
    ],
)  # fmt: skip
def test_bad_adapters(
    slots: dict[str, tuple[int, ...]], message: str, names: ModuleNames, path: Path
) -> None:
    save(path, {ONE + slot: torch.ones(shape) for slot, shape in slots.items()})
    with pytest.raises(ComposerError, match=message) as error:
        read_expert(path, names)
    assert str(path) in str(error.value)


def test_a_huge_product_of_small_tensors_is_not_made(names: ModuleNames, path: Path) -> None:
    """LoKr's tensors multiply: shapes are compared before any product."""
    save(path, {ONE + "lokr_w1": torch.ones(3000, 3000), ONE + "lokr_w2": torch.ones(3000, 3000)})
    with pytest.raises(ComposerError, match="9000000×9000000"):
        read_expert(path, names)
