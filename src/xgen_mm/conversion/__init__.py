"""Reads, converts and checks checkpoints in the layouts of the xGen-MM releases."""
