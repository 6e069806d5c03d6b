"""The attention of a training: the numbers of torch's plain kernel, in the thread that trains."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from itertools import product
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from composer.training import attention
from composer.training.attention import MOST_TOKENS, attention_for_backward

CLOSED = torch.arange(17).expand(2, 1, 17, 17) > torch.arange(17)[:, None] + 3
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"attn_mask": ~CLOSED},
    {"attn_mask": -1e4 * CLOSED.float()},
    {"is_causal": True},
    {"scale": 0.3},
    {"enable_gqa": True},
)


def passed(kernel: Any, options: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    """What attention gives, and its gradients."""
    generator = torch.Generator().manual_seed(1)
    heads = (4, 2, 2) if "enable_gqa" in options else (4, 4, 4)
    draws = [torch.randn(2, n, 17, 8, generator=generator).to(dtype) for n in heads]
    query, key, value = tensors = [draw.requires_grad_() for draw in draws]
    with kernel:
        out = functional.scaled_dot_product_attention(query, key, value, **options)
    cast(Any, out.float().square().sum()).backward()
    return [out.detach(), *(cast(Tensor, tensor.grad) for tensor in tensors)]


@pytest.mark.parametrize(
    ("options", "half"), list(product(OPTIONS, (False, True))), ids=lambda v: str(v)[:20]
)
def test_the_numbers_are_those_of_torchs_plain_kernel(options: dict[str, Any], half: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        plain = passed(sdpa_kernel(SDPBackend.MATH), options, torch.float32)
        ours = passed(attention_for_backward("cpu"), options, torch.float32)
    for ours_one, plain_one in zip(ours, plain, strict=True):
        assert ours_one.dtype == plain_one.dtype and torch.equal(ours_one, plain_one)


def test_other_threads_keep_their_kernels_while_one_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    plain = attention._plain_attention  # pyright: ignore[reportPrivateUsage]

    def noted(*args: Any, **options: Any) -> Tensor:
        calls.append(threading.current_thread().name)
        return plain(*args, **options)

    monkeypatch.setattr(attention, "_plain_attention", noted)

    def others() -> None:
        assert torch.backends.cuda.flash_sdp_enabled()  # this flag rules over CPUs too
        passed(nullcontext(), {}, torch.float32)

    with attention_for_backward("cpu"):
        thread = threading.Thread(target=others, name="other")
        thread.start()
        thread.join()
        passed(nullcontext(), {}, torch.float32)
        others()
    passed(nullcontext(), {}, torch.float32)
    assert calls == [threading.current_thread().name] * 2
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(("device", "tokens"), [("cuda", 64), ("cpu", MOST_TOKENS + 1)])
def test_the_fused_kernels_train_where_they_are_better(device: str, tokens: int) -> None:
    assert isinstance(attention_for_backward(device, tokens), nullcontext)


@pytest.mark.parametrize("way", ["backward", "grad"])
def test_what_runs_again_for_the_backward_pass_is_plain_too(way: str) -> None:
    """Under gradient checkpointing; PyTorch refuses a second pass that saves other tensors."""
    query = torch.randn(2, 4, 17, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def attend(tensor: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(tensor, tensor, tensor)

    found: list[Tensor] = []
    for again in (False, True):
        query.grad = None
        with attention_for_backward("cpu"):
            out = cast(
                Tensor, checkpoint(attend, query, use_reentrant=False) if again else attend(query)
            )
            loss = out.square().sum()
            if way == "backward":
                cast(Any, loss).backward()
                found.append(cast(Tensor, query.grad).clone())
            else:
                found.append(torch.autograd.grad(loss, query)[0])
    assert torch.equal(*found)
    unpatched = functional.scaled_dot_product_attention
    assert unpatched is attention._FUSED  # pyright: ignore[reportPrivateUsage]
