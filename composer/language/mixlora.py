"""MixLoRA adapters attached to a model: sparse experts in its FFNs, plain LoRA on its attention.

    mixlora = attach_mixlora(model, {"code": MixLoraConfig(), "law": MixLoraConfig()})
    mixlora.assign(["code", "law", "law"])          # whose each row of the batch is
    with mixlora.listen(attention_mask) as tape:    # only where the router loss is wanted
        output = model(input_ids=..., attention_mask=..., labels=...)
    loss = output.loss + sum(mixlora.router_loss(tape, name) for name in mixlora.names)
    loss.backward()
    mixlora.detach()

Any model of transformers (or diffusers) whose FFNs have a known structure will do; its caching,
generation, gradient checkpointing (the non-reentrant form, their default) and padding are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from composer.language.mixlora_config import MixLoraConfig
from composer.mixture.rows import Masks, Tape


def attach_mixlora(
    model: nn.Module, adapters: Mapping[str, MixLoraConfig], *, seed: int | None = None
) -> MixLora:
    """Attach fresh adapters, one or several at once. Everything is checked and built before any
    module is replaced, and all parameters of the model are frozen while they are attached.

    A fresh adapter changes nothing: B is 0 (A kaiming-uniform, routers N(0, init_std)).

    model: a PreTrainedModel, for instance LlamaForCausalLM.
    adapters: by name; their ranks, experts and routers may differ.
    seed: of the first weights; None to draw from the global generator.

    Raises:
        ComposerError: a model without a known FFN or with PEFT layers on it, target modules that
            are not there, another activation. The model is as before.
    """
    raise NotImplementedError


class MixLora:
    """The handle on MixLoRA adapters that are attached to one model.

    With one adapter all rows are its own; with several, `assign` says whose each row is before the
    model runs. Base layers run once for the whole batch, routers and experts on their own rows.
    The handle is also a context manager that detaches at its end.

    names: the adapters.
    configs: by adapter.
    model: the model they are attached to.
    """

    names: tuple[str, ...]
    configs: Mapping[str, MixLoraConfig]
    model: nn.Module

    def assign(self, rows: Sequence[str | None] | str | None) -> None:
        """Say whose each row of the next batches is; see `Rows.assign`."""
        raise NotImplementedError

    def listen(self, masks: Masks | None = None) -> AbstractContextManager[Tape]:
        """Collect what the routers decide, with the padding that does not count; see `Rows.listen`.

        masks: the batch's attention mask (batch, tokens), nonzero for tokens that count. For an
        encoder-decoder {"encoder": ..., "decoder": ...}, the starts of their FFNs' paths.
        """
        raise NotImplementedError

    def router_loss(self, tape: Tape, name: str) -> Tensor:
        """Balance loss (and z-loss for a switch router) of one adapter, times its coefficients.

        A float32 scalar to add to that adapter's loss; 0 where the adapter had no row.
        """
        raise NotImplementedError

    def loads(self, tape: Tape, name: str) -> dict[str, Tensor]:
        """By FFN path the part of the choices that each expert got, (experts,), summing to 1."""
        raise NotImplementedError

    def named_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """All that is trained of one adapter, by path: routers, factors, DoRA's magnitudes."""
        raise NotImplementedError

    def parameter_groups(
        self, name: str, *, lr: float, weight_decay: float = 0.01, lora_plus: float = 1.0
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer, each with "params", "lr", "weight_decay" and "name".

        lora_plus: B (and DoRA's magnitude, at 1) learns `lora_plus` times as fast as the rest
            (LoRA+, Hayou et al. 2024). Groups are called "A", "B", "router" and "magnitude".
        """
        raise NotImplementedError

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """One adapter's tensors, by the reference's names, on the CPU: what a checkpoint holds."""
        raise NotImplementedError

    def load_state_dict(self, name: str, tensors: Mapping[str, Tensor], source: str = "") -> None:
        """Take over tensors by the reference's names.

        source: what messages call them, a file's path.

        Raises:
            ComposerError: some are missing, left over, misshapen or not finite. Nothing is changed.
        """
        raise NotImplementedError

    def detach(self) -> None:
        """Put the original modules back, and let those parameters be trained that could be before.
        Again is harmless."""
        raise NotImplementedError

    def __enter__(self) -> MixLora:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()
