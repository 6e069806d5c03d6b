"""Gates over frozen LoRAs as a trainer of language adapters takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from composer.fusions.gate_file import GateFile, gate_sizes, gate_tensors, gated
from composer.language.batches import Batch
from composer.language.gated import Sight, attach_loras, check_settings, look
from composer.language.gates_config import LoraGatesConfig
from composer.language.load import LanguageModel
from composer.language.parts import has_encoder, named_folders, read_adapters, weights_hash
from composer.mixlora import Masks
from composer.mixture.build import new_gates
from composer.mixture.stand_in import Weights
from composer.training.gates.losses import balance_loss, shares


class LoraGates:
    """The handle on gates that are attached with their LoRAs; see `MixLora` for what each does.

    The loss is the answers' cross-entropy + alpha L_balance (MoLE, equation 16), and the gates' own
    parameters alone have gradients.
    """

    def __init__(
        self, language: LanguageModel, name: str, config: LoraGatesConfig, seed: int
    ) -> None:
        """Attach the LoRAs and gates that have learnt nothing yet, so that all have equal shares.

        Raises:
            ComposerError: a LoRA or a setting cannot be used; the model is as before.
        """
        model, folders = language.model, named_folders([Path(f) for f in config.loras])
        self.names, self.model, self.config = (name,), model, config
        self.experts = read_adapters(folders, model, language.name)
        self.base = (config.base_model or language.name, weights_hash(model))
        self.mixture = attach_loras(model, self.experts, granularity=config.granularity)
        try:
            check_settings(config.gate)
            wanted = dict.fromkeys(self.mixture.models, config.gate)
            self.mixture.set_gates(
                new_gates(self.mixture, wanted, lambda: _run(language), seed=seed)
            )
        except BaseException:
            self.mixture.detach()
            raise
        own = {id(parameter) for _, parameter in self.named_parameters(name)}
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._frozen = [parameter for parameter in trainable if id(parameter) not in own]
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def assign(self, rows: Sequence[str | None] | str | None) -> None:
        """All rows are the same gates'."""

    def show(self, batch: Batch) -> None:
        """Gates look at the requests of this batch, which the model runs on next."""
        device = cast(Any, self.model).device
        given = batch.given_mask
        sight = Sight(
            request=batch.request.to(device), given=None if given is None else given.to(device)
        )
        look(self.mixture, sight)

    def record_routing(self, masks: Masks | None = None) -> AbstractContextManager[Weights]:
        """Record the gates' weights."""
        return self.mixture.record_weights()

    def router_loss(self, tape: Weights, name: str) -> Tensor:
        """alpha L_balance."""
        if not tape:
            return torch.zeros(())
        return self.config.balance * balance_loss(tape)

    def loads(self, tape: Weights, name: str) -> dict[str, Tensor]:
        """By unit the experts' shares, (experts,), summing to 1."""
        return {unit: shares(weights.detach()).mean(0) for unit, weights in tape}

    def named_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The gates' parameters, by unit."""
        for unit, gate in self.mixture.gates.items():
            for inner, parameter in gate.named_parameters():
                yield f"{unit}.{inner}", parameter

    def parameter_groups(
        self, name: str, *, lr: float, weight_decay: float = 0.01, lora_plus: float = 1.0
    ) -> list[dict[str, Any]]:
        """e with the weight decay, and all that is no matrix without."""
        found = [parameter for _, parameter in self.named_parameters(name)]
        wide = [parameter for parameter in found if parameter.ndim > 1]
        rest = [parameter for parameter in found if parameter.ndim <= 1]
        return [
            {"params": wide, "lr": lr, "weight_decay": weight_decay, "name": "e"},
            {"params": rest, "lr": lr, "weight_decay": 0.0, "name": "rest"},
        ]

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the gate file, whole or not at all."""
        facts = {key.removeprefix("composer."): value for key, value in metadata.items()}
        settings: dict[str, Any] = json.loads(facts["training"])
        # by name, not by where they lay on this machine
        settings["adapter"]["loras"] = [expert.name for expert in self.experts]
        GateFile(
            model=self.base[0],
            model_hash=self.base[1],
            experts=gated(self.experts),
            granularity=self.config.granularity,
            settings=dict.fromkeys(self.mixture.models, self.config.gate),
            sizes=gate_sizes(self.mixture),
            tensors=gate_tensors(self.mixture),
            training={
                "objective": "answers",
                "settings": settings,
                "steps": int(facts["steps"]),
                "skipped": int(facts["skipped_steps"]),
                "loss": float(facts["smoothed_loss"]),
                "eval_loss": float(facts["eval_loss"]) if "eval_loss" in facts else None,
            },
        ).write(path)

    def detach(self) -> None:
        """Put the original modules back; again is harmless."""
        self.mixture.detach()
        for parameter in self._frozen:
            parameter.requires_grad_(True)


def _run(language: LanguageModel) -> Any:
    """Once through the model on one token, to see how wide its units are."""
    model: Any = language.model
    ids = torch.full((1, 1), language.pad, device=language.device)
    more = {"decoder_input_ids": ids} if has_encoder(model) else {}
    return model(input_ids=ids, use_cache=False, **more)
