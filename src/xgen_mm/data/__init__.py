"""Training data: records, the formats they come in, mixtures, and the batches made of them."""
