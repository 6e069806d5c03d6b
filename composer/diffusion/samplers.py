"""The samplers and schedules by the names people know from A1111, each as diffusers has it.

A sampler is a scheduler class of diffusers and its settings; a schedule says at which noise levels
the steps are, by more settings of the same class. Both go over the *model's* scheduler config, so
the prediction type, the betas and zero terminal SNR stay the model's own.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from composer.errors import ComposerError

# Where zero terminal SNR would need an infinite sigma, sampling starts from this one: the picture
# is then 1 % of the latents, hidden in noise. Of 40, 100, 400 and 4096, 100 lost least in the test
# of a perfect denoiser over all samplers that need it.
GREATEST_SIGMA = 100.0

AUTOMATIC = "Automatic"
"""The schedule that the model's own config gives."""

Settings = Mapping[str, Any]


def _over_all(option: str) -> Settings:
    """Sigmas spread by this option over the whole noise schedule; many classes take its ends from
    the timesteps, of which `linspace` alone holds both."""
    return {option: True, "timestep_spacing": "linspace"}


_BY_SIGMA: Mapping[str, Settings] = {
    "Karras": _over_all("use_karras_sigmas"),
    "Exponential": _over_all("use_exponential_sigmas"),
    "Beta": _over_all("use_beta_sigmas"),
}
# "linspace" ends at timestep 0 in the classes that follow k-diffusion, and one step before it in
# those of DPM-Solver; "trailing" differs from SGM Uniform by less than one timestep.
_K_DIFFUSION: Mapping[str, Settings] = {
    "Uniform": {"timestep_spacing": "linspace"},
    **_BY_SIGMA,
    "SGM Uniform": {"timestep_spacing": "trailing"},
    "Simple": {"timestep_spacing": "trailing"},
}
_SOLVER: Mapping[str, Settings] = {
    **_BY_SIGMA,
    "SGM Uniform": {"timestep_spacing": "linspace"},
    "Simple": {"timestep_spacing": "trailing"},
}
_SINGLE_STEPS: Mapping[str, Settings] = {**_BY_SIGMA, "SGM Uniform": {}}

