"""Files of every kind and naming that is read, written by the libraries that define them.

What a file adds is known from the library's own modules, so it can be asked whether that is read
exactly. The tests of LoRA files and `benchmarks.experts.files` share this.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from composer.experts import Expert
from composer.mixture import attach

LINEAR = ("wide", "tall")
SITES = (*LINEAR, "conv", "point")
NAMED = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
"""A module that has a name in every naming."""

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _lycoris: Any = import_module("lycoris.modules")
# Their own annotations are incomplete, or there are none.
_torch: Any = torch
_safetensors: Any = import_module("safetensors.torch")
_peft: Any = import_module("peft")
_boft: Any = import_module("peft.tuners.boft.layer")

Modules = Mapping[str, nn.Module]
"""By site: modules that give what the model with the adapter gives."""


class Net(nn.Module):
    """One module of each shape that weights have, and two with names of a U-Net's."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(24, 16)
        self.tall = nn.Linear(16, 32, bias=False)
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.point = nn.Conv2d(16, 8, 1)
        self._place(NAMED, nn.Linear(16, 16))
        self._place("down_blocks.0.resnets.0.conv1", nn.Conv2d(8, 8, 3, padding=1))

    def _place(self, name: str, module: nn.Module) -> None:
        *parents, last = name.split(".")
        place: nn.Module = self
        for parent in parents:
            if parent not in dict(place.named_children()):
                place.add_module(parent, nn.Module())
            place = place.get_submodule(parent)
        place.add_module(last, module)

    @classmethod
    def made(cls) -> Net:
        """The same at each call, and frozen."""
        _torch.manual_seed(0)
        return cls().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way of writing a file.

    write: writes into a folder a file for a net; returns its path and the adapted modules by site.
    dtype: of the comparison: single where the library computes so whatever the numbers are.
    """

    library: str
    write: Callable[[Net, Path], tuple[Path, Modules]]
    dtype: torch.dtype = torch.float64

    @property
    def bound(self) -> float:
        """The largest relative error that is exact."""
        return 1e-5 if self.dtype == torch.float64 else 1e-4


@torch.no_grad()
def errors(expert: Expert, net: Net, adapted: Modules, dtype: torch.dtype) -> dict[str, float]:
    """By site, ‖what the mixture adds to an output - what the adapted module adds‖ / ‖the latter‖.

    The module's own call is what was trained: LyCORIS 4.1 merges LoHa and LoKr with s twice.
    """
    found: dict[str, float] = {}
    net = net.to(dtype)
    for site, module in adapted.items():
        host = cast("nn.Linear | nn.Conv2d", net.get_submodule(site))
        ins, kernel = host.weight.shape[1], host.weight.shape[2:]
        seen = torch.randn(3, ins, *(5 for _ in kernel), dtype=dtype)
        added = module.to(dtype)(seen) - host(seen)
        mixed = copy.deepcopy(net)
        attach({"unet": mixed}, {"one": {f"unet.{site}": expert.sites[f"unet.{site}"]}})
        error = mixed.get_submodule(site)(seen) - host(seen) - added
        found[site] = float(error.square().sum().sqrt() / added.square().sum().sqrt())
    return found


# --- LyCORIS


def _randomise(module: nn.Module, size: float = 0.3) -> None:
    """Random numbers for what a trainer trains; zeros would hide a factor in the wrong place."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "dora" in name:
                parameter.mul_(1 + size * torch.rand_like(parameter))
            elif name == "scalar":
                parameter.fill_(0.7)
            else:
                parameter.copy_(size * torch.randn_like(parameter))


def _save_lycoris(adapters: Modules, path: Path) -> None:
    tensors = {
        f"lora_unet_{site}.{slot}": tensor.detach().clone().contiguous()
        for site, adapter in adapters.items()
        for slot, tensor in adapter.eval().state_dict().items()
    }
    _safetensors.save_file(tensors, path)


def from_lycoris(kind: str, net: Net, folder: Path, **settings: Any) -> tuple[Path, Modules]:
    """A file of LyCORIS', with an adapter of a class of its for each site."""
    made = getattr(_lycoris, kind)
    hosts = copy.deepcopy(net) if kind == "FullModule" else net
    adapters: dict[str, Any] = {
        site: made(f"lora_unet_{site}", hosts.get_submodule(site), **settings) for site in SITES
    }
    for adapter in adapters.values():
        if kind == "FullModule":  # takes the weights away, and only then has whole ones
            adapter.apply_to()
        _randomise(adapter)
    path = folder / "adapter.safetensors"
    _save_lycoris(adapters, path)
    return path, adapters


