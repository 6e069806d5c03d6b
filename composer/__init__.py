"""Composer: fuse LoRAs by learned gates. Importing this loads no model and opens no connection."""

__version__ = "0.1.0"
