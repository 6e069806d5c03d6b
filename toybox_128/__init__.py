"""The toybox at 128 pixels: its world, the recipe that trains its model, and its oracle."""
