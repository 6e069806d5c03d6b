"""A network's weights, read from safetensors files into their own memory, tensor by tensor.

While a network is loaded there is no second copy of it: its parameters are made without memory and
given what the files hold, already in their own type and on their own device, and the pages of the
files that were read leave memory again. Libraries that load whole networks keep the file's tensors
beside the network's, or change PyTorch for all threads meanwhile.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from composer.errors import ComposerError
from composer.experts.header import read_header

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_WRAPPER = "text_model."  # before a text encoder's names, or not, by the version of transformers
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
_NOW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers called the parts of a VAE's attention when Stable Diffusion 1.5 was published."""


class Weights:
    """The tensors of safetensors files by name, as views of the files: in memory once looked at."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """
        Raises:
            ComposerError: a file is missing, damaged or none.
        """
        self.tensors: dict[str, Tensor] = {}
        self._mapped: list[mmap.mmap] = []
        for path in paths:
            header = read_header(path)
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._mapped.append(mapped)
            for name, entry in header.tensors.items():
                if entry.dtype in _DTYPES and entry.begin < entry.end:
                    begin, size = header.data_start + entry.begin, entry.end - entry.begin
                    data = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=begin)
                    dtype = _DTYPES[entry.dtype]
                    # a file may begin its data at any byte
                    data = data.clone() if begin % dtype.itemsize else data
                    self.tensors[name] = data.view(dtype).reshape(entry.shape)

    def below(self, *prefixes: str) -> dict[str, Tensor]:
        """Those whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(prefix): tensor
            for prefix in prefixes
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def forget(self) -> None:
        """Free the memory of what was looked at; it is read again where it is needed again."""
        for mapped in self._mapped:
            if hasattr(mapped, "madvise"):  # not on Windows
                mapped.madvise(mmap.MADV_DONTNEED)


class _WithoutMemory(TorchFunctionMode):
    """In this thread, layers make their parameters without memory; other tensors are as ever."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        options: dict[str, Any] = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)


def build(
    make: Callable[[], nn.Module],
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    forget: Callable[[], None] = lambda: None,
) -> Any:
    """The network that `make` makes, with these weights, frozen and in evaluation mode.

    tensors: by the names of diffusers or transformers; more than the network has may be there.
    source: the file and part, for messages.
    forget: is called once a tensor was read.

    Raises:
        ComposerError: a tensor is missing or has another shape than the network.
    """
    with _WithoutMemory():
        network = make()
    there = {_now(name): tensor for name, tensor in tensors.items()}
    wanted = {_now(name): name for name, its in network.named_parameters() if its.is_meta}
    missing = sorted(wanted.keys() - there.keys())
    if missing:
        raise ComposerError(
            f"{source} lacks {len(missing)} of {len(wanted)} tensors, such as {missing[0]}. "
            "Download it again, or choose another one of the same kind."
        )
    for name, own in wanted.items():
        tensor, shape = there[name], network.get_parameter(own).shape
        # a matrix may be written as a 1 x 1 convolution, and the other way round
        if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:
            raise ComposerError(
                f"{source} does not fit: {name} is {tuple(tensor.shape)} there, and the model's is "
                f"{tuple(shape)}. The parts are of two kinds of model: choose another one."
            )
        value = torch.empty(shape, dtype=dtype, device=device)
        with torch.no_grad():
            value.copy_(tensor.reshape(shape))
        path, _, last = own.rpartition(".")
        setattr(network.get_submodule(path), last, nn.Parameter(value, requires_grad=False))
        forget()
    return network.to(device).eval().requires_grad_(False)


def _now(name: str) -> str:
    name = name.removeprefix(_WRAPPER)
    return _OLD_ATTENTION.sub(lambda found: f"{found[1]}.{_NOW[found[2]]}.", name)
