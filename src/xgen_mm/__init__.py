"""xGen-MM (BLIP-3) models for transformers 5."""

__version__ = "0.1.0.dev0"
