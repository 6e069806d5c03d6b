"""The samplers by the names people know from A1111, each a diffusers scheduler and its settings.

A sampler is built from the *model's* scheduler config, so the prediction type, the noise schedule,
zero terminal SNR and the timestep spacing stay the model's own; only the solver changes.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from composer.errors import ComposerError

# Where zero terminal SNR would need an infinite sigma, sampling starts from this one: the picture
# is then 1 % of the latents, hidden in noise. Of 40, 100, 400 and 4096, 100 lost least in the test
# of a perfect denoiser over all samplers that need it.
GREATEST_SIGMA = 100.0


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A named solver: ``scheduler`` is a class of diffusers, ``settings`` override its config."""

    name: str
    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _registry(*samplers: Sampler) -> dict[str, Sampler]:
    return {sampler.name: sampler for sampler in samplers}


_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
_MULTISTEP = "DPMSolverMultistepScheduler"
_SINGLESTEP = "DPMSolverSinglestepScheduler"
_SINGLESTEP_SDE = {**_SDE, "lower_order_final": True}

SAMPLERS: dict[str, Sampler] = _registry(
    Sampler(name="DPM++ 2M", scheduler=_MULTISTEP),
    Sampler(name="DPM++ 2M Karras", scheduler=_MULTISTEP, settings=_KARRAS),
    Sampler(name="DPM++ 2M SDE", scheduler=_MULTISTEP, settings=_SDE),
    Sampler(name="DPM++ 2M SDE Karras", scheduler=_MULTISTEP, settings={**_SDE, **_KARRAS}),
    Sampler(name="DPM++ SDE", scheduler=_SINGLESTEP, settings=_SINGLESTEP_SDE),
    Sampler(name="DPM++ SDE Karras", scheduler=_SINGLESTEP, settings=_SINGLESTEP_SDE | _KARRAS),
    Sampler(name="Euler", scheduler="EulerDiscreteScheduler"),
    Sampler(name="Euler Karras", scheduler="EulerDiscreteScheduler", settings=_KARRAS),
    Sampler(name="Euler a", scheduler="EulerAncestralDiscreteScheduler"),
    Sampler(name="DDIM", scheduler="DDIMScheduler"),
    Sampler(name="UniPC", scheduler="UniPCMultistepScheduler"),
    Sampler(name="Heun", scheduler="HeunDiscreteScheduler"),
    Sampler(name="Heun Karras", scheduler="HeunDiscreteScheduler", settings=_KARRAS),
    Sampler(name="LMS", scheduler="LMSDiscreteScheduler"),
    Sampler(name="LMS Karras", scheduler="LMSDiscreteScheduler", settings=_KARRAS),
    Sampler(name="DPM2", scheduler="KDPM2DiscreteScheduler"),
    Sampler(name="DPM2 Karras", scheduler="KDPM2DiscreteScheduler", settings=_KARRAS),
    Sampler(name="DPM2 a", scheduler="KDPM2AncestralDiscreteScheduler"),
    Sampler(name="DPM2 a Karras", scheduler="KDPM2AncestralDiscreteScheduler", settings=_KARRAS),
    Sampler(name="PNDM", scheduler="PNDMScheduler", settings={"skip_prk_steps": True}),
)


def find_sampler(name: str) -> Sampler:
    """The sampler of that name; an unknown name is an error that suggests close ones."""
    if name in SAMPLERS:
        return SAMPLERS[name]
    lowered = {known.lower(): known for known in SAMPLERS}
    close = [lowered[c] for c in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    remedy = f"Did you mean {' or '.join(map(repr, close))}?" if close else "Choose one of them:"
    known = "" if close else " " + ", ".join(SAMPLERS)
    raise ComposerError(f"There is no sampler {name!r}. {remedy}{known}")


def build_scheduler(sampler: str, model_config: Mapping[str, Any]) -> Any:
    """A fresh diffusers scheduler for ``sampler``, from the model's scheduler config.

    With zero terminal SNR the last alpha-bar is 0 and sigma = sqrt((1 - alpha-bar) / alpha-bar) is
    infinite there. DDIM is defined at that point. Classes that know ``rescale_betas_zero_snr`` cope
    as well, but not when Karras' spacing spends most steps on sigmas in the thousands. All others
    get the same noise schedule lifted to end at GREATEST_SIGMA, so that no sampler divides by zero.
    """
    diffusers: Any = import_module("diffusers")
    chosen = find_sampler(sampler)
    scheduler_class: Any = getattr(diffusers, chosen.scheduler)
    settings = dict(chosen.settings)
    if chosen.scheduler != "DDIMScheduler":
        parameters = inspect.signature(scheduler_class.__init__).parameters
        rescales = bool(model_config.get("rescale_betas_zero_snr"))
        copes = "rescale_betas_zero_snr" in parameters and not settings.get("use_karras_sigmas")
        alpha_bar: Any = diffusers.DDIMScheduler.from_config(dict(model_config)).alphas_cumprod
        if float(alpha_bar[-1]) < 1 / (GREATEST_SIGMA**2 + 1) and not (rescales and copes):
            settings["trained_betas"] = _lifted_betas(alpha_bar)
            settings["rescale_betas_zero_snr"] = False
    return scheduler_class.from_config(dict(model_config), **settings)


def check_steps(steps: int, model_config: Mapping[str, Any]) -> None:
    """Refuse more steps than the model's noise schedule has.

    Raises:
        ComposerError: with the most there may be.
    """
    most = int(model_config["num_train_timesteps"])
    if model_config.get("timestep_spacing") == "leading":
        # the first of them all would lie that far beyond the schedule
        most -= int(model_config.get("steps_offset", 0))
    if steps > most:
        raise ComposerError(
            f"{steps} steps are more than the {most} of the model's noise schedule: give fewer."
        )


def set_steps(scheduler: Any, steps: int, device: Any) -> None:
    """Lay out ``steps`` from the first timestep on.

    Left to itself, a scheduler looks the first timestep up and takes the second place when rounding
    made two of them equal, as Karras' spacing does: it would skip one and run off the end.

    Raises:
        ComposerError: the model's noise schedule has fewer.
    """
    check_steps(steps, scheduler.config)
    scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def _lifted_betas(alpha_bar: Any) -> list[float]:
    """Betas of the schedule whose sqrt(alpha-bar) ends at that of GREATEST_SIGMA and not at zero.

    The whole curve is moved, from nothing at its start to all at its end, so that no two timesteps
    have the same noise.
    """
    root = alpha_bar.double().sqrt()
    last = 1 / (GREATEST_SIGMA**2 + 1) ** 0.5
    lifted = last + (root - root[-1]) * (root[0] - last) / (root[0] - root[-1])
    now: list[float] = (lifted**2).tolist()
    return [1.0 - a / before for a, before in zip(now, [1.0, *now[:-1]], strict=True)]
