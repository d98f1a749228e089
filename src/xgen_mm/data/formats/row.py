"""One raw row with checked access to its fields; every complaint names the row, the field and what was expected."""

import ast
import json
import math
import ntpath
import os
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image

from ...errors import DataError, ImageInputError
from ...images.bounded_download import MAX_IMAGE_BYTES, is_url
from ...images.opening import open_header
from ...processing.image_loading import array_to_pixels, decode_data_uri
from ..errors import Reason
from ..records import Part, Picture, Provenance, Record, Text
from ..sources import has_too_many_values

PictureCheck: TypeAlias = Literal["none", "header", "full"]

# A field that holds a JSON document or a Python literal; the largest real ones are a few hundred kilobytes.
MAX_ENCODED_CHARACTERS = 8_000_000
# `ast.literal_eval` builds a syntax tree of some hundred bytes per character.
MAX_LITERAL_CHARACTERS = 1_000_000
_PREVIEW_CHARACTERS = 60
_SHOWN_NAMES = 20
_KEY_CHARACTERS = 200
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Looks at so much of a value that a message can show, however deep or long it is.
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxdict, _REPR.maxlist, _REPR.maxtuple, _REPR.maxset = 4, 12, 20, 20, 20
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 2 * _PREVIEW_CHARACTERS
_ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-f]+>")


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRules:
    """How pictures of rows are found and how far they are looked at.

    Attributes:
        root: Directory in which picture names are looked up. Names that lead out of it are refused; links inside it
            are followed, because whoever made the directory put them there.
        other_roots: Directories in which they are looked up after it.
        check: `header` opens files and bytes as far as their size, `full` decodes them, `none` does not look at them.
            URLs are not looked at here.
        max_bytes: Largest picture in bytes.
    """

    root: Path | None = None
    other_roots: tuple[Path, ...] = ()
    check: PictureCheck = "header"
    max_bytes: int = MAX_IMAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a data set.

    Attributes:
        values: Fields by name.
        dataset: Name of the data set.
        key: What tells the row from others.
        rules: How its pictures are found.
    """

    values: Mapping[str, Any]
    dataset: str
    key: str
    rules: PictureRules = field(default_factory=PictureRules)

    def error(self, reason: Reason, where: str, expected: str) -> DataError:
        """What is wrong with the row, to be raised.

        Args:
            reason: Kind of fault.
            where: Field, or place in it.
            expected: What was found and what should be there.
        """
        return DataError(reason, f"Row `{self.key}` of `{self.dataset}`, `{where}`: {expected}.")

    def provenance(self, **details: Any) -> Provenance:
        """Where records of this row come from; details that are `None` are left out."""
        known = {name: value for name, value in details.items() if value is not None}
        return Provenance(dataset=self.dataset, key=self.key, details=known)

    def require(self, name: str) -> Any:
        """Value of a field that must be there and not be null."""
        if name not in self.values:
            raise self.error("missing field", name, f"no such field; the row has {self.names()}")
        value = self.values[name]
        if is_missing(value):
            raise self.error("missing field", name, "it is null; expected a value")
        return value

    def first_of(self, *names: str) -> str:
        """The first of several spellings that the row has.

        Raises:
            DataError: If it has none of them.
        """
        for name in names:
            if not is_missing(self.values.get(name)):
                return name
        raise self.error("missing field", names[0], f"expected one of {', '.join(names)}; the row has {self.names()}")

    def names(self) -> str:
        """Names of its fields, the first of them if there are many."""
        shown = ", ".join(str(name)[:_PREVIEW_CHARACTERS] for name in islice(self.values, _SHOWN_NAMES))
        num_more = len(self.values) - _SHOWN_NAMES
        return f"{shown} and {num_more} more" if num_more > 0 else shown or "none"

    def has(self, name: str) -> bool:
        """Whether a field is there and holds something: no null, no empty text, no list or object of nothing."""
        return not is_empty(self.values.get(name))

    def with_json_member(self) -> "Row":
        """A tar sample with the fields of its `json` member beside its own members, which come first.

        `img2dataset` writes a picture (`jpg`), its caption (`txt`) and everything else, other columns of the table
        included, into an object (`json`).
        """
        if "__key__" not in self.values or is_empty(self.values.get("json")):
            return self
        fields = self.parsed("json", notation="json")
        return replace(self, values={**fields, **self.values}) if isinstance(fields, Mapping) else self

    def text(self, name: str) -> str:
        """Text of a field, white space at its ends included."""
        return self.as_text(self.require(name), name)

    def as_text(self, value: Any, where: str) -> str:
        """The value, if it is a text that is not blank; bytes are taken as UTF-8, as members of tar shards are."""
        if isinstance(value, bytes):
            value = self._decoded_text(value, where)
        if not isinstance(value, str):
            raise self.error("wrong type", where, f"expected a text, found {describe_value(value)}")
        if not _is_valid_unicode(value):
            raise self.error("wrong type", where, f"expected a text in Unicode, found {preview(value)}")
        if not value.strip():
            raise self.error("empty text", where, "expected a text, found an empty one")
        return value

    def as_list(self, value: Any, where: str) -> list[Any]:
        """The value, if it is a list."""
        if not is_list(value):
            raise self.error("wrong nesting", where, f"expected a list, found {describe_value(value)}")
        return list(value)

    def as_mapping(self, value: Any, where: str) -> dict[str, Any]:
        """The value, if it has named fields."""
        if not isinstance(value, Mapping):
            raise self.error("wrong nesting", where, f"expected an object with fields, found {describe_value(value)}")
        return dict(value)

    def items(self, name: str) -> list[Any]:
        """List of a field."""
        return self.as_list(self.require(name), name)

    def parsed(self, name: str, *, notation: Literal["json", "python"]) -> Any:
        """Value of a field that may be written out as a JSON document or a Python literal.

        Nothing is executed. A field that already holds lists or objects is returned as it is.
        """
        value = self.require(name)
        if isinstance(value, bytes):
            value = self._decoded_text(value, name)
        if not isinstance(value, str):
            return value
        limit = MAX_ENCODED_CHARACTERS if notation == "json" else MAX_LITERAL_CHARACTERS
        if len(value) > limit:
            raise self.error("too large", name, f"{len(value)} characters of {notation}; expected at most {limit}")
        try:
            if notation == "json" and has_too_many_values(value):
                raise ValueError("too many values")
            return json.loads(value) if notation == "json" else ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
            written = "a JSON document" if notation == "json" else "a Python literal"
            raise self.error(
                "wrong JSON", name, f"expected {written}, found {preview(value)} ({cause(error)})"
            ) from error

    def _decoded_text(self, value: bytes, name: str) -> str:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error("wrong type", name, f"expected UTF-8 text, found other bytes ({error})") from error

    def picture(self, value: Any, where: str) -> Picture:
        """A picture from what a field holds.

        Args:
            value: Encoded bytes, `{"bytes": ..., "path": ...}` as `datasets` gives them, a picture, an `http(s)` URL,
                a `data:` URI, or a name below the directory of pictures.
            where: Field, for messages.

        Raises:
            DataError: If it is missing, leads out of the directory, or cannot be read.
        """
        if isinstance(value, Mapping):
            names = ("bytes", "path", "url")
            value = next((value[name] for name in names if not is_missing(value.get(name))), None)
        if isinstance(value, Image.Image):
            return Picture(value)
        if isinstance(value, np.ndarray | torch.Tensor):
            return self._picture_of_array(value, where)
        if is_missing(value) or value in ("", b""):
            raise self.error("missing image", where, "expected a picture, found nothing")
        if isinstance(value, str) and is_url(value):
            return Picture(value)
        if isinstance(value, str) and value.startswith("data:"):
            return self._checked(Picture(self._decode_uri(value, where)), where)
        if isinstance(value, str | os.PathLike):
            return self._checked(Picture(self._path(os.fspath(value), where)), where)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._checked(Picture(bytes(value)), where)
        raise self.error("wrong type", where, f"expected a picture, found {describe_value(value)}")

    def pictures(self, value: Any, where: str) -> list[Picture]:
        """Pictures from one value, or from lists and stacked arrays of them; entries that are null stand for none."""
        is_stack = isinstance(value, np.ndarray | torch.Tensor) and (value.ndim == 4 or value.dtype == object)
        if not is_stack and not is_list(value):
            return [self.picture(value, f"{where}[0]")]
        found: list[Picture] = []
        for index, item in enumerate(value):
            place = f"{where}[{index}]"
            if is_list(item):
                found += self.pictures(item, place)
            elif not is_missing(item):
                found.append(self.picture(item, place))
        return found

    def _picture_of_array(self, value: Any, where: str) -> Picture:
        try:
            pixels = array_to_pixels(np.asarray(value))
        except (ImageInputError, TypeError) as error:
            raise self.error("unreadable image", where, str(error).rstrip(".")) from error
        return Picture(Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1))))

    def _path(self, name: str, where: str) -> Path:
        first, others = self.rules.root, self.rules.other_roots
        if first is None:
            raise self.error(
                "missing image", where, f"{preview(name)} is a file name; say where pictures are: `image_root`"
            )
        if "\0" in name:
            raise self.error("unsafe path", where, f"{preview(name)} holds a null character")
        if scheme := _SCHEME.match(name):
            expected = "expected an http(s) address or a file name"
            raise self.error("unsafe path", where, f"{preview(name)} has the scheme `{scheme[0]}`; {expected}")
        is_outside = ntpath.splitdrive(name)[0] or ".." in name.replace("\\", "/").split("/")
        # As it is; as Windows writes it; and from the directory on, as some data sets write all of their names.
        spellings = [name, name.replace("\\", "/"), name.replace("\\", "/").lstrip("/")]
        for root in (first, *others) if not is_outside else ():
            base = os.path.abspath(root)
            for spelling in dict.fromkeys(spellings):
                # Joining an absolute name gives that name, so one below the root is accepted and any other is not.
                path = os.path.normpath(os.path.join(base, spelling))
                if os.path.commonpath([base, path]) == base and os.path.isfile(path):
                    return Path(path)
        if is_outside or os.path.isabs(name):
            raise self.error("unsafe path", where, f"{preview(name)} leads out of `{first}`; expected a name below it")
        beside = "".join(f" or `{root}`" for root in others)
        raise self.error("missing image", where, f"there is no file {preview(name)} in `{first}`{beside}")

    def _decode_uri(self, uri: str, where: str) -> bytes:
        if len(uri) > 2 * self.rules.max_bytes:
            raise self.error(
                "too large", where, f"a picture of {len(uri)} characters; expected {self.rules.max_bytes} bytes"
            )
        try:
            return decode_data_uri(uri)
        except ImageInputError as error:
            raise self.error("unreadable image", where, str(error).rstrip(".")) from error

    def _checked(self, picture: Picture, where: str) -> Picture:
        source = picture.source
        if self.rules.check == "none" or not isinstance(source, bytes | Path):
            return picture
        num_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
        if num_bytes > self.rules.max_bytes:
            raise self.error(
                "too large", where, f"a picture of {num_bytes} bytes; expected at most {self.rules.max_bytes}"
            )
        if num_bytes == 0:
            raise self.error("unreadable image", where, "the picture has 0 bytes")
        try:
            if self.rules.check == "full":
                picture.load()
            else:
                check_header(source)
        except ImageInputError as error:
            raise self.error("unreadable image", where, str(error).rstrip(".")) from error
        return picture


class FormatReader(ABC):
    """Turns rows of one format into records. Readers are small frozen dataclasses; their fields are the options.

    Attributes:
        dataset: Name that records carry.
        id_fields: Fields that identify a row; the first that is there becomes its key.
        has_fields_in_json: Whether the fields of a tar sample may be those of its `json` member.
        columns: Columns of the original csv or tsv file, if it has no line with their names.
    """

    dataset: ClassVar[str]
    id_fields: ClassVar[tuple[str, ...]] = ("id", "uid", "key", "__key__")
    has_fields_in_json: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def read(self, row: Row) -> list[Record]:
        """Records of one row.

        Raises:
            DataError: If the row does not have the expected layout.
        """


def check_header(source: bytes | Path) -> None:
    """Open a picture as far as its size, without decoding it.

    Raises:
        ImageInputError: If it is no picture or too large to be decoded.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else preview(source.name)
    try:
        open_header(source, name=name).close()
    except OSError as error:
        raise ImageInputError(f"the picture cannot be opened ({cause(error)})") from error


