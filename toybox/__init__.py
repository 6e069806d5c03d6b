"""The toybox: a small world rendered by our own code, and the Stable Diffusion trained on it."""
