"""The toybox's model, its LoRAs and their sums, and the page."""
