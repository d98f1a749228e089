"""Where pictures may come from, how they become RGB, and how unusable ones are refused."""

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from xgen_mm.errors import ImageInputError
from xgen_mm.images import bounded_download
from xgen_mm.images.bounded_download import DownloadLimits, download
from xgen_mm.processing import image_loading
from xgen_mm.processing.image_loading import array_to_pixels, fetch_image, flatten_images, pil_to_rgb
from xgen_mm.processing.image_processing_pil_xgen_mm import XGenMMImageProcessorPil
from xgen_mm.processing.image_processing_xgen_mm import XGenMMImageProcessor

SMALL: dict[str, Any] = {"size": {"height": 8, "width": 8}, "image_grid_pinpoints": [[16, 8], [8, 16], [16, 16]]}
both_classes = pytest.mark.parametrize(
    "cls", [pytest.param(XGenMMImageProcessor, id="fast"), pytest.param(XGenMMImageProcessorPil, id="pil")]
)


def picture(height: int = 6, width: int = 10) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, *, format: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def assert_same_picture(image: Any, expected: Image.Image) -> None:
    np.testing.assert_array_equal(np.asarray(pil_to_rgb(image)), np.asarray(expected.convert("RGB")))


class PictureHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = {"/picture.png": encode(picture()), "/page.html": b"<html></html>"}.get(self.path)
        moved = self.path == "/moved.png"
        self.send_response(302 if moved else 404 if found is None else 200)
        self.send_header("Location", "/picture.png")
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), PictureHandler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


