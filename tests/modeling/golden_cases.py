"""Test helper: where the recorded cases of the original code are."""

from pathlib import Path

from xgen_mm.conversion.recorded_cases import RecordedCase as GoldenCase
from xgen_mm.conversion.recorded_cases import read_case

GOLDEN = Path(__file__).parents[1] / "golden" / "model"

__all__ = ["GOLDEN", "GoldenCase", "case_names", "load_case"]


def load_case(layout: str, name: str) -> GoldenCase:
    """Read one recorded case of a layout directory (`v1_5`)."""
    return read_case(GOLDEN / layout / f"{name}.safetensors")


def case_names(layout: str) -> list[str]:
    """All recorded cases of a layout."""
    return sorted(path.stem for path in (GOLDEN / layout).glob("*.safetensors"))
