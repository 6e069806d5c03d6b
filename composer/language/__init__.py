"""Language models: MixLoRA's adapters, their files and their training."""
