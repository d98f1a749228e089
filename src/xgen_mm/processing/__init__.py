"""Image processors, chat template and processor."""