def _tlora(begun: str, net: Net, folder: Path) -> tuple[Path, Modules]:
    """The file does not say from which singular values it began."""
    adapters: dict[str, Any] = {
        site: _lycoris.TLoraModule(
            f"lora_unet_{site}", net.get_submodule(site), lora_dim=3, alpha=2, sig_type=begun
        )
        for site in (*LINEAR, "point")
    }
    with torch.no_grad():
        for adapter in adapters.values():
            for parameter in adapter.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    path = folder / "adapter.safetensors"
    _save_lycoris(adapters, path)
    return path, adapters


def _old_glora(net: Net, folder: Path) -> tuple[Path, Modules]:
    """Before LyCORIS 2 the four were the other way round: s (W a2 a1 + b2 b1)."""
    path, adapters = from_lycoris("GLoRAModule", net, folder, lora_dim=2)
    other = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    tensors: dict[str, Tensor] = {}
    for name, tensor in _safetensors.load_file(path).items():
        slot = name.split(".")[1]
        tensors[name.replace(slot, other.get(slot, slot))] = tensor
    _safetensors.save_file(tensors, path)
    return path, adapters


def _bias(net: Net, folder: Path) -> tuple[Path, Modules]:
    path, bias = folder / "adapter.safetensors", torch.randn(16)
    _safetensors.save_file({"lora_unet_wide.diff_b": bias}, path)
    adapted = copy.deepcopy(net.wide)
    assert adapted.bias is not None
    adapted.bias.add_(bias)
    return path, {"wide": adapted}


_LYCORIS: dict[str, tuple[str, dict[str, Any]]] = {
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
    "whole differences and biases": ("FullModule", {}),
}

# --- PEFT


