"""Training on language models: records become a MixLoRA adapter, or several at once."""

from composer.training.language.config import LanguageTraining
from composer.training.language.progress import LanguageProgress
from composer.training.language.train import train_adapter, train_adapters

__all__ = ["LanguageProgress", "LanguageTraining", "train_adapter", "train_adapters"]
