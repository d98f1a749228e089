"""The training-time tiles are those of the image processor, and patches get the class that lies on them."""

import numpy as np
import pytest
import torch

from xgen_mm.processing.image_processing_pil_xgen_mm import XGenMMImageProcessorPil
from xgen_mm.tiny.architecture import pinpoints
from xgen_mm.tiny.digits import DigitPicture, GlyphBank, draw_picture, random_number
from xgen_mm.tiny.patch_labels import score_patches, to_pixel_values
from xgen_mm.tiny.tiles import TiledPicture, cut_tiles, label_patches


def _cut(picture: DigitPicture) -> TiledPicture:
    return cut_tiles(picture, pinpoints=pinpoints(84), tile_size=84, patch_size=12)


@pytest.mark.parametrize("seed", range(12))
def test_cut_tiles_equal_the_image_processors_pixels(bank: GlyphBank, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = draw_picture(rng, bank, random_number(rng, 1 + seed % 5))
    tiled = _cut(picture)
    processor = XGenMMImageProcessorPil(size={"height": 84, "width": 84}, image_grid_pinpoints=pinpoints(84))
    expected = processor(picture.to_image(), return_tensors="pt")
    assert expected["image_sizes"].tolist() == [list(tiled.image_size)]
    torch.testing.assert_close(to_pixel_values(torch.from_numpy(tiled.tiles)), expected["pixel_values"][0])


def test_cut_tiles_labels_name_every_digit_in_thumbnail_and_tiles(bank: GlyphBank) -> None:
    tiled = _cut(draw_picture(np.random.default_rng(0), bank, (3, 8)))
    assert set(tiled.patch_labels[0]) == {3, 8, 10}
    assert set(tiled.patch_labels[1:].ravel()) == {3, 8, 10}
    assert tiled.patch_labels.shape == (len(tiled.tiles), 49)


def test_label_patches_box_over_known_patches_labels_just_those() -> None:
    labels = label_patches(np.array([[12.0, 0.0, 24.0, 24.0]]), (7,), (3, 3), patch_size=12)
    assert labels.tolist() == [[10, 10, 10], [7, 7, 10], [10, 10, 10]]


def test_label_patches_grazed_patch_stays_paper() -> None:
    labels = label_patches(np.array([[0.0, 0.0, 12.0, 14.0]]), (7,), (1, 2), patch_size=12)
    assert labels.tolist() == [[7, 10]]


def test_score_patches_perfect_logits_have_no_loss_and_full_accuracy() -> None:
    labels = torch.tensor([[1, 10, 4]])
    score = score_patches(50.0 * torch.nn.functional.one_hot(labels, 11).float(), labels)
    assert score.loss < 1e-6
    assert score.accuracy == 1
