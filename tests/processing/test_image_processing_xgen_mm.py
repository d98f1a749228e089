"""Both image processors: the released bits, the fast class beside them, layouts, settings and refusals."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from transformers.image_utils import PILImageResampling
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from xgen_mm.errors import ImageInputError
from xgen_mm.processing import image_loading, image_processing_xgen_mm
from xgen_mm.processing.image_processing_pil_xgen_mm import XGenMMImageProcessorPil
from xgen_mm.processing.image_processing_xgen_mm import XGenMMImageProcessor

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocessing"
RECORDED = json.loads((GOLDEN / "preprocessing.json").read_text())["images"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "v1.5": {},
    "v1": {
        "size": {"height": 378, "width": 378},
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
        "image_grid_pinpoints": [[756, 378], [378, 756], [756, 756], [378, 1134], [1134, 378]],
    },
}
MODES = ("anyres", "pad", "none")
SMALL: dict[str, Any] = {
    "size": {"height": 8, "width": 8},
    "image_grid_pinpoints": [[16, 8], [8, 16], [16, 16], [8, 24], [24, 8]],
}
# Pillow 13 scales the height of this picture first; the recorded values come from that version.
NEEDS_PILLOW_13 = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="recorded with Pillow 13")
MARKS = {("astronaut_large", "anyres"): NEEDS_PILLOW_13, ("astronaut_large", "none"): NEEDS_PILLOW_13}
CASES = [
    pytest.param(name, layout, mode, id=f"{name}-{layout}-{mode}", marks=MARKS.get((name, mode), ()))
    for name, record in RECORDED.items()
    for layout in LAYOUTS
    for mode in MODES
    if layout in record
]

AnyProcessor = type[XGenMMImageProcessor] | type[XGenMMImageProcessorPil]
both_classes = pytest.mark.parametrize(
    "cls", [pytest.param(XGenMMImageProcessor, id="fast"), pytest.param(XGenMMImageProcessorPil, id="pil")]
)


def photo(name: str) -> Image.Image:
    return Image.open(GOLDEN / f"{name}.png")


def picture(height: int, width: int, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(levels(height, width, seed=seed))


def levels(height: int, width: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def in_levels(difference: torch.Tensor, std: Any) -> torch.Tensor:
    return difference.abs() * torch.tensor(std)[:, None, None] * 255


@pytest.mark.parametrize(("name", "layout", "mode"), CASES)
def test_pil_processor_photo_gives_the_released_bits(name: str, layout: str, mode: str) -> None:
    processor = XGenMMImageProcessorPil(**LAYOUTS[layout], image_aspect_ratio=mode)
    values = processor(photo(name), return_tensors="np")["pixel_values"][0]
    recorded = RECORDED[name][layout][mode]
    assert list(values.shape) == recorded["shape"]
    assert hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() == recorded["sha256_f32"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", RECORDED)
def test_fast_processor_photo_stays_within_two_levels_of_pil(name: str, layout: str, mode: str) -> None:
    settings = LAYOUTS[layout] | {"image_aspect_ratio": mode}
    fast = XGenMMImageProcessor(**settings)
    exact = XGenMMImageProcessorPil(**settings)(photo(name), return_tensors="pt")
    output = fast(photo(name), return_tensors="pt")
    assert output.keys() == exact.keys()
    assert output["pixel_values"].shape == exact["pixel_values"].shape
    difference = in_levels(output["pixel_values"] - exact["pixel_values"], fast.image_std)
    assert difference.max() <= 2.001
    assert difference.mean() <= 0.01


@both_classes
def test_defaults_are_those_of_the_released_instruct_checkpoint(cls: AnyProcessor) -> None:
    processor = cls()
    assert processor.size == {"height": 384, "width": 384}
    assert processor.image_aspect_ratio == "anyres"
    assert processor.image_grid_pinpoints == [[768, 384], [384, 768], [768, 768], [384, 1152], [1152, 384]]
    assert list(processor.image_mean) == list(processor.image_std) == [0.5, 0.5, 0.5]
    assert processor.model_input_names == ["pixel_values", "image_sizes"]


@both_classes
def test_anyres_output_has_tiles_and_original_sizes(cls: AnyProcessor) -> None:
    output = cls(**SMALL)([picture(40, 20), picture(30, 30)], return_tensors="pt")
    assert output["pixel_values"].shape == (2, 5, 3, 8, 8)
    assert output["pixel_values"].dtype == torch.float32
    assert output["image_sizes"].dtype == torch.int64
    assert output["image_sizes"].tolist() == [[40, 20], [30, 30]]


@both_classes
@pytest.mark.parametrize("mode", ["pad", "none"])
def test_single_tile_modes_leave_image_sizes_out(cls: AnyProcessor, mode: str) -> None:
    output = cls(**SMALL, image_aspect_ratio=mode)([picture(40, 20), picture(30, 30)], return_tensors="pt")
    assert output.keys() == {"pixel_values"}
    assert output["pixel_values"].shape == (2, 1, 3, 8, 8)


@both_classes
def test_tiles_of_a_canvas_sized_picture_are_its_crops_row_by_row(cls: AnyProcessor) -> None:
    source = levels(16, 16)
    tiles = cls(**SMALL, do_normalize=False)(source, return_tensors="np")["pixel_values"][0]
    for row in range(2):
        for col in range(2):
            crop = source[row * 8 : row * 8 + 8, col * 8 : col * 8 + 8].transpose(2, 0, 1) / 255
            np.testing.assert_allclose(tiles[1 + 2 * row + col], crop, atol=1e-6)


@both_classes
def test_thumbnail_comes_first_and_shows_the_whole_picture(cls: AnyProcessor) -> None:
    halves = np.zeros((8, 16, 3), dtype=np.uint8)
    halves[:, 8:] = 255
    tiles = cls(**SMALL, do_normalize=False)(halves, return_tensors="np")["pixel_values"][0]
    assert tiles.shape[0] == 3
    assert tiles[0][..., 0].max() < 0.1 < 0.9 < tiles[0][..., -1].min()
    assert tiles[1].max() == 0
    assert tiles[2].min() == pytest.approx(1)


@both_classes
def test_canvas_padding_is_black_and_centred(cls: AnyProcessor) -> None:
    white = np.full((5, 16, 3), 255, dtype=np.uint8)
    tiles = cls(**SMALL)(white, return_tensors="np")["pixel_values"][0][1:]
    # The fast class rounds once, after product and difference.
    np.testing.assert_allclose(tiles[:, :, :1], -1, rtol=1e-6)
    np.testing.assert_allclose(tiles[:, :, 1:6], 1, rtol=1e-6)
    np.testing.assert_allclose(tiles[:, :, 6:], -1, rtol=1e-6)


@both_classes
def test_pad_mode_surrounds_the_picture_with_the_mean_colour(cls: AnyProcessor) -> None:
    white = np.full((4, 8, 3), 255, dtype=np.uint8)
    processor = cls(**SMALL, image_aspect_ratio="pad", image_mean=[0.2, 0.5, 0.9], do_normalize=False)
    tile = processor(white, return_tensors="np")["pixel_values"][0, 0] * 255
    np.testing.assert_allclose(tile[:, 0, 0], [51, 127, 229], atol=1e-3)
    np.testing.assert_allclose(tile[:, 4, 4], 255, atol=1e-3)


@both_classes
def test_batch_fills_up_with_zero_tiles_after_normalisation(cls: AnyProcessor) -> None:
    processor = cls(**SMALL, image_mean=[0.1, 0.2, 0.3])
    strip, square = picture(20, 40), picture(30, 30)
    values = processor([strip, square], return_tensors="pt")["pixel_values"]
    assert values.shape[:2] == (2, 5)
    assert torch.equal(values[0, 3:], torch.zeros(2, 3, 8, 8))
    assert torch.equal(values[0, :3], processor(strip, return_tensors="pt")["pixel_values"][0])
    assert torch.equal(values[1], processor(square, return_tensors="pt")["pixel_values"][0])


@both_classes
def test_without_padding_each_picture_keeps_its_own_tile_count(cls: AnyProcessor) -> None:
    values = cls(**SMALL)([picture(20, 40), picture(30, 30)], do_pad=False)["pixel_values"]
    assert [len(tiles) for tiles in values] == [3, 5]


@both_classes
def test_nested_lists_are_flattened_in_reading_order(cls: AnyProcessor) -> None:
    processor = cls(**SMALL)
    first, second, third = (picture(20, 40, seed=seed) for seed in range(3))
    flat = processor([first, second, third], return_tensors="pt")
    groups: Any = [[first], [], [second, third]]
    nested = processor(groups, return_tensors="pt")
    assert torch.equal(flat["pixel_values"], nested["pixel_values"])
    assert torch.equal(flat["image_sizes"], nested["image_sizes"])


@both_classes
@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda pixels: pixels, id="numpy-channels-last"),
        pytest.param(lambda pixels: pixels.transpose(2, 0, 1), id="numpy-channels-first"),
        pytest.param(lambda pixels: np.ascontiguousarray(pixels[::-1])[::-1], id="numpy-negative-stride"),
        pytest.param(lambda pixels: pixels[None], id="numpy-stack"),
        pytest.param(lambda pixels: torch.from_numpy(pixels), id="torch-channels-last"),
        pytest.param(lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1), id="torch-channels-first"),
        pytest.param(lambda pixels: [torch.from_numpy(pixels)[None]], id="list-of-torch-stacks"),
        pytest.param(lambda pixels: pixels.astype(np.int64), id="int64"),
        pytest.param(lambda pixels: pixels.astype(np.float32), id="float-levels"),
        pytest.param(lambda pixels: pixels.astype(np.uint16) * 257, id="uint16"),
        pytest.param(lambda pixels: torch.from_numpy(pixels).bfloat16(), id="bfloat16-levels"),
    ],
)
def test_arrays_and_tensors_give_what_the_pil_image_gives(cls: AnyProcessor, convert: Any) -> None:
    processor = cls(**SMALL)
    pixels = levels(19, 33)
    expected = processor(Image.fromarray(pixels), return_tensors="pt")
    output = processor(convert(pixels), return_tensors="pt")
    assert torch.equal(output["pixel_values"], expected["pixel_values"])
    assert torch.equal(output["image_sizes"], expected["image_sizes"])


@both_classes
@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda gray: gray, id="two-dimensions"),
        pytest.param(lambda gray: torch.from_numpy(gray), id="two-dimensions-torch"),
        pytest.param(lambda gray: gray[None], id="one-channel-first"),
        pytest.param(lambda gray: gray[..., None], id="one-channel-last"),
    ],
)
def test_grayscale_arrays_give_what_the_grayscale_image_gives(cls: AnyProcessor, convert: Any) -> None:
    processor = cls(**SMALL)
    gray = levels(19, 33)[..., 0]
    expected = processor(Image.fromarray(gray), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(convert(gray), return_tensors="pt")["pixel_values"], expected)


@both_classes
def test_rgba_array_gives_what_the_rgba_image_gives(cls: AnyProcessor) -> None:
    processor = cls(**SMALL)
    rgba = np.dstack([levels(19, 33), levels(19, 33, seed=1)[..., 0]])
    expected = processor(Image.fromarray(rgba), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(rgba, return_tensors="pt")["pixel_values"], expected)


@both_classes
def test_input_data_format_settles_an_ambiguous_shape(cls: AnyProcessor) -> None:
    processor = cls(**SMALL)
    pixels = levels(3, 40)
    expected = processor(Image.fromarray(pixels), return_tensors="pt")
    output = processor(pixels, input_data_format="channels_last", return_tensors="pt")
    assert output["image_sizes"].tolist() == [[3, 40]]
    assert torch.equal(output["pixel_values"], expected["pixel_values"])


@both_classes
def test_unit_floats_without_rescaling_give_what_the_levels_give(cls: AnyProcessor) -> None:
    processor = cls(**SMALL)
    pixels = levels(19, 33)
    expected = processor(pixels, return_tensors="pt")["pixel_values"]
    output = processor(pixels.astype(np.float32) / 255, do_rescale=False, return_tensors="pt")["pixel_values"]
    assert in_levels(output - expected, processor.image_std).max() <= 2.001


@both_classes
def test_unit_floats_with_rescaling_are_not_darkened_and_warned_about(
    cls: AnyProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    image_loading._warn_once.cache_clear()
    processor = cls(**SMALL)
    pixels = levels(19, 33)
    output = processor(pixels.astype(np.float32) / 255, return_tensors="pt")["pixel_values"]
    assert torch.equal(output, processor(pixels, return_tensors="pt")["pixel_values"])
    assert "Pass `do_rescale=False`" in caplog.text


@both_classes
def test_steps_can_be_switched_off_one_by_one(cls: AnyProcessor) -> None:
    tile = levels(8, 8)
    processor = cls(**SMALL, image_aspect_ratio="none")
    raw = processor(tile, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0, 0]
    scaled = processor(tile, do_normalize=False, return_tensors="np")["pixel_values"][0, 0]
    flipped = processor(tile, rescale_factor=-1.0, do_normalize=False, return_tensors="np")["pixel_values"][0, 0]
    np.testing.assert_array_equal(raw, tile.transpose(2, 0, 1))
    np.testing.assert_allclose(scaled, tile.transpose(2, 0, 1) / 255, rtol=1e-6)
    np.testing.assert_array_equal(flipped, -tile.transpose(2, 0, 1).astype(np.float32))


@both_classes
def test_one_mean_serves_all_channels(cls: AnyProcessor) -> None:
    one = cls(**SMALL, image_mean=0.3, image_std=0.7)(levels(8, 16), return_tensors="pt")["pixel_values"]
    three = cls(**SMALL, image_mean=[0.3] * 3, image_std=[0.7] * 3)(levels(8, 16), return_tensors="pt")["pixel_values"]
    assert torch.equal(one, three)


@both_classes
def test_without_rgb_conversion_the_channels_pass_through(cls: AnyProcessor) -> None:
    rgba = np.dstack([levels(19, 33), levels(19, 33, seed=1)[..., 0]])
    processor = cls(**SMALL, do_convert_rgb=False, image_mean=[0.0] * 4, image_std=[1.0] * 4)
    output = processor(rgba, return_tensors="pt")["pixel_values"]
    assert output.shape == (1, 5, 4, 8, 8)
    colour = cls(**SMALL, image_mean=[0.0] * 3, image_std=[1.0] * 3)(rgba[..., :3], return_tensors="pt")
    assert (output[:, :, :3] - colour["pixel_values"]).abs().max() <= 1.01 / 255


@both_classes
def test_without_resizing_pictures_are_finished_tiles(cls: AnyProcessor) -> None:
    processor = cls(**SMALL, do_resize=False)
    output = processor([levels(8, 8), levels(8, 8, seed=1)], return_tensors="pt")
    assert output.keys() == {"pixel_values"}
    assert output["pixel_values"].shape == (2, 1, 3, 8, 8)
    with pytest.raises(ImageInputError, match=r"finished tiles of 8 x 8 pixels, but one has .* \(9, 8\)"):
        processor(levels(9, 8))


@both_classes
@pytest.mark.parametrize("kind", ["np", "pt"])
def test_return_tensors_chooses_the_kind_of_array(cls: AnyProcessor, kind: str) -> None:
    output = cls(**SMALL)(picture(9, 9), return_tensors=kind)
    expected = {"np": np.ndarray, "pt": torch.Tensor}[kind]
    assert {key: type(value) for key, value in output.items()} == {"pixel_values": expected, "image_sizes": expected}


@both_classes
def test_without_return_tensors_lists_of_one_entry_per_picture_come_back(cls: AnyProcessor) -> None:
    output = cls(**SMALL)([picture(9, 9), picture(20, 40)])
    assert len(output["pixel_values"]) == 2
    assert output["image_sizes"] == [[9, 9], [20, 40]]


@both_classes
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)], ids=["one-pixel", "one-column", "one-row"])
def test_extreme_shapes_work_in_every_mode(cls: AnyProcessor, mode: str, size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 200, dtype=np.uint8)
    processor = cls(**SMALL, image_aspect_ratio=mode)
    output = processor(pixels, input_data_format="channels_last", return_tensors="pt")
    assert torch.isfinite(output["pixel_values"]).all()
    assert output["pixel_values"].shape[1] == processor.get_number_of_image_patches(*size)


@both_classes
def test_enlarged_square_of_a_long_strip_stays_close_to_the_plain_result(cls: AnyProcessor) -> None:
    strip = np.full((20, 8300, 3), 255, dtype=np.uint8)
    tile = cls(**SMALL, image_aspect_ratio="pad")(strip, return_tensors="pt")["pixel_values"][0, 0]
    assert tile[:, :3].abs().max() < 0.02
    assert tile[:, 3:5].min() > -0.01


@both_classes
@pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({}, id="stored-settings"),
        pytest.param({"image_aspect_ratio": "pad"}, id="pad"),
        pytest.param({"image_grid_pinpoints": [[32, 32]]}, id="other-canvases"),
        pytest.param({"size": {"height": 4, "width": 4}}, id="smaller-tiles"),
        pytest.param({"size": 4, "image_aspect_ratio": None}, id="size-as-number"),
    ],
)
def test_number_of_image_patches_equals_the_tiles_made(cls: AnyProcessor, kwargs: dict[str, Any]) -> None:
    processor = cls(**SMALL)
    given = {key: value for key, value in kwargs.items() if value is not None}
    output = processor(picture(21, 50), return_tensors="pt", **given)
    assert processor.get_number_of_image_patches(21, 50, kwargs) == output["pixel_values"].shape[1]


@both_classes
def test_saved_settings_load_into_either_class(cls: AnyProcessor, tmp_path: Path) -> None:
    settings = SMALL | {"image_aspect_ratio": "pad", "image_mean": [0.1, 0.2, 0.3]}
    processor = cls(**settings)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "XGenMMImageProcessor"
    assert {key: saved[key] for key in settings} == settings
    for other in (XGenMMImageProcessor, XGenMMImageProcessorPil):
        assert other.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    assert cls.from_pretrained(tmp_path, image_aspect_ratio="none").image_aspect_ratio == "none"


@both_classes
def test_settings_of_one_processor_do_not_leak_into_the_next(cls: AnyProcessor) -> None:
    first = cls()
    first.image_grid_pinpoints.append([384, 384])
    assert [384, 384] not in cls().image_grid_pinpoints


def test_backends_carry_the_names_the_host_selects_them_by() -> None:
    assert XGenMMImageProcessor().backend == "torchvision"
    assert XGenMMImageProcessorPil().backend == "pil"


def test_fast_processor_leaves_the_input_untouched() -> None:
    tensor = torch.from_numpy(levels(16, 16)).permute(2, 0, 1)
    before = tensor.clone()
    XGenMMImageProcessor(**SMALL)(tensor, return_tensors="pt")["pixel_values"].zero_()
    assert torch.equal(tensor, before)


def test_fast_processor_accepts_a_device() -> None:
    output = XGenMMImageProcessor(**SMALL)(picture(9, 9), device="cpu", return_tensors="pt")
    assert output["pixel_values"].device == torch.device("cpu")


@pytest.mark.parametrize("name", RECORDED)
def test_resizing_without_the_8_bit_kernel_stays_within_two_levels_of_pil(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = XGenMMImageProcessorPil()(photo(name), return_tensors="pt")["pixel_values"]

    def resize(image: torch.Tensor, size: tuple[int, int], *, resample: int) -> torch.Tensor:
        height, width = image.shape[-2:]
        is_height_first = image_processing_xgen_mm._is_height_first((height, width), size)
        steps = ((size[0], width) if is_height_first else (height, size[1]), size)
        options = image_processing_xgen_mm._INTERPOLATION[resample]
        return image_processing_xgen_mm._resize_in_steps(image, steps, options=options)

    monkeypatch.setattr(image_processing_xgen_mm, "_resize", resize)
    output = XGenMMImageProcessor()(photo(name), return_tensors="pt")["pixel_values"]
    assert in_levels(output - exact, [0.5] * 3).max() <= 2.001


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECORDED)
def test_fast_processor_on_an_accelerator_stays_within_two_levels_of_pil(name: str) -> None:
    output = XGenMMImageProcessor()(photo(name), device="cuda", return_tensors="pt")["pixel_values"]
    exact = XGenMMImageProcessorPil()(photo(name), return_tensors="pt")["pixel_values"]
    assert output.device.type == "cuda"
    assert in_levels(output.cpu() - exact, [0.5] * 3).max() <= 2.001


@pytest.mark.parametrize(
    "resample", [PILImageResampling.BILINEAR, PILImageResampling.NEAREST], ids=["bilinear", "nearest"]
)
def test_fast_processor_knows_other_filters(resample: PILImageResampling) -> None:
    settings = SMALL | {"resample": resample}
    fast = XGenMMImageProcessor(**settings)(picture(19, 33), return_tensors="pt")["pixel_values"]
    exact = XGenMMImageProcessorPil(**settings)(picture(19, 33), return_tensors="pt")["pixel_values"]
    assert in_levels(fast - exact, [0.5] * 3).max() <= 2.001


def test_fast_processor_names_the_way_out_for_an_unknown_filter() -> None:
    with pytest.raises(ValueError, match=r"`resample` is .*XGenMMImageProcessorPil"):
        XGenMMImageProcessor(**SMALL, resample=PILImageResampling.LANCZOS)(picture(19, 33))


@both_classes
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        pytest.param(
            {"image_aspect_ratio": "square"}, r"`image_aspect_ratio` is 'square'; expected one of", id="mode"
        ),
        pytest.param({"size": {"height": 8, "width": 9}}, "tiles are square", id="oblong-tile"),
        pytest.param({"size": {"shortest_edge": 8}}, "tiles are square", id="shortest-edge"),
        pytest.param({"size": {"height": 7, "width": 7}}, "in multiples of the tile size 7", id="tile-and-canvas"),
        pytest.param({"image_grid_pinpoints": []}, "`image_grid_pinpoints` is empty", id="no-canvas"),
        pytest.param({"image_grid_pinpoints": [[8, 8, 8]]}, r"holds \[\[8, 8, 8\]\]", id="canvas-of-three"),
        pytest.param({"image_mean": [0.5, 0.5]}, "`image_mean` has 2 values for pictures of 3", id="mean-of-two"),
    ],
)
def test_wrong_settings_name_value_and_expectation(cls: AnyProcessor, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**SMALL)(picture(9, 9), **kwargs)


@both_classes
def test_unknown_call_argument_is_refused(cls: AnyProcessor) -> None:
    unknown: dict[str, Any] = {"tile_count": 3}
    with pytest.raises(TypeError, match="tile_count"):
        cls(**SMALL)(picture(9, 9), **unknown)


def test_fast_processor_resizes_once_per_canvas_in_8_bits_with_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    resized: list[tuple[torch.dtype, int]] = []
    interpolate = torch.nn.functional.interpolate

    def record(pixels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        resized.append((pixels.dtype, pixels.stride(1)))
        return interpolate(pixels, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "interpolate", record)
    XGenMMImageProcessor()(picture(600, 800), return_tensors="pt")
    # The canvas and the thumbnail.
    assert resized == [(torch.uint8, 1)] * 2


def test_pil_processor_copies_an_rgb_picture_neither_out_nor_in(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(600, 800)
    expected = XGenMMImageProcessorPil()(np.asarray(image), return_tensors="pt")
    monkeypatch.setattr(Image, "fromarray", None)
    monkeypatch.setattr(image, "tobytes", None)
    found = XGenMMImageProcessorPil()(image, return_tensors="pt")
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("size", [(13, 29), (40, 90), (60, 17)])
def test_resizing_in_floats_gives_the_levels_of_the_8_bit_kernel(size: tuple[int, int]) -> None:
    levels = torch.randint(0, 256, (3, 37, 41), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"mode": "bicubic", "antialias": True}
    steps = ((37, size[1]), size)
    found = image_processing_xgen_mm._resize_in_steps(levels, steps, options=options)
    expected = torch.nn.functional.interpolate(levels[None], size=size, **options)[0]
    assert found.dtype == torch.uint8
    difference = found.int() - expected.int()
    assert difference.abs().max() <= 1
    # Levels that are cut off instead of rounded would be half a level darker.
    assert difference.float().mean().abs() < 0.05


@pytest.mark.parametrize(
    ("size", "expected"), [((300, 400), True), ((310, 390), True), ((310, 380), False), ((400, 300), False)]
)
def test_pillow_13_scales_the_height_first_where_it_removes_over_twice_as_many_rows(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(image_processing_xgen_mm, "_PILLOW_ORDERS_PASSES", True)
    assert image_processing_xgen_mm._is_height_first((340, 400), size) is expected
    monkeypatch.setattr(image_processing_xgen_mm, "_PILLOW_ORDERS_PASSES", False)
    assert not image_processing_xgen_mm._is_height_first((340, 400), size)
