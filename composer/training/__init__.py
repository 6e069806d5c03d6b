"""Training: a folder of pictures becomes a LoRA."""

from composer.training.config import LoraTraining
from composer.training.lora import train_lora
from composer.training.pictures import TrainingPicture, read_folder
from composer.training.progress import Progress
from composer.training.trainer import Diverged

__all__ = [
    "Diverged",
    "LoraTraining",
    "Progress",
    "TrainingPicture",
    "read_folder",
    "train_lora",
]
