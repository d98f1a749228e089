"""One reader per source format; `registry.py` knows them by name."""
