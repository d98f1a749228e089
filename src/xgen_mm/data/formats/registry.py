"""Formats by name. A reader's module is imported when the format is asked for; this one imports next to nothing."""

import dataclasses
import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The names alone are wanted on command lines, which must answer at once.
    from .row import FormatReader

# Module and class of each format.
FORMATS: Mapping[str, tuple[str, str]] = {
    "blip3_grounding_50m": ("blip3_grounding", "Blip3Grounding50mReader"),
    "blip3_kale": ("blip3_kale", "Blip3KaleReader"),
    "blip3_ocr_200m": ("blip3_ocr", "Blip3Ocr200mReader"),
    "blip3_ocr_hd_30m": ("blip3_ocr", "Blip3OcrHd30mReader"),
    "cc12m": ("image_text_pairs", "Cc12mReader"),
    "cc3m": ("image_text_pairs", "Cc3mReader"),
    "datacomp": ("image_text_pairs", "DataCompReader"),
    "folder": ("folder", "FolderReader"),
    "image_text_pairs": ("image_text_pairs", "ImageTextPairReader"),
    "llava_json": ("llava_json", "LlavaJsonReader"),
    "mantis": ("mantis", "MantisReader"),
    "messages": ("messages", "MessagesReader"),
    "mint1t_arxiv": ("mint1t", "Mint1TArxivReader"),
    "mint1t_html": ("mint1t", "Mint1THtmlReader"),
    "mint1t_pdf": ("mint1t", "Mint1TPdfReader"),
    "mmdu": ("mantis", "MmduReader"),
    "obelics": ("obelics", "ObelicsReader"),
    "ocr_idl": ("ocr_idl", "OcrIdlReader"),
    "question_answer": ("layouts", "QuestionAnswerReader"),
    "sbu": ("image_text_pairs", "SbuReader"),
    "trl_preference": ("trl_preference", "TrlPreferenceReader"),
    "trl_unpaired": ("trl_unpaired", "TrlUnpairedReader"),
    "vg": ("image_text_pairs", "VisualGenomeReader"),
    "vlfeedback": ("vlfeedback", "VlFeedbackReader"),
    "vlguard": ("vlguard", "VlGuardReader"),
}


def reader_class(name: str) -> "type[FormatReader]":
    """Reader of a format.

    Raises:
        ValueError: If there is no such format.
    """
    if name not in FORMATS:
        raise ValueError(
            f"`format` is {name!r}; expected one of: {', '.join(FORMATS)}.{_closest(name, list(FORMATS))}"
        )
    module, class_name = FORMATS[name]
    found: type[FormatReader] = getattr(import_module(f"{__package__}.{module}"), class_name)
    return found


def make_reader(name: str, options: Mapping[str, Any] | None = None) -> "FormatReader":
    """Reader of a format with its options, as a recipe gives them (lists stand for tuples).

    Raises:
        ValueError: If there is no such format or option, or a value is out of range.
    """
    cls = reader_class(name)
    known = [entry.name for entry in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values = {}
    for option, value in (options or {}).items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"Format `{name}` has no option {option!r}; {has}.{_closest(option, known)}")
        values[option] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _closest(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean `{matches[0]}`?" if matches else ""
