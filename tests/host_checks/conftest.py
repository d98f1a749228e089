import pytest

from xgen_mm import XGenMMForConditionalGeneration

from .outside_view import outside_model


@pytest.fixture(scope="module")
def model() -> XGenMMForConditionalGeneration:
    return outside_model()
