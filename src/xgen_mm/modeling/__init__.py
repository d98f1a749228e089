"""Configuration, resampler and model classes."""
