"""Trained gates taken away: one ordinary LoRA that any other program loads, with what it loses.

A gate that looks answers each picture anew, and a LoRA cannot. So pictures are sampled with the
gates, what they gave in the pass that sees the prompt becomes one weight for each unit and expert
(`composer.training.gates.averages`), over all steps or over each of K bins of them, and the LoRAs
are merged with these weights (`composer.fusions.export`). The loss is measured where the gates
lead: the mean over pictures of

    sum_t || v_gated - v_exported ||^2  /  sum_t || v_gated - v_base ||^2

with the guided predictions v at the same latents: 0 is nothing lost, 1 is as far as the bare model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from composer.clock import Clock
from composer.diffusion.model import Model
from composer.diffusion.regions import regions_of
from composer.diffusion.samplers import check_steps
from composer.errors import ComposerError
from composer.experts import Expert, LoraInfo, write_lora
from composer.experts.low_rank import LowRank
from composer.files import check_writable
from composer.fusions.export import (
    block_weights,
    blocks_for,
    lbw_string,
    merged,
    merged_by_blocks,
    unplaced_sites,
)
from composer.fusions.gate_file import GateFile
from composer.mixture import Mixture, attach
from composer.training.gates.averages import Means, Nearest, Trajectories, plan_trajectories
from composer.training.gates.settings import GateExport

ExportStage = Literal["sample", "measure", "saved"]
_LEAST = 1e-12
_DTYPES = {"float16": torch.float16, "float32": torch.float32}

Distances = Sequence[Tensor]
"""Of each batch, (batch, steps); 0 where nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class ExportedLora:
    """One written file.

    first, last: the steps it is for, counted from 1, of all `steps`.
    timesteps: of these two, as the noise schedule counts: from much noise to little.
    loss: over these steps: the squared distance from the gates' prediction, as a part of the bare
        model's; 0 is nothing lost, 1 as far as the bare model.
    blocks: for each expert, its block weights.
    """

    path: Path
    first: int
    last: int
    steps: int
    timesteps: tuple[int, int]
    loss: float
    blocks: Mapping[str, tuple[float, ...]]

    @property
    def shares(self) -> tuple[float, float]:
        """From which part of the sampling to which it is meant, 0 to 1."""
        return (self.first - 1) / self.steps, self.last / self.steps

    @property
    def lbw(self) -> tuple[str, ...]:
        """What a prompt would have for each expert's own LoRA in its place."""
        return tuple(lbw_string(name, numbers) for name, numbers in self.blocks.items())


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export came to.

    loss: over all steps.
    lbw_loss: of the LoRAs side by side with their strings of block weights in place of the file;
        None if it was not asked for, or some sites are unplaced.
    unplaced: sites that none of the block weights covers.
    """

    files: tuple[ExportedLora, ...]
    loss: float
    lbw_loss: float | None = None
    unplaced: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class ExportProgress:
    """One report. `step` of `total` counts within the stage: steps of the gates' samplings, then
    predictions that are compared. `exported` is in the last report, of stage "saved", alone."""

    stage: ExportStage
    step: int
    total: int
    seconds_left: float | None = None
    exported: Exported | None = None


def export_gates(
    model: Model,
    experts: Sequence[Expert],
    file: GateFile,
    config: GateExport,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[ExportProgress]:
    """Average gates over pictures and steps, merge their LoRAs so, write that and report what it
    loses.

    The last report has stage "saved" and what was written. When cancelled, the reports end without
    it and nothing is written. However it ends, the model is as it was, bit for bit.

    experts: those of the gate file, in any order.

    Raises:
        ComposerError: before the first report: another model, other LoRAs than the gates were
            trained with, no prompts, more steps than the model's schedule has, no place for the
            output. Later: predictions that are no numbers, a disk that is full.
    """
    file.check_model(model.name, model.hash)
    file.check_experts({expert.name: expert.tensor_hash for expert in experts})
    check_steps(config.steps, model.scheduler_config)
    config = replace(config, prompts=config.prompts or prompts_of(file))
    for path in config.paths:
        check_writable(path)
        if path.is_dir():
            raise ComposerError(f"{path} is a folder: give the name of a file as output.")
    with _gated(model, experts, file):
        pass  # whatever does not fit is refused now
    return _export(model, experts, file, config, cancelled)


def prompts_of(file: GateFile) -> tuple[str, ...]:
    """The prompts that name all experts, on which the gates were trained.

    Raises:
        ComposerError: the gate file names none.
    """
    settings = file.training.get("settings")
    given: Any = cast(Mapping[str, Any], settings).get("prompts") if _is_table(settings) else None
    found = tuple(p for p in given if isinstance(p, str) and p.strip()) if _is_list(given) else ()
    if not found:
        raise ComposerError(
            "This gate file names no prompts that it was trained on: give prompts that name all "
            "of its LoRAs."
        )
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Merge:
    """LoRAs merged by constant weights, for some steps.

    sites: of the merged LoRA, with the numbers that the file will hold; its loss is measured.
    by_blocks: of the LoRAs by their strings of block weights; None where that is not asked for.
    blocks: the block weights by LoRA.
    """

    span: range
    sites: Mapping[str, LowRank]
    by_blocks: Mapping[str, LowRank] | None
    blocks: Mapping[str, tuple[float, ...]]


def _export(
    model: Model,
    experts: Sequence[Expert],
    file: GateFile,
    config: GateExport,
    cancelled: Callable[[], bool],
) -> Iterator[ExportProgress]:
    batches = plan_trajectories(
        model,
        config.prompts,
        pictures=config.pictures,
        seed=config.seed,
        cfg_scale=config.cfg_scale,
    )
    with _gated(model, experts, file) as mixture:
        merges = yield from _merged(model, mixture, experts, file, config, batches, cancelled)
        unplaced = unplaced_sites(mixture, blocks_for(mixture, model.family))
    if merges is None:
        return
    everything = range(config.steps)
    asked: list[tuple[Mapping[str, LowRank], range]] = [({}, everything)]
    asked += [(merge.sites, merge.span) for merge in merges]
    asked += [(m.by_blocks, m.span) for m in merges if m.by_blocks is not None]
    distances = yield from _measured(model, config, batches, asked, cancelled)
    if distances is None:
        return
    far, lost = distances[0], _summed(distances[1 : 1 + len(merges)])
    by_blocks = _summed(distances[1 + len(merges) :])
    exported = Exported(
        files=tuple(
            ExportedLora(
                path=path,
                first=merge.span.start + 1,
                last=merge.span.stop,
                steps=config.steps,
                timesteps=_timesteps(batches[0], merge.span),
                loss=_loss(lost, far, merge.span),
                blocks=merge.blocks,
            )
            for path, merge in zip(config.paths, merges, strict=True)
        ),
        loss=_loss(lost, far, everything),
        lbw_loss=_loss(by_blocks, far, everything) if by_blocks else None,
        unplaced=unplaced,
    )
    for merge, written in zip(merges, exported.files, strict=True):
        info = _info_of(file, experts, config, exported, written)
        dtype = _DTYPES[config.file_type]
        write_lora(written.path, merge.sites, info, naming=config.naming, dtype=dtype)
    yield ExportProgress(stage="saved", step=1, total=1, exported=exported)


def _merged(
    model: Model,
    mixture: Mixture,
    experts: Sequence[Expert],
    file: GateFile,
    config: GateExport,
    batches: Sequence[Trajectories],
    cancelled: Callable[[], bool],
) -> Generator[ExportProgress, None, list[_Merge] | None]:
    """The LoRAs merged by what the gates gave, one for each bin; None when cancelled."""
    means, nearest = Means(steps=config.steps), Nearest(mixture, config.steps)
    regions = regions_of(model, mixture, file.experts)
    report = _Reports("sample", len(batches) * config.steps)
    for batch in batches:
        for _ in batch.sample(model, mixture, means, nearest, regions):
            yield report.next()
            if cancelled():
                return None
    layout = blocks_for(mixture, model.family)
    by_blocks = config.lbw and not unplaced_sites(mixture, layout)
    merges: list[_Merge] = []
    for span in config.spans:
        weights = nearest.weights(span, means.mean(span))
        blocks = {name: block_weights(mixture, name, weights, layout) for name in mixture.names}
        merges.append(
            _Merge(
                span=span,
                sites=_as_written(merged(mixture, experts, weights), config),
                by_blocks=(
                    merged_by_blocks(mixture, experts, blocks, layout) if by_blocks else None
                ),
                blocks=blocks,
            )
        )
    return merges


def _measured(
    model: Model,
    config: GateExport,
    batches: Sequence[Trajectories],
    asked: Sequence[tuple[Mapping[str, LowRank], range]],
    cancelled: Callable[[], bool],
) -> Generator[ExportProgress, None, list[Distances] | None]:
    """How far from the gates' predictions the model is with each of these LoRAs, in its steps;
    None when cancelled."""
    report = _Reports("measure", len(batches) * sum(len(span) for _, span in asked))
    distances: list[Distances] = []
    for sites, span in asked:
        measured = [torch.zeros(len(batch.prompts), config.steps) for batch in batches]
        with attach(model.models, {"exported": sites} if sites else {}):
            for batch, row in zip(batches, measured, strict=True):
                text = batch.text(model)
                for step in span:
                    row[:, step] = batch.distance(model, step, text)
                    yield report.next()
                    if cancelled():
                        return None
        distances.append(measured)
    return distances


def _gated(model: Model, experts: Sequence[Expert], file: GateFile) -> Mixture:
    """The mixture as pictures with these gates have it."""
    mixture = attach(model.models, {e.name: e.sites for e in experts}, granularity=file.granularity)
    try:
        file.fit(mixture)
    except BaseException:
        mixture.detach()
        raise
    return mixture


def _as_written(sites: Mapping[str, LowRank], config: GateExport) -> dict[str, LowRank]:
    """With the numbers that the file will hold, so that its loss is measured."""
    return {
        site: replace(
            factors,
            down=factors.down.to(_DTYPES[config.file_type]).float(),
            up=factors.up.to(_DTYPES[config.file_type]).float(),
        )
        for site, factors in sites.items()
    }


def _summed(parts: Sequence[Distances]) -> Distances:
    """Distances measured in some of the steps each, put together."""
    return [torch.stack(list(batch)).sum(0) for batch in zip(*parts, strict=True)]


def _loss(lost: Distances, far: Distances, span: range) -> float:
    some = slice(span.start, span.stop)
    part = [
        here[:, some].sum(1) / base[:, some].sum(1).clamp_min(_LEAST)
        for here, base in zip(lost, far, strict=True)
    ]
    return float(torch.cat(part).mean())


def _timesteps(batch: Trajectories, span: range) -> tuple[int, int]:
    return int(batch.timesteps[span.start]), int(batch.timesteps[span.stop - 1])


class _Reports:
    """Counts the steps of one stage."""

    def __init__(self, stage: ExportStage, total: int) -> None:
        self.stage: ExportStage = stage
        self.total, self.step = total, 0
        self.clock = Clock(0, total)

    def next(self) -> ExportProgress:
        self.step += 1
        left = self.clock.seconds_left(self.step)
        return ExportProgress(stage=self.stage, step=self.step, total=self.total, seconds_left=left)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _info_of(
    file: GateFile,
    experts: Sequence[Expert],
    config: GateExport,
    exported: Exported,
    written: ExportedLora,
) -> LoraInfo:
    """For the metadata of the file `written`; its origin is under the key `composer.export`."""
    names = " + ".join(expert.name for expert in file.experts)
    by_name = {expert.name: expert.info for expert in experts}
    triggers = [e.trigger.strip() or by_name[e.name].trigger for e in file.experts]
    bases = {info.base for info in by_name.values()}
    part = "" if len(exported.files) == 1 else f", for steps {written.first} to {written.last}"
    origin = {
        "gates": config.gates,
        "model": file.model,
        "model_hash": file.model_hash,
        "loras": [asdict(expert) for expert in file.experts],
        "loss": written.loss,
        "loss_of_all_steps": exported.loss,
        "steps": [written.first, written.last],
        "of_steps": written.steps,
        "timesteps": list(written.timesteps),
        "cfg_scale": config.cfg_scale,
        "pictures": config.pictures,
        "block_weights": {name: list(numbers) for name, numbers in written.blocks.items()},
    }
    return LoraInfo(
        trigger=", ".join(trigger for trigger in triggers if trigger),
        role="other",
        base=bases.pop() if len(bases) == 1 else "",
        title=written.path.stem,
        description=(
            f"{names}, merged by the constant weights nearest to their gates'{part}; of "
            f"what the gates do it loses {written.loss:.1%}."
        ),
        extra={"composer.export": json.dumps(origin, ensure_ascii=False)},
    )
