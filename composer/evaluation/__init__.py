"""Measuring: many pictures at once, the best weights of a sum, contact sheets, maps of gates."""
