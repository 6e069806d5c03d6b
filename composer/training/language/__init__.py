"""Training on language models: records become a MixLoRA adapter, or several at once."""

from composer.training.language.settings import LanguageProgress, LanguageTraining
from composer.training.language.train import train_adapter, train_adapters

__all__ = ["LanguageProgress", "LanguageTraining", "train_adapter", "train_adapters"]