class _BlockDiagonal:
    """What PEFT's kernel for a GPU computes: matrices (m, blocks, n, n) along m diagonals."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        return torch.stack([_torch.block_diag(*stage) for stage in blocks])


@contextmanager
def _all_stages() -> Generator[None]:
    """Without its kernel PEFT leaves all stages of BOFT but the first out."""
    with (
        patch.object(_boft, "get_fbd_cuda", lambda: True),
        patch.object(_boft, "FastBlockDiag", _BlockDiagonal),
    ):
        yield


def from_peft(
    kind: str, net: Net, folder: Path, *, sites: Sequence[str] = SITES, **settings: Any
) -> tuple[Path, Modules]:
    """A file of PEFT's, beside its config."""
    config = getattr(_peft, f"{kind}Config")(target_modules=list(sites), **settings)
    with _all_stages():
        model = _peft.get_peft_model(copy.deepcopy(net), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "original" not in name and parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        # Read by PEFT anew: some kinds change the base when they begin.
        loaded = _peft.PeftModel.from_pretrained(copy.deepcopy(net), folder)
        adapted = loaded.merge_and_unload().eval()
    return folder / "adapter_model.safetensors", {
        site: adapted.get_submodule(site) for site in sites
    }


_FLAT = (*LINEAR, "point")
_PEFT: dict[str, tuple[str, Sequence[str], dict[str, Any]]] = {
    "LoRA": ("Lora", SITES, {"r": 3, "lora_alpha": 5}),
    "LoRA, patterns": (
        "Lora",
        SITES,
        {
            "r": 3,
            "lora_alpha": 5,
            "rank_pattern": {"wide|point": 2},
            "alpha_pattern": {"^(t[ae]l+)$": 1, r"(co|wi)\w{2,}": 9, "wide": 7},
        },
    ),
    "LoRA, biases": ("Lora", ("wide", "conv", "point"), {"r": 3, "lora_bias": True}),
    "LoRA, orthogonal": ("Lora", LINEAR, {"r": 4, "init_lora_weights": "orthogonal"}),
    "DoRA": ("Lora", SITES, {"r": 3, "lora_alpha": 5, "use_dora": True}),
    "PiSSA": ("Lora", LINEAR, {"r": 3, "lora_alpha": 5, "init_lora_weights": "pissa"}),
    "PiSSA, thick": ("Lora", LINEAR, {"r": 9, "init_lora_weights": "pissa", "use_rslora": True}),
    "OLoRA": ("Lora", LINEAR, {"r": 3, "lora_alpha": 5, "init_lora_weights": "olora"}),
    "LoHa": ("LoHa", SITES, {"r": 2, "alpha": 3}),
    "LoHa, Tucker": ("LoHa", SITES, {"r": 2, "alpha": 3, "use_effective_conv2d": True}),
    "LoKr": ("LoKr", SITES, {"r": 2, "alpha": 3, "decompose_both": True}),
    "LoKr, whole": ("LoKr", SITES, {"r": 20, "alpha": 3, "rank_pattern": {"tall": 10}}),
    "(IA)³": ("IA3", LINEAR, {"feedforward_modules": []}),
    "(IA)³, inputs": ("IA3", LINEAR, {"feedforward_modules": list(LINEAR)}),
    # Of wider convolutions PEFT merges another OFT than it trains.
    "OFT": ("OFT", _FLAT, {"oft_block_size": 4}),
    "OFT, short": ("OFT", _FLAT, {"r": 2, "oft_block_size": 0, "num_cayley_neumann_terms": 2}),
    "OFT, long": ("OFT", _FLAT, {"oft_block_size": 8, "num_cayley_neumann_terms": 7}),
    "OFT, exact": ("OFT", _FLAT, {"oft_block_size": 4, "use_cayley_neumann": False}),
    "OFT, one block": ("OFT", _FLAT, {"oft_block_size": 8, "block_share": True}),
    "OFT, bounded": ("OFT", _FLAT, {"oft_block_size": 4, "coft": True, "eps": 0.8}),
    "BOFT": ("BOFT", SITES, {"boft_block_size": 4}),
    "BOFT, two stages": ("BOFT", SITES, {"boft_block_size": 4, "boft_n_butterfly_factor": 2}),
    "BOFT, three stages": (
        "BOFT",
        SITES,
        {"boft_block_size": 0, "boft_block_num": 4, "boft_n_butterfly_factor": 3},
    ),
}

# --- namings

_UNDER = NAMED.replace(".", "_")
_SGM = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
_PROCESSOR = NAMED.replace(".to_q", ".processor.to_q_lora")
_KOHYA = (".lora_down.weight", ".lora_up.weight")
_NEW = (".lora_A.weight", ".lora_B.weight")
_NAMINGS: dict[str, tuple[str, tuple[str, str]]] = {
    "kohya": (f"lora_unet_{_UNDER}", _KOHYA),
    "kohya, SGM's blocks": (f"lora_unet_{_SGM.replace('.', '_')}", _KOHYA),
    "LyCORIS' wrapper, SimpleTuner": (f"lycoris_{_UNDER}", _KOHYA),
    "diffusers": (f"unet.{NAMED}", _NEW),
    "diffusers, a U-Net alone": (NAMED, _NEW),
    "diffusers before PEFT": (f"unet.{NAMED}", (".lora.down.weight", ".lora.up.weight")),
    "diffusers' attention processors": (_PROCESSOR, (".down.weight", ".up.weight")),
    "PEFT": (f"base_model.model.{NAMED}", _NEW),
    "PEFT, with the part before": (f"unet.base_model.model.{NAMED}", _NEW),
    "PEFT, with an adapter's name": (
        f"base_model.model.{NAMED}",
        (".lora_A.default.weight", ".lora_B.default.weight"),
    ),
    "ComfyUI": (f"diffusion_model.{_SGM}", _KOHYA),
    "lora_diffusion": ("unet:0", (":down", ":up")),
}


def _named(naming: str, net: Net, folder: Path) -> tuple[Path, Modules]:
    """One LoRA of rank 3 and scale 1, in a naming."""
    name, endings = _NAMINGS[naming]
    down, up = torch.randn(3, 16), torch.randn(16, 3)
    path = folder / "adapter_model.safetensors"
    _safetensors.save_file(
        {name + ending: t for ending, t in zip(endings, (down, up), strict=True)}, path
    )
    if "base_model" in name:
        config = {"peft_type": "LORA", "lora_alpha": 3}
        path.with_name("adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    adapted = copy.deepcopy(cast(nn.Linear, net.get_submodule(NAMED))).double()
    adapted.weight.add_(up.double() @ down.double())
    return path, {NAMED: adapted}


KINDS: dict[str, Case] = {
    **{
        f"{name} (LyCORIS)": Case(
            library="LyCORIS",
            write=partial(from_lycoris, kind, **settings),
            # It inverts in single precision, whatever the numbers are.
            dtype=torch.float32 if "OFT" in kind else torch.float64,
        )
        for name, (kind, settings) in _LYCORIS.items()
    },
    # It holds what it began from in single precision.
    **{
        f"T-LoRA, {begun} values (LyCORIS)": Case(
            library="LyCORIS", write=partial(_tlora, begun), dtype=torch.float32
        )
        for begun in ("principal", "last", "middle")
    },
    "GLoRA of before 2 (LyCORIS)": Case(library="LyCORIS", write=_old_glora),
    "a bias alone": Case(library="the definition", write=_bias),
    **{
        f"{name} (PEFT)": Case(
            library="PEFT", write=partial(from_peft, kind, sites=sites, **settings)
        )
        for name, (kind, sites, settings) in _PEFT.items()
    },
}
"""Kinds of adapter, by name."""

NAMINGS = {name: Case(library="the definition", write=partial(_named, name)) for name in _NAMINGS}
"""Namings of one kind, a plain LoRA."""