@pytest.fixture
def loopback(no_proxy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of these tests counts as a public one."""
    real = bounded_download.is_public
    monkeypatch.setattr(bounded_download, "is_public", lambda number: number == "127.0.0.1" or real(number))


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda content: content, id="bytes"),
        pytest.param(bytearray, id="bytearray"),
        pytest.param(lambda content: base64.b64encode(content).decode(), id="base64"),
        pytest.param(lambda content: base64.encodebytes(content).decode(), id="base64-in-lines"),
        pytest.param(lambda content: "data:image/png;base64," + base64.b64encode(content).decode(), id="data-uri"),
    ],
)
def test_fetch_image_encoded_picture_is_decoded(convert: Any) -> None:
    assert_same_picture(fetch_image(convert(encode(picture()))), picture())


@pytest.mark.parametrize("as_type", [str, Path])
def test_fetch_image_path_is_opened_and_the_file_closed(as_type: Any, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(picture()))
    image = fetch_image(as_type(path))
    path.unlink()
    assert_same_picture(image, picture())


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("name", ["picture.png", "moved.png"])
def test_fetch_image_url_is_downloaded(server: str, name: str) -> None:
    assert_same_picture(fetch_image(f"{server}/{name}"), picture())


@pytest.mark.parametrize("source", [picture(), np.zeros((6, 10, 3), np.uint8), torch.zeros(3, 6, 10)], ids=type)
def test_fetch_image_in_memory_passes_through(source: Any) -> None:
    assert fetch_image(source) is source


@both_classes
def test_processor_takes_mixed_nested_sources(cls: Any, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(picture()))
    processor = cls(**SMALL)
    output = processor([[str(path), picture()], [encode(picture())]], return_tensors="pt")["pixel_values"]
    expected = processor(picture(), return_tensors="pt")["pixel_values"]
    assert torch.equal(output, expected.expand_as(output))


@both_classes
def test_fetch_images_keeps_the_nesting(cls: Any) -> None:
    first, second = picture(), picture()
    nested = cls().fetch_images([[first], [], [encode(second)]])
    assert [len(group) for group in nested] == [1, 0, 1]
    assert nested[0][0] is first


@both_classes
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_before_the_size_is_reported(cls: Any, orientation: int) -> None:
    corner = np.zeros((20, 40, 3), dtype=np.uint8)
    corner[:10, :10] = 255
    quarter_turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}
    mirrored = {2, 4, 5, 7}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.open(BytesIO(encode(Image.fromarray(corner), exif=exif)))
    shown = np.rot90(corner[:, ::-1] if orientation in mirrored else corner, quarter_turns[orientation])
    np.testing.assert_array_equal(np.asarray(pil_to_rgb(stored)), shown)
    output = cls(**SMALL)(stored, return_tensors="pt")
    assert output["image_sizes"].tolist() == [list(shown.shape[:2])]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_an_intact_picture() -> None:
    image = Image.open(
        BytesIO(encode(picture(), format="JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01"))
    )
    assert pil_to_rgb(image).size == (10, 6)


@pytest.mark.parametrize(
    ("mode", "colour"), [("RGBA", (10, 20, 30, 0)), ("LA", (10, 0)), ("PA", (1, 0)), ("RGBa", (0, 0, 0, 0))]
)
def test_transparent_pixels_become_white(mode: str, colour: tuple[int, ...]) -> None:
    image = Image.new(mode, (4, 4), colour)
    assert np.asarray(pil_to_rgb(image)).min() == 255


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    image = Image.new("RGBA", (1, 1), (0, 100, 200, 51))
    np.testing.assert_allclose(np.asarray(pil_to_rgb(image))[0, 0], (204, 224, 244), atol=1)


@pytest.mark.parametrize(
    ("image", "transparency"),
    [
        pytest.param(Image.new("RGB", (2, 2), (9, 8, 7)).quantize(2), 0, id="palette-index"),
        pytest.param(Image.new("RGB", (2, 2), (9, 8, 7)), (9, 8, 7), id="colour-key"),
        pytest.param(Image.new("L", (2, 2), 9), 9, id="gray-key"),
    ],
)
def test_transparent_colour_of_a_png_becomes_white(image: Image.Image, transparency: Any) -> None:
    stored = Image.open(BytesIO(encode(image, transparency=transparency)))
    assert pil_to_rgb(stored).getpixel((0, 0)) == (255, 255, 255)


def test_opaque_rgba_is_the_plain_colour() -> None:
    assert_same_picture(picture().convert("RGBA"), picture())


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_convert_as_pillow_does(mode: str) -> None:
    image = picture().convert(mode)
    assert_same_picture(image, image)


@pytest.mark.parametrize(
    ("pixels", "shown"),
    [
        pytest.param(np.array([[0, 257, 65535]], dtype=np.uint16), [0, 1, 255], id="16-bit"),
        pytest.param(np.array([[0, 255, 7]], dtype=np.uint16), [0, 1, 0], id="dark-16-bit"),
        pytest.param(np.array([[0, 255, 7]], dtype=np.int32), [0, 255, 7], id="8-bit-in-32"),
        pytest.param(np.array([[0, 257, 65535]], dtype=np.int32), [0, 1, 255], id="16-bit-in-32"),
        pytest.param(np.array([[0, 256, 65535]], dtype=np.int32), [0, 1, 255], id="just-above-8-bit"),
        pytest.param(np.array([[0, 256, 256]], dtype=np.int32), [0, 1, 1], id="dark-but-above-8-bit"),
        pytest.param(np.array([[0.0, 255.5, 256.0]], dtype=np.float32), [0, 1, 1], id="floats-just-above-8-bit"),
        pytest.param(np.array([[0.0, 0.2, 1.0]], dtype=np.float32), [0, 51, 255], id="unit-float"),
        pytest.param(np.array([[0.0, 51.4, 255.0]], dtype=np.float32), [0, 51, 255], id="float-levels"),
    ],
)
def test_deep_modes_are_scaled_rather_than_clipped(pixels: Any, shown: list[int]) -> None:
    rgb = np.asarray(pil_to_rgb(Image.fromarray(pixels)))
    assert rgb.shape == (1, 3, 3)
    assert rgb[0].tolist() == [[level] * 3 for level in shown]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_animation_shows_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    content = encode(frames[0], format=format, save_all=True, append_images=frames[1:], lossless=True)
    image = fetch_image(content)
    assert isinstance(image, Image.Image)
    assert getattr(image, "n_frames", 1) == 2
    assert pil_to_rgb(image).getpixel((2, 2)) == (255, 0, 0)


def test_boolean_mask_is_black_and_white() -> None:
    pixels = array_to_pixels(np.array([[True, False]]))
    assert pixels.dtype == np.uint8
    assert pixels[:, 0].tolist() == [[255, 0]] * 3


def test_unit_float_rgba_is_mixed_with_white() -> None:
    pixels = array_to_pixels(np.full((2, 2, 4), [0.5, 0.0, 1.0, 0.25], dtype=np.float32), do_rescale=False)
    np.testing.assert_allclose(pixels[:, 0, 0], [0.875, 0.75, 1.0])


@both_classes
@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(None, r"holds a `NoneType`; expected a PIL image", id="none"),
        pytest.param(3.5, r"holds a `float`; expected a PIL image", id="number"),
        pytest.param([{"image": b""}], r"holds a `dict`; expected a PIL image", id="dict"),
        pytest.param([{"bytes": b"", "path": None}], r"'0 bytes' is not a picture", id="empty-bytes"),
        pytest.param([{"bytes": None, "path": None}], r"holds a `dict`", id="no-bytes-and-no-path"),
        pytest.param([None], r"`images` is empty", id="list-of-none"),
        pytest.param([], r"`images` is empty", id="empty-list"),
        pytest.param([[], []], r"`images` is empty", id="nested-empty-lists"),
        pytest.param(Image.new("RGB", (0, 5)), r"shape \(5, 0\) without pixels", id="no-pixels-pil"),
        pytest.param(np.zeros((0, 5, 3), np.uint8), r"shape .* without pixels", id="no-pixels-numpy"),
        pytest.param(torch.zeros(3, 0, 5), r"shape .* without pixels", id="no-pixels-torch"),
        pytest.param(np.zeros((2, 5, 7), np.uint8), r"without an axis of 1, 3 or 4 channels", id="two-channels"),
        pytest.param(np.zeros(5, np.uint8), r"shape \(5,\); expected 2 dimensions", id="one-dimension"),
        pytest.param(np.zeros((1, 1, 3, 4, 4), np.uint8), r"expected 2 dimensions", id="five-dimensions"),
        pytest.param(np.full((4, 4, 3), -1.0), r"range from -1 to -1; expected 0 to 1", id="negative-floats"),
        pytest.param(np.full((4, 4, 3), 256.0), r"range from 256 to 256", id="floats-too-large"),
        pytest.param(np.full((4, 4, 3), np.nan), r"range from nan to nan", id="not-a-number"),
        pytest.param(np.full((4, 4, 3), 300), r"expected 0 to 255. Scale them", id="integers-too-large"),
        pytest.param(np.full((4, 4, 3), -1), r"range from -1 to -1", id="negative-integers"),
        pytest.param(Image.fromarray(np.full((2, 2), 70000, np.int32)), r"expected 0 to 65535", id="deep-pil"),
        pytest.param("no/such/picture.png", r"'no/such/picture.png' is no existing file", id="missing-path"),
        pytest.param(Path("no/such/picture.png"), r"'no/such/picture.png' does not exist", id="missing-path-object"),
        pytest.param("", r"'' could not be|'' is not a picture", id="empty-string"),
        pytest.param(b"hello", r"'5 bytes' is not a picture", id="not-a-picture"),
        pytest.param(base64.b64encode(b"hello").decode(), r"'aGVsbG8=' is not a picture", id="base64-text"),
        pytest.param("data:text/plain;base64,aGVsbG8=", r"starts with 'data:text/plain;base64'", id="data-uri-text"),
        pytest.param("data:image/png;base64,###", r"holds no base64 picture", id="data-uri-damaged"),
        pytest.param(encode(picture(90, 90))[:-9000], r"truncated or damaged", id="truncated-png"),
        pytest.param(encode(picture(90, 90), format="JPEG")[:-2000], r"truncated or damaged", id="truncated-jpeg"),
        pytest.param(encode(picture(90, 90), format="BMP")[:-2000], r"truncated or damaged", id="truncated-bmp"),
        pytest.param(Path(__file__).parent, r"cannot be opened as a picture", id="directory"),
    ],
)
def test_unusable_input_names_value_and_expectation(cls: Any, source: Any, message: str) -> None:
    with pytest.raises(ImageInputError, match=message):
        cls(**SMALL)(source)


@both_classes
def test_truncated_picture_opened_by_the_caller_is_refused(cls: Any) -> None:
    image = Image.open(BytesIO(encode(picture(90, 90))[:-9000]))
    with pytest.raises(ImageInputError, match="90x90 picture of mode 'RGB' could not be decoded"):
        cls(**SMALL)(image)


def test_mode_without_rgb_equivalent_is_refused() -> None:
    with pytest.raises(ImageInputError, match="mode 'La' has no RGB equivalent"):
        pil_to_rgb(Image.new("La", (2, 2)))


def test_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(picture(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageInputError, match=r"more than twice `PIL\.Image\.MAX_IMAGE_PIXELS` = 100"):
        fetch_image(content)


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("missing.png", "could not be downloaded .*404", id="not-found"),
        pytest.param("page.html", "is not a picture in a format", id="not-a-picture"),
    ],
)
def test_url_without_a_picture_is_refused(server: str, name: str, message: str) -> None:
    with pytest.raises(ImageInputError, match=message):
        fetch_image(f"{server}/{name}")


@pytest.mark.usefixtures("loopback")
def test_unreachable_url_is_refused() -> None:
    with pytest.raises(ImageInputError, match="could not be downloaded"):
        fetch_image("http://127.0.0.1:9/picture.png")


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param("max_bytes", 10, "sends more than 10 bytes", id="size"),
        pytest.param("deadline_seconds", -1.0, "took longer than -1 s", id="time"),
    ],
)
def test_download_beyond_a_limit_is_refused(server: str, name: str, value: Any, message: str) -> None:
    with pytest.raises(ImageInputError, match=message):
        download(f"{server}/picture.png", limits=DownloadLimits(**{name: value}))


def test_long_source_is_shortened_in_the_message() -> None:
    with pytest.raises(ImageInputError, match=r"'x{77}\.\.\.' is no existing file"):
        fetch_image("x" * 5000 + "!")


def test_flatten_images_splits_stacks_and_lists() -> None:
    stack = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    single = picture()
    flat = flatten_images([stack, [single, (stack[0],)]])
    assert [type(item).__name__ for item in flat] == ["ndarray", "ndarray", "Image", "ndarray"]


@pytest.mark.parametrize("shape", [(4, 9, 3), (3, 9, 3), (1, 5, 4), (3, 3, 3)])
def test_array_whose_channels_may_be_first_or_last_is_warned_about(
    shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    image_loading._warn_once.cache_clear()
    array_to_pixels(np.zeros(shape, dtype=np.uint8), do_convert_rgb=False)
    assert "may have its channels first or last" in caplog.text
    caplog.clear()
    array_to_pixels(np.zeros(shape, dtype=np.uint8), input_data_format="channels_last", do_convert_rgb=False)
    array_to_pixels(np.zeros((5, 9, 3), dtype=np.uint8), do_convert_rgb=False)
    assert caplog.text == ""


@pytest.mark.parametrize("prefix", ["file://", "FILE://localhost", ""])
def test_file_address_is_the_path_behind_it(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "a b.png"
    path.write_bytes(encode(picture()))
    assert_same_picture(fetch_image(f"{prefix}{path}".replace(" ", "%20" if prefix else " ")), picture())


@pytest.mark.parametrize("as_type", [str, Path])
def test_home_directory_may_be_written_short(as_type: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "picture.png").write_bytes(encode(picture()))
    assert_same_picture(fetch_image(as_type("~/picture.png")), picture())


@pytest.mark.parametrize(
    "source",
    [
        *("file:///no/such.png", "file://other/picture.png", "file://", "~/no/such.png", "~nobody/x.png", "a.png "),
        *("\ud800.png", "a\x00b.png", "DATA:image/png,x", Path("\ud800.png"), Path("a\x00b.png"), Path("x" * 5000)),
    ],
    ids=repr,
)
def test_path_that_leads_nowhere_is_the_image_error(source: Any) -> None:
    with pytest.raises(ImageInputError):
        fetch_image(source)
