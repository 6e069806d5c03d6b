"""MixLoRA: routers and trained experts in a model's feed-forwards, attached beside a mixture."""

from composer.mixlora.attach import MixLora, attach_mixlora
from composer.mixlora.router import STRATEGIES, RouterSettings
from composer.mixlora.rows import Masks, Tape
from composer.mixlora.settings import LoraSettings, MixLoraSettings

__all__ = [
    "STRATEGIES",
    "LoraSettings",
    "Masks",
    "MixLora",
    "MixLoraSettings",
    "RouterSettings",
    "Tape",
    "attach_mixlora",
]
