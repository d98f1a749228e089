"""First release of xGen-MM (v1): CLIP ViT-H tower and a resampler that reads the prompt along with the picture."""
