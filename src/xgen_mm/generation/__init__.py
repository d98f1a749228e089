"""Ways to use a model beyond one call of `generate`."""
