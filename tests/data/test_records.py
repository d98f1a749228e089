from io import BytesIO
from pathlib import Path

from PIL import Image

from xgen_mm.data.records import (
    Conversation,
    Document,
    Picture,
    PreferencePair,
    Provenance,
    Text,
    Turn,
    parts_of,
    pictures_of,
)

HERE = Provenance(dataset="test", key="1")


def test_picture_is_decoded_from_bytes_path_and_image_alike(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    for source in (buffer.getvalue(), path, str(path), image):
        loaded = Picture(source).load()
        assert (loaded.mode, loaded.size, loaded.getpixel((0, 0))) == ("RGB", (3, 2), (10, 20, 30))


def test_pictures_of_every_kind_of_record_come_in_reading_order() -> None:
    first, second, third = (Picture(str(number)) for number in range(3))
    user, answer, worse = Turn("user", (first, Text("?"))), Turn("assistant", (second,)), Turn("assistant", (third,))
    assert list(pictures_of(Document((first, Text("a"), second), HERE))) == [first, second]
    assert list(pictures_of(Conversation((user, answer), HERE))) == [first, second]
    pair = PreferencePair(prompt=(user,), chosen=answer, rejected=worse, provenance=HERE)
    assert list(pictures_of(pair)) == [first, second, third]
    assert list(parts_of(pair)) == [first, Text("?"), second, third]
