"""Configuration, resampler and model classes."""

# Loading the Auto classes registers the classes below (see `xgen_mm.auto`), which must not happen half-way through one
# of the modules here.
import transformers.models.auto.modeling_auto  # noqa: F401
