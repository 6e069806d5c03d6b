"""LoRAs learn from pictures."""
