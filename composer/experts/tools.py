"""LoRAs that change how a model samples and not what it shows: tools, for pictures in few steps.

A tool is known by the names of its file and in its metadata, for nothing else tells it:
`lcm`, `tcd` and `dmd2` are words of their own; `lightning`, `turbo` and `hyper` are words of styles
too, and count beside a number of steps ("4step") or a name of the model ("sdxl"). A file whose role
is known is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A kind of LoRA for few steps, and what its makers sample with.

    alone: whether its word says enough by itself.
    """

    name: str
    steps: int
    cfg_scale: float = 1.0
    sampler: str
    schedule: str = "Automatic"
    alone: bool = False

    @property
    def settings(self) -> dict[str, int | float | str]:
        """Those of a request, by name."""
        names = ("steps", "cfg_scale", "sampler", "schedule")
        return {name: getattr(self, name) for name in names}

    @property
    def words(self) -> str:
        """The settings for people: "4 steps, CFG 1, Euler with the schedule SGM Uniform"."""
        schedule = "" if self.schedule == "Automatic" else f" with the schedule {self.schedule}"
        steps = f"{self.steps} step{'s' * (self.steps > 1)}"
        return f"{steps}, CFG {self.cfg_scale:g}, {self.sampler}{schedule}"


TOOLS = {
    "lcm": Tool(name="LCM", steps=8, sampler="LCM", alone=True),  # arXiv 2311.05556
    "tcd": Tool(name="TCD", steps=4, sampler="TCD", alone=True),  # arXiv 2402.19159
    "dmd2": Tool(name="DMD2", steps=4, sampler="LCM", alone=True),  # arXiv 2405.14867
    # arXiv 2402.13929: Euler at trailing timesteps, which A1111 calls SGM Uniform
    "lightning": Tool(name="Lightning", steps=4, sampler="Euler", schedule="SGM Uniform"),
    # arXiv 2404.13686: DDIM at trailing timesteps, whose steps are Euler's
    "hyper": Tool(name="Hyper-SD", steps=8, sampler="Euler", schedule="SGM Uniform"),
    "turbo": Tool(name="Turbo", steps=4, sampler="Euler a", schedule="SGM Uniform"),
}
"""By the word that a name holds."""
_WORDS = re.compile(r"[a-z]+2?|\d+")
_STEPS = re.compile(r"(?<!\d)(\d{1,2})[\s_-]*steps?(?![a-z])")
_MODELS = re.compile(r"(?<![a-z])sd[\s_-]*(?:xl|v?[12]|turbo)|sdxl", re.IGNORECASE)


def tool_named(names: Iterable[str]) -> Tool | None:
    """The tool that a LoRA of these names is: of its file, its title and others; None for none."""
    for name in names:
        lowered = name.lower()
        for word in _WORDS.findall(lowered.replace("sdxl", "sdxl ")):
            tool = TOOLS.get(word)
            steps = _STEPS.search(lowered)
            if tool and (tool.alone or steps or _MODELS.search(lowered)):
                count = int(steps[1]) if steps else tool.steps
                if not count:
                    continue
                one_step = count == 1 and tool.name == "Hyper-SD"
                changed = {"sampler": "TCD", "schedule": "Automatic"} if one_step else {}
                return replace(tool, steps=count, **changed)
    return None
