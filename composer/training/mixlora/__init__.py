"""MixLoRA on pictures: several image sets become one file of sparse experts."""

from composer.training.mixlora.settings import ImageSet, PictureMixLoraTraining
from composer.training.mixlora.train import train_picture_mixlora

__all__ = ["ImageSet", "PictureMixLoraTraining", "train_picture_mixlora"]
