"""The model and what is attached to it. Only the studio's thread works with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.experts import Expert, ModuleNames, read_expert
from composer.fusions import Fusion
from composer.mixture import Mixture, attach

KEPT_EXPERTS = 16

Stamp = tuple[Path, int, int]  # a file as it was when it was read: path, time of change, size


class Engine:
    """One model, the experts read for it, and the mixture that stands in it now."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._modules = ModuleNames.of(model.models, model=model.name)
        self._experts: OrderedDict[Stamp, Expert] = OrderedDict()
        self._mixture: Mixture | None = None
        self._attached: tuple[Expert, ...] = ()

    @classmethod
    def load(cls, model: str, *, device: str, dtype: str | None) -> Engine:
        """Load the model, as `load_model` does; `dtype` by its name, "float16" or the like."""
        return cls(load_model(model, device=device, dtype=_dtype(dtype)))

    def read(self, name: str, path: Path) -> Expert:
        """The expert in a file, kept while the file does not change."""
        try:
            status = path.stat()
        except OSError as error:
            raise ComposerError(
                f"The LoRA {name!r} is gone: {path} cannot be read. Put it back, or press Refresh."
            ) from error
        stamp = (path, status.st_mtime_ns, status.st_size)
        if stamp not in self._experts:
            self._experts[stamp] = read_expert(path, self._modules, name=name)
            while len(self._experts) > KEPT_EXPERTS:
                self._experts.popitem(last=False)
        self._experts.move_to_end(stamp)
        return self._experts[stamp]

    def mix(
        self,
        experts: tuple[Expert, ...],
        weights: Mapping[str, Mapping[str, float]],
        fusion: Fusion,
    ) -> None:
        """Let these experts speak, and no others. Without experts the model is bare again.

        Experts are attached anew only when others speak than before; a weight is a number in a
        buffer. What was attached before does not matter to what the model then computes.
        """
        if experts != self._attached:
            self.release()
            if experts:
                self._mixture = attach(
                    self.model.models, {expert.name: expert.sites for expert in experts}
                )
                self._attached = experts
        if self._mixture is not None:
            self._mixture.set_weights(fusion.weigh(dict(weights)))

    def release(self) -> None:
        """Take the mixture out of the model, bit for bit."""
        if self._mixture is not None:
            self._mixture.detach()
        self._mixture, self._attached = None, ()


def _dtype(name: str | None) -> torch.dtype | None:
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name is None:
        return None
    if name not in kinds:
        raise ComposerError(f"There is no dtype {name!r}. Choose one of: {', '.join(kinds)}.")
    return kinds[name]
