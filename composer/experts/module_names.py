"""The modules of a model that a LoRA can change, and every name files give them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from torch import Tensor, nn

from composer.errors import ComposerError
from composer.experts.groups import Module
from composer.experts.lora_diffusion import numbered_names
from composer.experts.sgm import sgm_names

Shape = tuple[int, ...]


Host = nn.Linear | nn.Conv2d


@dataclass(frozen=True, kw_only=True)
class ModuleNames:
    """The Linear and Conv2d modules of a model's parts, with the shapes of their weights.

    `shapes` goes from a part ("unet", "text_encoder", "text_encoder_2") to its modules' dotted
    names and weight shapes: (out, in) or (out, in, kh, kw). `model` is the name that messages use.

    `hosts` are the modules themselves, by site. Some kinds of adapter say how a weight is turned or
    scaled, so that what they add depends on it. An attached mixture leaves these modules as they
    are, and only stands before them.
    """

    model: str
    shapes: Mapping[str, Mapping[str, Shape]]
    hosts: Mapping[str, Host] = field(default_factory=dict[str, Host], repr=False, compare=False)

    @classmethod
    def of(cls, models: Mapping[str, nn.Module], *, model: str) -> ModuleNames:
        """Collect the names from the modules themselves, before any expert is attached to them."""
        hosts = {part: dict(_hosts(root)) for part, root in models.items()}
        return cls(
            model=model,
            shapes={
                part: {name: tuple(host.weight.shape) for name, host in there.items()}
                for part, there in hosts.items()
            },
            hosts={
                f"{part}.{name}": host
                for part, there in hosts.items()
                for name, host in there.items()
            },
        )

    @cached_property
    def aliases(self) -> Mapping[str, Mapping[str, str]]:
        """For each part, every spelling of a module's name → the name it has in the model.

        Real names are turned into the spellings of files, never the other way round: kohya's
        underscores and SGM's block numbers cannot be undone without knowing the model.
        """
        return {part: _spellings(part, tuple(names)) for part, names in self.shapes.items()}

    def site(self, part: str | None, spelling: str) -> str | None:
        """The site `part.module` that a file means; with no part given, the first that has it."""
        for candidate in self.shapes if part is None else (part,):
            module = self.aliases.get(candidate, {}).get(spelling)
            if module is not None:
                return f"{candidate}.{module}"
        return None

    def share(self, changed: Collection[Module]) -> float:
        """Of the modules that a file changes, how many the model has."""
        found = sum(self.site(part, spelling) is not None for part, spelling in changed)
        return found / len(changed) if changed else 0.0

    def weight_shape(self, site: str) -> Shape | None:
        """The shape of the weight at a site; None if the model has no such site."""
        part, _, module = site.partition(".")
        return self.shapes.get(part, {}).get(module)

    def weight(self, site: str) -> Tensor:
        """The model's own weight at a site.

        Raises:
            ComposerError: it is not at hand, or not in numbers that can be counted with.
        """
        host = self.hosts.get(site)
        if host is None or host.weight.is_meta or not host.weight.is_floating_point():
            raise ComposerError(
                f"{site} of {self.model!r} is quantised or not in memory, and what this LoRA adds "
                "depends on it. Load the model in float32, float16 or bfloat16, without offloading."
            )
        return host.weight.detach()

    def bias(self, site: str) -> Tensor | None:
        """The model's own bias at a site; None if it has none."""
        host = self.hosts.get(site)
        return None if host is None or host.bias is None else host.bias.detach()

    @property
    def text_width(self) -> int | None:
        """How wide the text is that the U-Net attends to: 768 for SD 1, 2048 for SDXL."""
        for name, shape in self.shapes.get("unet", {}).items():
            if name.endswith("attn2.to_k"):
                return shape[1]
        return None


def _hosts(root: nn.Module) -> Iterator[tuple[str, Host]]:
    # torch's own annotation of named_modules is incomplete.
    modules = cast("Iterable[tuple[str, nn.Module]]", root.named_modules())
    for name, module in modules:
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


def _spellings(part: str, names: tuple[str, ...]) -> dict[str, str]:
    spelled = {name: name for name in names}
    if part == "unet":
        spelled |= {alias: name for name, alias in sgm_names(names).items()}
    else:
        # transformers 5 dropped `text_model.` from CLIPTextModel and kept it in
        # CLIPTextModelWithProjection; files have it, or not.
        prefix = "text_model."
        for name in names:
            bare = name.removeprefix(prefix)
            spelled |= {bare: name, prefix + bare: name}
        # a part of a language model is one of its modules, and PEFT begins with it
        spelled |= {f"{part}.{name}": name for name in names}
    spelled |= {alias.replace(".", "_"): name for alias, name in spelled.items()}
    return spelled | numbered_names(part, names)
