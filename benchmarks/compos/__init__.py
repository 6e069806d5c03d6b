"""Sets of two to five LoRAs with one character, fused in every way, as ComposLoRA asks."""
