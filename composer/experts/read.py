"""A LoRA file becomes an expert."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from composer.errors import ComposerError
from composer.experts import deltas, peft_config
from composer.experts.embedding import embeddings_within
from composer.experts.expert import Expert
from composer.experts.fit import misfit
from composer.experts.formats import DORA, KINDS, NORMS, parse_key
from composer.experts.formats.lora_diffusion import FORMAT
from composer.experts.groups import Group, broken, changed_by, group_tensors
from composer.experts.hashes import file_hash, tensor_hash
from composer.experts.header import Header, parse_header, read_header
from composer.experts.lora_diffusion import check_classes
from composer.experts.low_rank import LowRank
from composer.experts.metadata import read_info
from composer.experts.module_names import ModuleNames, Shape
from composer.experts.names import expert_name
from composer.experts.peft_config import STARTS, PeftConfig
from composer.experts.sidecar import with_sidecars
from composer.experts.supported import check_supported

LEAST_SHARE = 0.95
"""Of a file's modules that must be in the model, unless a user says that fewer will do."""
MAX_RANK = 16_384
MAX_SCALE = 1000.0
MAX_CHANGE = 1e6
"""Of one weight of the model, which are below 10; a sound LoRA changes none by as much as 1."""
_DTYPES = ("F16", "BF16", "F32", "F64")


def read_expert(
    path: Path, modules: ModuleNames, *, name: str | None = None, partial: bool = False
) -> Expert:
    """Read the LoRA file at `path` for the model whose modules are `modules`.

    Every tensor becomes a factor of a site, or its name is in the expert's `unmatched` or its
    embeddings, or the file is refused; none is dropped. `name` is what to call the expert, if not
    its file's name. `partial` allows a file of which much does nothing for this model, or that
    changes norms.

    Raises:
        ComposerError: the file is not a sound safetensors file, is of a kind that Composer does
            not read, is damaged (lone or misshapen factors, NaN), is made for another model,
            changes norms, or less than `LEAST_SHARE` of the modules that it changes are in the
            model.
    """
    header, tensors, data = _open(path)
    groups, unmatched, count = _group(header, modules)
    info = read_info(header)
    norms, alone = _norms(header), info.kinds == (NORMS,)
    if norms and (alone or not partial):
        raise ComposerError(
            f"{path}: changes norms (tensor {norms[0]!r}), and gates weigh Linear layers and "
            "convolutions alone, so it would look different. Train it without norms (`train_norm` "
            f"off){'' if alone else ', or use what it changes beside them with --partial'}."
        )
    if not groups:
        raise misfit(path, info.base, modules, name=next(iter(unmatched), ""))
    if not partial and len(groups) < LEAST_SHARE * count:
        raise ComposerError(
            f"{path}: only {len(groups)} of the {count} modules that this LoRA changes are in "
            f"{modules.model!r}, not for instance that of {unmatched[0]!r}, so it would look weak "
            "or wrong. Use a version of it for this model, or allow it with --partial."
        )
    numbered = [group.key.part for group in groups.values() if group.key.format == FORMAT]
    check_classes(header, numbered)
    configs = _configs(header, groups)
    sites: dict[str, LowRank] = {}
    for site, group in groups.items():
        config = configs.get(group.key.part or "")
        try:
            place = deltas.Site(name=site, modules=modules)
            sites[site] = _factors(header, tensors, group, place, config)
        except deltas.WrongShape as error:
            raise misfit(path, info.base, modules, site, error.shape) from None
    sha256 = file_hash(data)
    return Expert(
        name=name or expert_name(path),
        path=path,
        sites=sites,
        info=with_sidecars(info, path),
        unmatched=unmatched,
        modules=count,
        sha256=sha256,
        tensor_hash=tensor_hash(data),
        embeddings=embeddings_within(header, tensors, sha256),
    )


def own_names(path: Path) -> ModuleNames:
    """The modules that a file itself names, in its spelling and with the shapes that it shows: what
    it is read for where no model is at hand. Its kinds are none that depend on a model's weights.

    Raises:
        ComposerError: as `read_expert` does.
    """
    header, tensors, _ = _open(path)
    shapes: dict[str, dict[str, Shape]] = {}
    for group in group_tensors(header)[0].values():
        part, module = group.key.part or "model", group.key.module
        if group.kinds() in (set(), {NORMS}):
            continue
        nowhere = ModuleNames(model=path.name, shapes={part: {module: (0, 0)}})
        try:
            _factors(
                header, tensors, group, deltas.Site(name=f"{part}.{module}", modules=nowhere), None
            )
        except deltas.WrongShape as error:
            shapes.setdefault(part, {})[module] = error.shape
    return ModuleNames(model=path.name, shapes=shapes)


