"""LoRA files: whether each kind and naming is read exactly."""