def interleave(row: Row, texts: Sequence[Any], images: Sequence[Any], *, names: tuple[str, str]) -> tuple[Part, ...]:
    """Parts of a document from two lists of the same length, of which at most one holds something at each place.

    Texts that follow one another are joined by a blank line.

    Args:
        row: The row, for messages and for finding pictures.
        texts: Text or null at each place.
        images: Picture or null at each place.
        names: Names of both fields.

    Raises:
        DataError: If the lists do not fit together, or there is nothing to read in them.
    """
    texts_name, images_name = names
    if len(texts) != len(images):
        raise row.error("wrong nesting", images_name, f"{len(images)} entries beside {len(texts)} in `{texts_name}`")
    parts: list[Part] = []
    for index, (text, image) in enumerate(zip(texts, images, strict=True)):
        has_image = not is_missing(image) and image != ""
        if not is_missing(text) and text != "":
            if has_image:
                raise row.error("wrong nesting", f"{images_name}[{index}]", "a text and a picture at the same place")
            if not isinstance(text, str):
                raise row.error(
                    "wrong type", f"{texts_name}[{index}]", f"expected a text, found {describe_value(text)}"
                )
            if parts and isinstance(parts[-1], Text):
                parts[-1] = Text(f"{parts[-1].text}\n\n{text}")
            else:
                parts.append(Text(text))
        elif has_image:
            parts.append(row.picture(image, f"{images_name}[{index}]"))
    if not any(isinstance(part, Text) and part.text.strip() for part in parts):
        raise row.error("empty text", texts_name, "expected at least one text, found none")
    return tuple(parts)


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: null, or the not-a-number that tables use for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: null, a blank text, no bytes, false, or a list or an object of nothing."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return bool(value.ndim) and len(value) == 0
    if isinstance(value, Mapping):
        return not value
    if is_list(value):
        return all(is_empty(item) for item in value)
    return is_missing(value) or value is False or (isinstance(value, str | bytes) and not value.strip())


def is_list(value: Any) -> bool:
    """Whether a value is a list of some kind: also a tuple, a column of `datasets` or of a table of objects."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def short_key(value: Any) -> str:
    """What a row is called after its id; nothing if that is none, and the beginning of a long one."""
    if is_missing(value) or not isinstance(value, str | int | float | bytes):
        return ""
    return str(value)[:_KEY_CHARACTERS]


def describe_value(value: Any) -> str:
    """A value in a few words."""
    return f"a `{type(value).__name__}` ({preview(value)})"


def preview(value: Any) -> str:
    """The first characters of a value."""
    text = repr(value[: 2 * _PREVIEW_CHARACTERS]) if isinstance(value, str | bytes) else _REPR.repr(value)
    return text if len(text) <= _PREVIEW_CHARACTERS else f"{text[: _PREVIEW_CHARACTERS - 3]}..."


def cause(error: BaseException) -> str:
    """Message of an error without the addresses of objects in memory, so that equal faults read alike."""
    return _ADDRESS.sub("", str(error)).strip() or type(error).__name__


def _is_valid_unicode(text: str) -> bool:
    """Whether a text has no halves of characters, as damaged files and careless JSON writers leave them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