def _open(path: Path) -> tuple[Header, dict[str, Tensor], bytes]:
    check_supported(read_header(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ComposerError(f"{path}: cannot be read ({error}). Check its rights.") from error
    # Once more, now on the very bytes that are used: the file may have been replaced meanwhile.
    header = parse_header(data, size=len(data), path=path)
    return header, _load(data, header), data


def _group(header: Header, modules: ModuleNames) -> tuple[dict[str, Group], tuple[str, ...], int]:
    """Bring the tensors of each site together; what belongs to no module is left over.

    The last is how many modules the file changes, whether the model has them or not.
    """
    spelled, unknown = group_tensors(header)
    unmatched: list[str] = []
    sites: dict[str, Group] = {}
    for (part, module), group in spelled.items():
        kinds = group.kinds()
        if kinds == {"LoRA"}:
            for slot, other in (("up", "down"), ("down", "up")):
                if other in group.tensors and slot not in group.tensors:
                    raise broken(header, f"has no {slot} factor for {module!r}")
        if not kinds and any(slot in group.tensors for slot in DORA):
            raise broken(header, f"has a magnitude of DoRA's and no factors for {module!r}")
        if len(kinds) > 1:
            raise broken(header, f"has {' and '.join(sorted(kinds))} at once for {module!r}")
        site = modules.site(part, module) if kinds else None
        if site is None:
            unmatched.extend(group.tensors.values())
        elif kinds == {NORMS}:
            raise broken(header, f"has what changes a norm for {site}, which is none")
        elif site in sites:
            raise broken(header, f"changes {site} twice, in two spellings")
        else:
            sites[site] = group
    return sites, (*unmatched, *unknown), len(changed_by(spelled))


def _norms(header: Header) -> list[str]:
    """The tensors that change norms: `w_norm`, `b_norm` of LyCORIS, differences of one side."""
    keys = {name: key for name in header.tensors if (key := parse_key(name)) is not None}
    return [
        name
        for name, key in keys.items()
        if KINDS.get(key.slot) == NORMS
        or (key.slot == "diff" and len(header.tensors[name].shape) == 1)
    ]


def _configs(header: Header, groups: Mapping[str, Group]) -> Mapping[str, PeftConfig]:
    peft = [group.key.part or "" for group in groups.values() if group.key.format == "PEFT"]
    if peft:
        return dict.fromkeys(peft, peft_config.beside(header.path))
    return peft_config.within(header)


def _load(data: bytes, header: Header) -> dict[str, Tensor]:
    try:
        return load(data)
    except SafetensorError as error:
        raise broken(header, f"is refused by the safetensors library ({error})") from error


def _factors(
    header: Header,
    tensors: Mapping[str, Tensor],
    group: Group,
    site: deltas.Site,
    config: PeftConfig | None,
) -> LowRank:
    for name in group.tensors.values():
        _check_numbers(header, name, tensors[name])
    own = {slot: tensors[name].float() for slot, name in group.tensors.items()}
    if config is not None:
        own |= {slot: torch.tensor(number) for slot, number in config.numbers.items()}
    (kind,), first = group.kinds(), min(group.tensors.values())
    start = config.start if config is not None and config.start in STARTS else ""

    def scale(rank: int | None) -> float:
        if rank is not None and not 1 <= rank <= MAX_RANK:
            raise ValueError(f"has rank {rank}; 1 to {MAX_RANK} are read")
        if "alpha" in own and rank is not None:
            if own["alpha"].numel() != 1:
                name = group.tensors["alpha"]
                raise ValueError(f"has an alpha that is not one number: {name!r},")
            found = float(own["alpha"].item()) / rank
        elif config is not None:
            found = config.scale(group.key.module, rank)
        else:
            found = 1.0
        if not math.isfinite(found) or not 0 < abs(found) <= MAX_SCALE:
            raise ValueError(f"has alpha {found * (rank or 1):g} for rank {rank or 1}")
        return found

    try:
        factors = deltas.build(kind, own, site, scale, start=start)
    except (deltas.WrongShape, ComposerError):
        raise
    except (ValueError, IndexError, RuntimeError) as error:  # torch's own, of shapes
        raise broken(header, f"{error} at {first!r}") from None
    most = float(factors.down.abs().max()) * float(factors.up.abs().max())
    most *= factors.rank * abs(factors.scale)
    if not most <= MAX_CHANGE:
        raise broken(
            header,
            f"would change a weight by up to {most:.0e} at {first!r}: its training went wrong",
        )
    return factors


def _check_numbers(header: Header, name: str, tensor: Tensor) -> None:
    dtype = header.tensors[name].dtype
    if dtype not in _DTYPES and tensor.numel() != 1:
        raise broken(header, f"stores {name!r} as {dtype}; save it as F16, BF16 or F32")
    if not torch.isfinite(tensor.float()).all():
        raise broken(header, f"has NaN or infinite numbers in {name!r}: its training went wrong")
