import numpy as np
import pytest

from tests.data.made_records import jpeg, numbered_sample, provenance
from xgen_mm.data.encoding import Sample
from xgen_mm.data.records import Picture
from xgen_mm.data.samplers import FixedGroups, Grouping, LengthGroups, ModalityLengthSampler, TokenBudgetGroups

LENGTHS = np.random.default_rng(0).integers(1, 100, size=60).tolist()


def mixed_samples() -> list[Sample]:
    """Every third has a picture."""
    picture = (Picture(jpeg(8, 8)),)
    plain = [numbered_sample(number, length=length) for number, length in enumerate(LENGTHS)]
    return [
        Sample(
            input_ids=sample.input_ids,
            labels=sample.labels,
            pictures=picture[: int(number % 3 == 0)],
            image_sizes=((8, 8),)[: int(number % 3 == 0)],
            provenance=provenance(),
        )
        for number, sample in enumerate(plain)
    ]


def plan(grouping: Grouping, samples: list[Sample], *, seed: int = 0) -> list[list[int]]:
    return grouping.plan(samples, rng=np.random.default_rng(seed))


def padding(groups: list[list[int]]) -> int:
    return sum(max(LENGTHS[index] for index in group) * len(group) for group in groups) - sum(LENGTHS)


@pytest.mark.parametrize(
    "grouping",
    [
        pytest.param(FixedGroups(batch_size=7), id="fixed"),
        pytest.param(LengthGroups(batch_size=7), id="length"),
        pytest.param(TokenBudgetGroups(max_tokens=300, max_samples=9), id="budget"),
    ],
)
def test_grouping_puts_every_sample_into_one_group(grouping: Grouping) -> None:
    groups = plan(grouping, mixed_samples())
    assert sorted(index for group in groups for index in group) == list(range(60))
    assert plan(grouping, []) == []


def test_length_groups_pad_less_and_hold_one_modality() -> None:
    samples = mixed_samples()
    groups = plan(LengthGroups(batch_size=5), samples)
    assert padding(groups) < 0.5 * padding(plan(FixedGroups(batch_size=5), samples))
    assert all(len({bool(samples[index].pictures) for index in group}) == 1 for group in groups)
    assert max(map(len, groups)) == 5


def test_token_budget_holds_with_padding_and_longer_samples_stand_alone() -> None:
    samples = mixed_samples()
    groups = plan(TokenBudgetGroups(max_tokens=90, max_samples=12), samples)
    sizes = {tuple(group): max(LENGTHS[index] for index in group) * len(group) for group in groups}
    assert all(size <= 90 or len(group) == 1 for group, size in sizes.items())
    assert any(size > 90 for size in sizes.values())
    assert max(map(len, groups)) <= 12


def test_random_groups_come_in_an_order_that_the_generator_decides() -> None:
    samples = mixed_samples()
    grouping = LengthGroups(batch_size=5)
    assert plan(grouping, samples) == plan(grouping, samples)
    assert plan(grouping, samples) != plan(grouping, samples, seed=1)


def test_modality_length_sampler_fills_batches_with_like_lengths_of_one_modality() -> None:
    has_pictures = [bool(sample.pictures) for sample in mixed_samples()]
    sampler = ModalityLengthSampler(LENGTHS, has_pictures, batch_size=5, stretch=100)
    order = list(sampler)
    batches = [order[start : start + 5] for start in range(0, 60, 5)]
    assert sorted(order) == list(range(60))
    assert len(sampler) == 60
    assert all(len({has_pictures[index] for index in batch}) == 1 for batch in batches)
    assert padding(batches) < 0.5 * padding([list(range(start, start + 5)) for start in range(0, 60, 5)])
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_modality_length_sampler_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="`lengths` holds 2 values but `has_pictures` 1"):
        ModalityLengthSampler([1, 2], [True], batch_size=1)


def test_token_budget_also_limits_the_samples_of_a_group() -> None:
    samples = [numbered_sample(number, length=2) for number in range(7)]
    groups = plan(TokenBudgetGroups(max_tokens=1000, max_samples=3), samples)
    assert sorted(map(len, groups)) == [1, 3, 3]
