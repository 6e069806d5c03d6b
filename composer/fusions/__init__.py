"""Recipes: ways of using several LoRAs at once, and the files that they need."""

from composer.fusions.learned import Gates
from composer.fusions.recipe import Offer, Plan, Recipe, Weight
from composer.fusions.registry import PLAIN, RECIPES, read_recipe, recorded_recipe
from composer.fusions.rows import BLOCK_PRESETS, LoraRow, Pin, read_pins, with_blocks
from composer.fusions.sums import MixLora, Normalised, Regions, Sum

__all__ = [
    "BLOCK_PRESETS",
    "PLAIN",
    "RECIPES",
    "Gates",
    "LoraRow",
    "MixLora",
    "Normalised",
    "Offer",
    "Pin",
    "Plan",
    "Recipe",
    "Regions",
    "Sum",
    "Weight",
    "read_pins",
    "read_recipe",
    "recorded_recipe",
    "with_blocks",
]
