"""The small picture-reading model that ships with the package: its data, training, evaluation and checkpoint."""