SCHEDULES = (AUTOMATIC, *_K_DIFFUSION)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A named solver.

    scheduler: a class of diffusers. settings: override its config.
    schedules: those it can follow beside the model's own, and what each sets.
    usual: the schedule that A1111 gives it where it writes "Automatic".
    """

    name: str
    scheduler: str
    settings: Settings = field(default_factory=dict[str, Any])
    schedules: Mapping[str, Settings] = field(default_factory=dict[str, Settings])
    usual: str = AUTOMATIC


def _registry(*samplers: Sampler) -> dict[str, Sampler]:
    return {sampler.name: sampler for sampler in samplers}


def _solver(name: str, usual: str, **settings: Any) -> Sampler:
    scheduler = "DPMSolverMultistepScheduler"
    return Sampler(
        name=name, scheduler=scheduler, settings=settings, schedules=_SOLVER, usual=usual
    )


def _k_diffusion(name: str, scheduler: str, usual: str = "Uniform") -> Sampler:
    return Sampler(name=name, scheduler=scheduler, schedules=_K_DIFFUSION, usual=usual)


_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}

SAMPLERS: dict[str, Sampler] = _registry(
    _solver("DPM++ 2M", "Karras"),
    _solver("DPM++ 2M SDE", "Exponential", **_SDE),
    Sampler(
        name="DPM++ SDE",
        scheduler="DPMSolverSinglestepScheduler",
        settings={**_SDE, "lower_order_final": True},
        schedules=_SINGLE_STEPS,
        usual="Karras",
    ),
    _k_diffusion("Euler", "EulerDiscreteScheduler"),
    _k_diffusion("Euler a", "EulerAncestralDiscreteScheduler"),
    # Latents do not lie between -1 and 1, and diffusers' pipelines switch its clipping off as well.
    Sampler(name="DDIM", scheduler="DDIMScheduler", settings={"clip_sample": False}),
    Sampler(name="UniPC", scheduler="UniPCMultistepScheduler", schedules=_SOLVER),
    _k_diffusion("Heun", "HeunDiscreteScheduler"),
    _k_diffusion("LMS", "LMSDiscreteScheduler"),
    _k_diffusion("DPM2", "KDPM2DiscreteScheduler", "Karras"),
    _k_diffusion("DPM2 a", "KDPM2AncestralDiscreteScheduler", "Karras"),
    # For models and LoRAs that were made to draw in few steps (see `composer.experts.tools`).
    Sampler(name="LCM", scheduler="LCMScheduler"),
    Sampler(name="TCD", scheduler="TCDScheduler"),
    Sampler(name="PNDM", scheduler="PNDMScheduler", settings={"skip_prk_steps": True}),
)


def split_sampler(name: str, schedule: str = AUTOMATIC) -> tuple[str, str]:
    """The sampler and its schedule of a name that holds both, as A1111 wrote them before 1.9:
    "DPM++ 2M Karras". Any other name is left as it is."""
    for each in SCHEDULES:
        base = name.removesuffix(f" {each}")
        if base != name and base in SAMPLERS and schedule in (AUTOMATIC, each):
            return base, each
    return name, schedule


def find_sampler(name: str, schedule: str = AUTOMATIC) -> Sampler:
    """The sampler of that name, which can follow that schedule; an unknown name is an error that
    suggests close ones."""
    name, schedule = split_sampler(name, schedule)
    if name not in SAMPLERS:
        raise ComposerError(f"There is no sampler {name!r}. {_remedy(name, SAMPLERS)}")
    sampler = SAMPLERS[name]
    if schedule not in SCHEDULES:
        raise ComposerError(f"There is no schedule {schedule!r}. {_remedy(schedule, SCHEDULES)}")
    if schedule != AUTOMATIC and schedule not in sampler.schedules:
        known = ", ".join((AUTOMATIC, *sampler.schedules))
        raise ComposerError(
            f"The sampler {name!r} cannot follow the schedule {schedule!r}. Choose one of: {known}."
        )
    return sampler


def _remedy(name: str, names: Iterable[str]) -> str:
    lowered = {known.lower(): known for known in names}
    close = [lowered[c] for c in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Choose one of them: {', '.join(names)}"


def build_scheduler(
    sampler: str, model_config: Mapping[str, Any], schedule: str = AUTOMATIC
) -> Any:
    """A fresh diffusers scheduler for `sampler` and `schedule`, from the model's scheduler config.

    With zero terminal SNR the last alpha-bar is 0 and sigma = sqrt((1 - alpha-bar) / alpha-bar) is
    infinite there. DDIM is defined at that point. Classes that know ``rescale_betas_zero_snr`` cope
    as well, but not when sigmas are spread, which spends most steps on those in the thousands. All
    others get the same noise schedule lifted to end at GREATEST_SIGMA, so that no sampler divides
    by zero.
    """
    diffusers: Any = import_module("diffusers")
    sampler, schedule = split_sampler(sampler, schedule)
    chosen = find_sampler(sampler, schedule)
    scheduler_class: Any = getattr(diffusers, chosen.scheduler)
    settings = {**chosen.settings, **chosen.schedules.get(schedule, {})}
    config = _as_loaded(model_config)
    if chosen.scheduler != "DDIMScheduler":
        parameters = inspect.signature(scheduler_class.__init__).parameters
        rescales = bool(config.get("rescale_betas_zero_snr"))
        copes = "rescale_betas_zero_snr" in parameters and schedule not in _BY_SIGMA
        alpha_bar: Any = diffusers.DDIMScheduler.from_config(config).alphas_cumprod
        if float(alpha_bar[-1]) < 1 / (GREATEST_SIGMA**2 + 1) and not (rescales and copes):
            settings["trained_betas"] = _lifted_betas(alpha_bar)
            settings["rescale_betas_zero_snr"] = False
    scheduler = scheduler_class.from_config(config, **settings)
    if schedule in _BY_SIGMA and chosen.scheduler == "EulerAncestralDiscreteScheduler":
        # The one class here that spreads no sigmas; Euler's are its own otherwise.
        spread = diffusers.EulerDiscreteScheduler.from_config(config, **settings)
        own = scheduler.set_timesteps
        scheduler.set_timesteps = functools.partial(_set_as, scheduler, own, spread)
    return scheduler


def _as_loaded(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with an offset that a pipeline of diffusers set when it loaded the model: among
    the values that the file left out, and which another class would replace by its own."""
    config = dict(model_config)
    left_out = config.get("_use_default_values", ())
    config["_use_default_values"] = [name for name in left_out if name != "steps_offset"]
    return config


def _set_as(scheduler: Any, own: Any, other: Any, steps: int, device: Any = None) -> None:
    """Lay out the steps of one scheduler, after its own way, as another does."""
    own(steps, device=device)
    other.set_timesteps(steps, device=device)
    scheduler.sigmas, scheduler.timesteps = other.sigmas, other.timesteps


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
        ComposerError: the model's noise schedule has fewer, or the sampler was made for fewer.
    """
    check_steps(steps, scheduler.config)
    most = scheduler.config.get("original_inference_steps")
    if most is not None and steps > most:
        raise ComposerError(
            f"{steps} steps are more than the {most} of this sampler, which is for few steps: give "
            "4 to 8, or choose another sampler."
        )
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
