"""The samplers by the names people know from A1111, each a diffusers scheduler and its settings.

A sampler is built from the *model's* scheduler config, so the prediction type, the noise schedule,
zero terminal SNR and the timestep spacing stay the model's own; only the solver changes.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from composer.errors import ComposerError

# The least alpha-bar at which sigma = sqrt((1 - alpha-bar) / alpha-bar) is still of use in float32
# (sigma 4096): what diffusers itself puts in the place of zero where it knows zero terminal SNR.
LEAST_ALPHA_BAR = 2.0**-24


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

SAMPLERS: dict[str, Sampler] = _registry(
    Sampler(name="DPM++ 2M", scheduler=_MULTISTEP),
    Sampler(name="DPM++ 2M Karras", scheduler=_MULTISTEP, settings=_KARRAS),
    Sampler(name="DPM++ 2M SDE", scheduler=_MULTISTEP, settings=_SDE),
    Sampler(name="DPM++ 2M SDE Karras", scheduler=_MULTISTEP, settings={**_SDE, **_KARRAS}),
    Sampler(name="DPM++ 3M SDE", scheduler=_MULTISTEP, settings={**_SDE, "solver_order": 3}),
    Sampler(name="DPM++ SDE", scheduler=_SINGLESTEP, settings=_SDE),
    Sampler(name="DPM++ SDE Karras", scheduler=_SINGLESTEP, settings={**_SDE, **_KARRAS}),
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

    With zero terminal SNR the last alpha-bar is 0 and sigma is infinite there. DDIM is defined at
    that point and stays exact; the classes that know ``rescale_betas_zero_snr`` floor it themselves;
    for the others the same floored noise schedule is handed over as ``trained_betas``, so that no
    sampler divides by zero.
    """
    import diffusers

    chosen = find_sampler(sampler)
    scheduler_class: Any = getattr(diffusers, chosen.scheduler)
    settings = dict(chosen.settings)
    if chosen.scheduler != "DDIMScheduler":
        known = inspect.signature(scheduler_class.__init__).parameters
        rescales = bool(model_config.get("rescale_betas_zero_snr"))
        if not (rescales and "rescale_betas_zero_snr" in known):
            alpha_bar: Any = diffusers.DDIMScheduler.from_config(dict(model_config)).alphas_cumprod
            if float(alpha_bar[-1]) < LEAST_ALPHA_BAR:
                settings["trained_betas"] = _floored_betas(alpha_bar)
                settings["rescale_betas_zero_snr"] = False
    return scheduler_class.from_config(dict(model_config), **settings)


def _floored_betas(alpha_bar: Any) -> list[float]:
    """Betas whose cumulative product of (1 - beta) is ``alpha_bar`` with its zero floored."""
    floored = alpha_bar.double().clamp(min=LEAST_ALPHA_BAR).tolist()
    before = [1.0, *floored[:-1]]
    return [1.0 - now / previous for now, previous in zip(floored, before, strict=True)]
