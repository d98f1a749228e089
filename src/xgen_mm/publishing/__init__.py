"""Cards, self-contained directories and uploads of checkpoints."""
