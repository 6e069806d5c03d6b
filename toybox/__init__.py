"""The toybox: its world, the recipe that trains its model, and its oracle."""
