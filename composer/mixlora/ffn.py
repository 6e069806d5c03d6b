"""The forms of feed-forward networks: which children read the input, which gives the output.

    y = down(middle(up_1 x, ...))

One small description for each form; the host of MixLoRA's experts needs no more, and no module's
forward is rewritten. A form is known by the names of a module's children, and then checked: what it
computes on random tokens must be what the module computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.mixture.stand_in import StandIn

Middle = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class FfnForm:
    """How one kind of FFN is built.

    inputs: the paths of the Linear modules that read the input, one or two.
    down: the path of the Linear that gives the output.
    activation: the name of the attribute that holds it, or of the child's method that is it.
    middle: (activation, what the inputs gave) -> what `down` reads; no randomness in it.
    dropout: the path of a dropout before `down`; after: of one after it. None where there is none.
    """

    name: str
    inputs: tuple[str, ...]
    down: str
    activation: str
    middle: Callable[..., Tensor]
    dropout: str | None = None
    after: str | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        """The paths of all Linear modules, `down` last."""
        return (*self.inputs, self.down)

    def activate(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """What its activation makes of anything."""
        return cast(Tensor, _at(module, self.activation)(hidden))

    def linear(self, module: nn.Module, path: str) -> nn.Linear:
        """One of its Linear modules."""
        return cast(nn.Linear, _at(module, path))

    def inner_dropout(self, module: nn.Module) -> float:
        """How much the module itself drops before `down` now: nothing outside of training."""
        dropout = None if self.dropout is None else _at(module, self.dropout)
        return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0

    def finish(self, module: nn.Module, output: Tensor) -> Tensor:
        """The dropout after `down`, where there is one."""
        dropout = None if self.after is None else _at(module, self.after)
        return dropout(output) if isinstance(dropout, nn.Dropout) else output

    def run_down(self, module: nn.Module, inner: Tensor) -> Tensor:
        """The module's output, before its last dropout; T5 keeps `wo` in float32."""
        down = self.linear(module, self.down)
        floating = down.weight.is_floating_point()
        return down(inner.to(down.weight.dtype) if floating else inner)

    def fits(self, module: nn.Module) -> bool:
        """Whether a module has these children, and no others that matter."""
        names = {name.partition(".")[0] for name in (*self.linears, self.activation)}
        children = {name for name, child in module.named_children() if _matters(child)}
        return (
            children <= names
            and all(_is_linear(_at(module, path)) for path in self.linears)
            and callable(_at(module, self.activation))
        )

    def bind(self, module: nn.Module) -> Middle:
        """The middle with the module's own activation: takes what the inputs gave."""
        activation = _at(module, self.activation)

        def middle(*seen: Tensor) -> Tensor:
            return self.middle(activation, *seen)

        return middle


def _gated(act: Middle, gate: Tensor, up: Tensor) -> Tensor:
    return act(gate) * up


def _gate_first(act: Middle, both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return up * act(gate)


def _gate_last(act: Middle, both: Tensor) -> Tensor:
    up, gate = both.chunk(2, dim=-1)
    return up * act(gate)


def _plain(act: Middle, seen: Tensor) -> Tensor:
    return act(seen)


FORMS: tuple[FfnForm, ...] = (
    # Llama, Mistral, Gemma, Qwen
    FfnForm(
        name="gate_proj, up_proj, down_proj",
        inputs=("gate_proj", "up_proj"),
        down="down_proj",
        activation="act_fn",
        middle=_gated,
    ),
    # Phi-3: gate and up in one matrix
    FfnForm(
        name="gate_up_proj, down_proj",
        inputs=("gate_up_proj",),
        down="down_proj",
        activation="activation_fn",
        middle=_gate_first,
    ),
    # Phi, CLIP
    FfnForm(
        name="fc1, fc2", inputs=("fc1",), down="fc2", activation="activation_fn", middle=_plain
    ),
    # T5 1.1, Flan-T5
    FfnForm(
        name="wi_0, wi_1, wo",
        inputs=("wi_0", "wi_1"),
        down="wo",
        activation="act",
        middle=_gated,
        dropout="dropout",
    ),
    # T5
    FfnForm(
        name="wi, wo", inputs=("wi",), down="wo", activation="act", middle=_plain, dropout="dropout"
    ),
    # diffusers
    FfnForm(
        name="GEGLU",
        inputs=("net.0.proj",),
        down="net.2",
        activation="net.0.gelu",
        middle=_gate_last,
        dropout="net.1",
        after="net.3",
    ),
)


def find_ffns(model: nn.Module) -> dict[str, FfnForm]:
    """By path the FFNs of a model that have a known form, in the model's own order."""
    found: dict[str, FfnForm] = {}
    for path, module in cast(Iterator[tuple[str, nn.Module]], model.named_modules()):
        form = next((form for form in FORMS if form.fits(module)), None)
        if form is not None and not isinstance(module, StandIn):
            found[path] = form
    return found


@torch.no_grad()
def check_form(path: str, module: nn.Module, form: FfnForm) -> None:
    """Refuse a module that computes something else than its form says.

    Raises:
        ComposerError: it does, or its weights are not in memory.
    """
    weight = form.linear(module, form.inputs[0]).weight
    if weight.is_meta:
        raise ComposerError(
            f"The weights of {path} are not in memory. Load the model without offloading first."
        )
    dtype = weight.dtype if weight.is_floating_point() else torch.float16
    generator = torch.Generator().manual_seed(0)
    width = form.linear(module, form.inputs[0]).in_features
    hidden = torch.randn(1, 3, width, generator=generator)
    hidden = hidden.to(weight.device, dtype)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        expected = cast(Tensor, module(hidden))
        middle = form.bind(module)(*(form.linear(module, name)(hidden) for name in form.inputs))
        found = form.run_down(module, middle)
    finally:
        for part, training in modes:
            part.training = training
    if not torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=1e-5):
        raise ComposerError(
            f"{path} ({type(module).__name__}) has the children of an FFN of the form "
            f"{form.name} and computes something else: its experts would be wrong. Choose a model "
            "of a known family (Llama, Mistral, Gemma, Qwen, Phi, Phi-3, T5, CLIP)."
        )


def _at(module: nn.Module, path: str) -> Any:
    """What is found under a dotted path, of children or attributes; None if there is nothing."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _is_linear(module: object) -> bool:
    """A Linear, or one in fewer bits (bitsandbytes derives its own from it)."""
    return isinstance(module, nn.Linear)


def _matters(child: nn.Module) -> bool:
    return not isinstance(child, nn.Dropout | nn.Identity)
