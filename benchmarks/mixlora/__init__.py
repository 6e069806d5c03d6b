"""MixLoRA: what it costs and what it learns."""
