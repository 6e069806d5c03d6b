"""What a diffusion model is asked to predict, and how much each noise level counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from composer.errors import ComposerError


@dataclass(frozen=True)
class Objective:
    """The forward process `z_t = a_t z_0 + s_t e` and the prediction the model was made for.

    `signal` and `noise` are `a_t` and `s_t` for every timestep, shape (timesteps,), float32, with
    `a_t^2 + s_t^2 = 1`. With zero terminal SNR the last `a_t` is 0; nothing here divides by it.
    """

    signal: Tensor
    noise: Tensor
    prediction: str

    @classmethod
    def from_scheduler(cls, config: Mapping[str, Any]) -> Objective:
        """Reads betas, zero-SNR rescaling and the prediction type from a scheduler's config."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        # Without diffusers' note of which values were defaults, for those it would replace.
        values = {key: value for key, value in config.items() if key != "_use_default_values"}
        scheduler: Any = cast(Any, DDPMScheduler).from_config(values)
        kept: Tensor = scheduler.alphas_cumprod.double().clamp(0, 1)
        prediction = str(scheduler.config.prediction_type)
        if prediction not in {"epsilon", "v_prediction", "sample"}:
            raise ComposerError(
                f"The model predicts {prediction!r}: train on one that predicts epsilon,"
                " v_prediction or sample."
            )
        return cls(kept.sqrt().float(), (1 - kept).sqrt().float(), prediction)

    @property
    def timesteps(self) -> int:
        return len(self.signal)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, spread = self._at(timesteps, latents)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """e, z_0 or v = a_t e - s_t z_0 (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512)."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return latents
        signal, spread = self._at(timesteps, latents)
        return signal * noise - spread * latents

    def weights(self, timesteps: Tensor, gamma: float | None) -> Tensor:
        """Min-SNR weights (Hang et al. 2023, https://arxiv.org/abs/2303.09556), shape (batch,).

        With SNR = a^2 / s^2: min(SNR, gamma) for z_0, divided by SNR for e and by SNR + 1 for v.
        `None` weighs all noise levels alike.
        """
        if gamma is None:
            return torch.ones(len(timesteps), device=timesteps.device)
        signal, spread = self.signal[timesteps.cpu()], self.noise[timesteps.cpu()]
        snr = (signal / spread).square()
        capped = snr.clamp(max=gamma)
        if self.prediction == "epsilon":
            weights = gamma / snr.clamp(min=gamma)  # = capped / snr, and 1 where SNR is 0
        elif self.prediction == "v_prediction":
            weights = capped / (snr + 1)
        else:
            weights = capped
        return weights.to(timesteps.device)

    def _at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1,) + (1,) * (like.ndim - 1)
        index = timesteps.cpu()
        return (
            self.signal[index].to(like).reshape(shape),
            self.noise[index].to(like).reshape(shape),
        )
