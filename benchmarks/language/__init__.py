"""Language models: LoRAs fused in every way, and prompts made of a few words."""
