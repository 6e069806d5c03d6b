"""What a training of the U-Net knows of prompts, noise and time."""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from toybox.networks import token_ids


def new_scheduler() -> DDIMScheduler:
    """The scheduler the model ships with: v-prediction, zero terminal SNR, trailing steps."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def encode_words(words: list[str], tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> Tensor:
    """Captions as the pipeline encodes them: padded to the limit, (n, tokens, width)."""
    tokens = token_ids(tokenizer, words, padding="max_length")
    return text_encoder(tokens.to(text_encoder.device)).last_hidden_state


def draw_timesteps(count: int) -> Tensor:
    """Timesteps for one batch, four in five of them below 650, evenly spread in both parts.

    Above, at signal-to-noise ratios under 0.15, there is only colour and place to be learnt, and
    that is learnt soon; shapes are made below.
    """
    spread = (torch.rand(1) + torch.arange(count) / count).remainder(1)
    wide = torch.arange(count) % 5 == 0
    return torch.where(wide, spread * 1000, spread * 650).long()
