"""Registration: whatever is imported first, the host finds our classes, and nothing heavy is imported early."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECK = """
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
import transformers, xgen_mm
config = AutoConfig.for_model("xgenmm")
assert type(config) is xgen_mm.XGenMMConfig
for auto_class in (AutoModel, AutoModelForImageTextToText):
    assert auto_class._model_mapping[type(config)] is xgen_mm.XGenMMForConditionalGeneration
assert PROCESSOR_MAPPING[type(config)] is xgen_mm.XGenMMProcessor
assert transformers.XGenMMForConditionalGeneration is xgen_mm.XGenMMForConditionalGeneration
assert NAMES["xgenmm"] == "XGenMMForConditionalGeneration"
"""
FIRST_IMPORTS = {
    "package-first": "import xgen_mm",
    "host-first": "import transformers; import xgen_mm",
    "auto-classes-first": "from transformers import AutoModel, AutoProcessor; import xgen_mm",
    "config-only-first": "from transformers import AutoConfig; import xgen_mm",
    "modeling-utils-first": "import xgen_mm; import transformers.modeling_utils",
    "processing-utils-first": "import xgen_mm; import transformers.processing_utils",
    "our-resampler-first": "import xgen_mm.connectors.perceiver",
    "our-processor-first": "import xgen_mm.processing.processing_xgen_mm",
}


@pytest.mark.parametrize("first", FIRST_IMPORTS)
def test_auto_classes_find_ours_after_any_order_of_imports(first: str) -> None:
    code = f"{FIRST_IMPORTS[first]}\n{CHECK}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


def test_importing_the_package_imports_neither_torch_nor_training_libraries() -> None:
    code = "import sys, xgen_mm; print([m for m in ('torch', 'trl', 'peft', 'datasets', 'PIL') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_are_all_importable_and_listed() -> None:
    import xgen_mm

    assert [name for name in xgen_mm.__all__ if not hasattr(xgen_mm, name)] == []
    assert set(xgen_mm.__all__) <= set(dir(xgen_mm))
    with pytest.raises(AttributeError, match="no attribute `XGenMMNothing`"):
        xgen_mm.XGenMMNothing  # noqa: B018


def test_other_models_are_found_as_before(tmp_path: Path) -> None:
    from transformers import AutoModel, Phi3Config, Phi3Model

    import xgen_mm  # noqa: F401

    config = Phi3Config(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    Phi3Model(config).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is Phi3Model
