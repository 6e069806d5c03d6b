"""Trained gates taken away: one ordinary LoRA that any other program loads, with what it loses.

A gate that looks answers each picture anew, and a LoRA cannot. So pictures are sampled with the
gates, what they said in the pass that sees the prompt becomes one weight for each unit and expert
(`composer.training.gates.nearest`), over all steps or over each of K bins of them, and the LoRAs
are merged with these weights (`composer.fusions.export`). The loss is measured where the gates
lead: the mean over pictures of

    sum_t || v_gated - v_exported ||^2  /  sum_t || v_gated - v_base ||^2

with the guided predictions v at the same latents: 0 is nothing lost, 1 is as far as the bare model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from composer.diffusion.model import Model
from composer.diffusion.regions import regions_of
from composer.diffusion.samplers import check_steps
from composer.errors import ComposerError
from composer.experts import Expert, write_lora
from composer.experts.low_rank import LowRank
from composer.fusions.export import block_weights, merged, merged_by_blocks, unplaced_sites
from composer.fusions.gate_file import GateFile
from composer.mixture import Mixture, attach
from composer.training.gates.export_info import info_of
from composer.training.gates.export_plan import (
    Exported,
    ExportedLora,
    ExportProgress,
    ExportStage,
    GateExport,
)
from composer.training.gates.nearest import Nearest
from composer.training.gates.trajectories import Heard, Trajectories, plan_trajectories
from composer.training.output import check_writable
from composer.training.progress import Clock

_LEAST = 1e-12

Distances = Sequence[Tensor]
"""Of each batch, (batch, steps); 0 where nothing was measured."""
_Compared = tuple[Mapping[str, LowRank], range]


def export_gates(
    model: Model,
    experts: Sequence[Expert],
    file: GateFile,
    config: GateExport,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[ExportProgress]:
    """Average gates over pictures and steps, merge their LoRAs so, write that and say what it
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
        pass  # whatever does not fit is said now
    return _export(model, experts, file, config, cancelled)


def prompts_of(file: GateFile) -> tuple[str, ...]:
    """The prompts that name all experts, on which the gates were trained.

    Raises:
        ComposerError: the gate file tells none.
    """
    settings = file.training.get("settings")
    told: Any = cast(Mapping[str, Any], settings).get("prompts") if _is_table(settings) else None
    found = tuple(p for p in told if isinstance(p, str) and p.strip()) if _is_list(told) else ()
    if not found:
        raise ComposerError(
            "This gate file tells no prompts that it was trained on: give prompts that name all "
            "of its LoRAs."
        )
    return found


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
    heard = Heard(steps=config.steps)
    report = _Reports("sample", len(batches) * config.steps)
    with _gated(model, experts, file) as mixture:
        regions = regions_of(model, mixture, file.experts)
        nearest = Nearest(mixture, config.steps)
        for batch in batches:
            for _ in batch.sample(model, mixture, heard, nearest, regions):
                yield report.next()
                if cancelled():
                    return
        weights = [nearest.weights(span, heard.mean(span)) for span in config.spans]
        loras = [_as_written(merged(mixture, experts, each), config) for each in weights]
        blocks = [{n: block_weights(mixture, n, each) for n in mixture.names} for each in weights]
        unplaced = unplaced_sites(mixture)
        strings = [
            merged_by_blocks(mixture, experts, numbers)
            for numbers in blocks
            if config.lbw and not unplaced
        ]
    everything = range(config.steps)
    compared: list[_Compared] = [({}, everything), *zip(loras, config.spans, strict=True)]
    compared += zip(strings, config.spans, strict=False)
    report = _Reports("measure", len(batches) * sum(len(span) for _, span in compared))
    distances: list[Distances] = []
    for sites, span in compared:
        measured = [torch.zeros(len(batch.prompts), config.steps) for batch in batches]
        with attach(model.models, {"exported": sites} if sites else {}):
            for batch, row in zip(batches, measured, strict=True):
                text = batch.text(model)
                for step in span:
                    row[:, step] = batch.distance(model, step, text)
                    yield report.next()
                    if cancelled():
                        return
        distances.append(measured)
    far, lost, by_strings = (
        distances[0],
        _summed(distances[1 : 1 + config.bins]),
        _summed(distances[1 + config.bins :]),
    )
    exported = Exported(
        files=tuple(
            ExportedLora(
                path=path,
                first=span.start + 1,
                last=span.stop,
                steps=config.steps,
                timesteps=_timesteps(batches[0], span),
                loss=_loss(lost, far, span),
                blocks=numbers,
            )
            for path, span, numbers in zip(config.paths, config.spans, blocks, strict=True)
        ),
        loss=_loss(lost, far, everything),
        lbw_loss=_loss(by_strings, far, everything) if strings else None,
        unplaced=unplaced,
    )
    for sites, told in zip(loras, exported.files, strict=True):
        info = info_of(file, experts, config, exported, told)
        write_lora(told.path, sites, info, naming=config.naming, dtype=config.dtype)
    yield ExportProgress(stage="saved", step=1, total=1, exported=exported)


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
        site: LowRank(
            down=factors.down.to(config.dtype).float(),
            up=factors.up.to(config.dtype).float(),
            scale=factors.scale,
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
