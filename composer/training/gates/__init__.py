"""Training gates over frozen LoRAs: MoLE, by distillation or as published."""

from composer.training.gates.config import RECOMMENDED, GateTraining
from composer.training.gates.export_plan import Exported, ExportedLora, ExportProgress, GateExport
from composer.training.gates.exporting import export_gates
from composer.training.gates.progress import GateProgress
from composer.training.gates.prompts import Called, Prompts, draft_prompts
from composer.training.gates.train import train_gates

__all__ = [
    "RECOMMENDED",
    "Called",
    "ExportProgress",
    "Exported",
    "ExportedLora",
    "GateExport",
    "GateProgress",
    "GateTraining",
    "Prompts",
    "draft_prompts",
    "export_gates",
    "train_gates",
]
