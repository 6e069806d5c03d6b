"""A LoRA file becomes an expert."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from composer.errors import ComposerError
from composer.experts import peft_config
from composer.experts.expert import Expert
from composer.experts.fit import misfit
from composer.experts.formats import Key, Slot, parse_key
from composer.experts.hashes import file_hash, tensor_hash
from composer.experts.header import Header, parse_header, read_header
from composer.experts.low_rank import LowRank
from composer.experts.metadata import read_info
from composer.experts.module_names import ModuleNames, Shape
from composer.experts.names import expert_name
from composer.experts.peft_config import PeftConfig
from composer.experts.sidecar import with_sidecars
from composer.experts.supported import check_supported

MAX_RANK = 1024
MAX_SCALE = 1000.0
MAX_CHANGE = 1e6
"""Of one weight of the model, which are below 10; a sound LoRA changes none by as much as 1."""
_DTYPES = ("F16", "BF16", "F32", "F64")


@dataclass(kw_only=True)
class _Group:
    """The tensors of one module: slot → tensor name."""

    key: Key
    tensors: dict[Slot, str] = field(default_factory=dict["Slot", str])


def read_expert(path: Path, modules: ModuleNames, *, name: str | None = None) -> Expert:
    """Read the LoRA file at `path` for the model whose modules are `modules`.

    Every tensor becomes a factor of a site, or its name is in the expert's `unmatched`, or the
    file is refused; none is dropped. `name` is what to call the expert, if not its file's name.

    Raises:
        ComposerError: the file is not a sound safetensors file, is of a kind that Composer does
            not read, is damaged (lone or misshapen factors, NaN), or is made for another model.
    """
    check_supported(read_header(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ComposerError(f"{path}: cannot be read ({error}). Check its rights.") from error
    # Once more, now on the very bytes that are used: the file may have been replaced meanwhile.
    header = parse_header(data, size=len(data), path=path)
    groups, unmatched = _group(header, modules)
    info = read_info(header)
    if not groups:
        raise misfit(path, info.base, modules)
    tensors = _load(data, header)
    configs = _configs(header, groups)
    sites: dict[str, LowRank] = {}
    for site, group in groups.items():
        factors = _factors(header, tensors, group, configs.get(group.key.part or ""))
        host = modules.weight_shape(site)
        assert host is not None  # _group kept only sites of the model
        factors = _as_host(factors, host)
        if factors.weight_shape != host:
            raise misfit(path, info.base, modules, site, factors.weight_shape)
        sites[site] = factors
    return Expert(
        name=name or expert_name(path),
        path=path,
        sites=sites,
        info=with_sidecars(info, path),
        unmatched=unmatched,
        sha256=file_hash(data),
        tensor_hash=tensor_hash(data),
    )


def _group(header: Header, modules: ModuleNames) -> tuple[dict[str, _Group], tuple[str, ...]]:
    """Bring the tensors of each module together; what belongs to no module is left over."""
    spelled: dict[tuple[str | None, str], _Group] = {}
    unmatched: list[str] = []
    for name in header.tensors:
        key = parse_key(name)
        if key is None:
            unmatched.append(name)
            continue
        group = spelled.setdefault((key.part, key.module), _Group(key=key))
        if key.slot in group.tensors:
            raise _broken(header, f"has {key.module!r} twice, also as {name!r}")
        group.tensors[key.slot] = name
    sites: dict[str, _Group] = {}
    for (part, module), group in spelled.items():
        if ("down" in group.tensors) != ("up" in group.tensors):
            missing = "up" if "down" in group.tensors else "down"
            raise _broken(header, f"has no {missing} factor for {module!r}")
        site = modules.site(part, module) if "down" in group.tensors else None
        if site is None:
            unmatched.extend(group.tensors.values())
        elif site in sites:
            raise _broken(header, f"changes {site} twice, in two spellings")
        else:
            sites[site] = group
    return sites, tuple(unmatched)


def _configs(header: Header, groups: Mapping[str, _Group]) -> Mapping[str, PeftConfig]:
    peft = [group.key.part or "" for group in groups.values() if group.key.format == "PEFT"]
    if peft:
        return dict.fromkeys(peft, peft_config.beside(header.path))
    return peft_config.within(header)


def _load(data: bytes, header: Header) -> dict[str, Tensor]:
    try:
        return load(data)
    except SafetensorError as error:
        raise _broken(header, f"is refused by the safetensors library ({error})") from error


def _factors(
    header: Header, tensors: Mapping[str, Tensor], group: _Group, config: PeftConfig | None
) -> LowRank:
    for name in group.tensors.values():
        _check_numbers(header, name, tensors[name])
    down_name = group.tensors["down"]
    down, up = tensors[down_name].float(), tensors[group.tensors["up"]].float()
    shapes = f"down {tuple(down.shape)}, up {tuple(up.shape)}"
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or any(n != 1 for n in up.shape[2:]):
        raise _broken(header, f"has factors of no known shape at {down_name!r}: {shapes}")
    rank = down.shape[0]
    if not 1 <= rank <= MAX_RANK or up.shape[1] != rank or not down.numel() or not up.numel():
        raise _broken(header, f"has factors that do not fit each other at {down_name!r}: {shapes}")
    alpha = float(rank)
    if "alpha" in group.tensors:
        name = group.tensors["alpha"]
        if tensors[name].numel() != 1:
            raise _broken(header, f"has an alpha that is not one number: {name!r}")
        alpha = float(tensors[name].item())
    elif config is not None:
        alpha = config.alpha(group.key.module, rank)
    scale = alpha / rank
    if not math.isfinite(scale) or not 0 < abs(scale) <= MAX_SCALE:
        raise _broken(header, f"has alpha {alpha:g} for rank {rank} at {down_name!r}")
    most = float(down.abs().max()) * float(up.abs().max()) * rank * abs(scale)
    if most > MAX_CHANGE:
        raise _broken(
            header,
            f"would change a weight by up to {most:.0e} at {down_name!r}: its training went wrong",
        )
    return LowRank(down=down, up=up, scale=scale)


def _check_numbers(header: Header, name: str, tensor: Tensor) -> None:
    dtype = header.tensors[name].dtype
    if dtype not in _DTYPES and tensor.numel() != 1:
        raise _broken(header, f"stores {name!r} as {dtype}; save it as F16, BF16 or F32")
    if not torch.isfinite(tensor.float()).all():
        raise _broken(header, f"has NaN or infinite numbers in {name!r}: its training went wrong")


def _as_host(factors: LowRank, host: Shape) -> LowRank:
    """The factors with as many dimensions as the host's weight, where they mean the same.

    Models store the projections around their attention as Linear or as 1×1 convolution, and LoRAs
    for one fit the other.
    """
    down, up = factors.down, factors.up.flatten(1)
    if len(host) == 2 and all(n == 1 for n in down.shape[2:]):
        down = down.flatten(1)
    if len(host) == 4:
        down = down if down.ndim == 4 else down[:, :, None, None]
        up = up[:, :, None, None]
    return LowRank(down=down, up=up, scale=factors.scale)


def _broken(header: Header, reason: str) -> ComposerError:
    return ComposerError(f"{header.path}: {reason}. Download or train the file again.")
