"""Training gates over frozen LoRAs: judged by the LoRAs, or as MoLE was published."""

from composer.training.gates.export_plan import Exported, ExportedLora, ExportProgress, GateExport
from composer.training.gates.exporting import export_gates
from composer.training.gates.prompts import Called, Prompts, draft_prompts
from composer.training.gates.settings import GateProgress, GateTraining
from composer.training.gates.train import train_gates

__all__ = [
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
