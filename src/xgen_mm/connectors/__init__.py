"""Connectors: what stands between vision tower and language model, one file each with configuration and module."""
