"""Gates over LoRAs of pictures: what they are worth, and what they cost."""
