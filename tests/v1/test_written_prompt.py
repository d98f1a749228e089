"""Prompts as written are rebuilt from expanded inputs; here the embedding of a token is its id."""

import pytest
import torch

from xgen_mm.v1.written_prompt import WrittenPrompts, written_prompts

IMAGE, PAD = 5, 3


def rebuild(
    rows: list[list[int]],
    counts: list[int],
    *,
    mask: list[list[int]] | None = None,
    max_tokens: int = 256,
) -> WrittenPrompts:
    ids = torch.tensor(rows)
    return written_prompts(
        ids.unsqueeze(-1).float(),
        is_image_token=ids == IMAGE,
        attention_mask=None if mask is None else torch.tensor(mask),
        tokens_per_image=counts,
        filler=torch.tensor([float(PAD)]),
        max_tokens=max_tokens,
    )


def ids_of(prompts: WrittenPrompts) -> list[list[int]]:
    return prompts.embeds.squeeze(-1).int().tolist()


def test_run_of_placeholders_becomes_one_token() -> None:
    prompts = rebuild([[10, 5, 5, 5, 5, 11]], [4])
    assert ids_of(prompts) == [[10, 5, 11]]
    assert prompts.mask.tolist() == [[True, True, True]]
    assert prompts.row_of_image.tolist() == [0]


@pytest.mark.parametrize(
    ("counts", "written"),
    [
        pytest.param([2, 4], [10, 5, 5, 11], id="two-and-four"),
        pytest.param([6], [10, 5, 11], id="one-picture"),
        pytest.param([2, 2, 2], [10, 5, 5, 5, 11], id="three"),
    ],
)
def test_pictures_side_by_side_are_told_apart_by_their_counts(counts: list[int], written: list[int]) -> None:
    prompts = rebuild([[10, 5, 5, 5, 5, 5, 5, 11]], counts)
    assert ids_of(prompts) == [written]
    assert prompts.row_of_image.tolist() == [0] * len(counts)


def test_left_padded_batch_is_padded_to_its_longest_written_prompt_on_the_left() -> None:
    rows = [[PAD, PAD, PAD, 10, 5, 5, 11], [12, 5, 5, 5, 5, 5, 5], [PAD, PAD, PAD, PAD, 13, 14, 15]]
    mask = [[0, 0, 0, 1, 1, 1, 1], [1] * 7, [0, 0, 0, 0, 1, 1, 1]]
    prompts = rebuild(rows, [2, 6], mask=mask)
    assert ids_of(prompts) == [[10, 5, 11], [PAD, 12, 5], [13, 14, 15]]
    assert prompts.mask.tolist() == [[True, True, True], [False, True, True], [True, True, True]]
    assert prompts.row_of_image.tolist() == [0, 1]


def test_right_padded_batch_is_padded_on_the_right() -> None:
    prompts = rebuild([[10, 5, 5, PAD], [12, 5, 5, 13]], [2, 2], mask=[[1, 1, 1, 0], [1, 1, 1, 1]])
    assert ids_of(prompts) == [[10, 5, PAD], [12, 5, 13]]
    assert prompts.mask.tolist() == [[True, True, False], [True, True, True]]


def test_rows_of_equal_expanded_length_are_padded_on_the_left() -> None:
    assert ids_of(rebuild([[10, 5, 5, 5], [12, 5, 5, 13]], [3, 2])) == [[PAD, 10, 5], [12, 5, 13]]


def test_long_prompts_are_cut_after_padding() -> None:
    rows = [[PAD, PAD, 10, 11], [12, 13, 14, 15]]
    prompts = rebuild(rows, [], mask=[[0, 0, 1, 1], [1, 1, 1, 1]], max_tokens=3)
    assert ids_of(prompts) == [[PAD, PAD, 10], [12, 13, 14]]
    assert prompts.mask.tolist() == [[False, False, True], [True, True, True]]


def test_mask_that_covers_a_cache_is_read_from_its_end() -> None:
    prompts = rebuild([[10, 5, 5], [PAD, 12, 13]], [2], mask=[[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    assert ids_of(prompts) == [[10, 5], [12, 13]]


def test_gradients_reach_the_prompt_and_the_filler() -> None:
    embeds = torch.ones(2, 3, 1, requires_grad=True)
    filler = torch.ones(1, requires_grad=True)
    prompts = written_prompts(
        embeds,
        is_image_token=torch.tensor([[False, True, True], [False, False, False]]),
        attention_mask=None,
        tokens_per_image=[2],
        filler=filler,
        max_tokens=8,
    )
    prompts.embeds.sum().backward()
    assert embeds.grad is not None
    assert embeds.grad.squeeze(-1).tolist() == [[1, 1, 0], [1, 1, 1]]
    assert filler.grad is not None
    assert filler.grad.tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32])
def test_masks_of_every_type_mean_the_same(dtype: torch.dtype) -> None:
    rows = [[PAD, PAD, 10, 5, 5, 11], [12, 5, 5, 5, 5, 5]]
    mask = [[0, 0, 1, 1, 1, 1], [1] * 6]
    ids = torch.tensor(rows)
    prompts = written_prompts(
        ids.unsqueeze(-1).float(),
        is_image_token=ids == IMAGE,
        attention_mask=torch.tensor(mask).to(dtype),
        tokens_per_image=[2, 5],
        filler=torch.tensor([float(PAD)]),
        max_tokens=256,
    )
    assert ids_of(prompts) == [[10, 5, 11], [PAD, 12, 5]]
    assert prompts.mask.dtype == torch.bool
    assert prompts.mask.tolist() == [[True, True, True], [False, True, True]]
