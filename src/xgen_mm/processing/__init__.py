"""Image processors, chat template and processor."""

# Loading the Auto classes registers the classes below (see `xgen_mm.auto`), which must not happen half-way through one
# of the modules here.
import transformers.models.auto.image_processing_auto
import transformers.models.auto.processing_auto  # noqa: F401
