"""LoRAs, gates, MixLoRAs and models of words learn.

Nothing is imported here, so that settings are known before PyTorch is there.
"""
