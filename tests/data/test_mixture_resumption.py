"""Stop behind any batch and go on: the remaining batches are the same."""

import json
from collections import Counter
from itertools import chain, islice
from typing import Any

import pytest

from tests.data.numbered_streams import CAPACITY, NumberEncoder, record, stream, three_sources
from xgen_mm.data.loading import ResumableLoader
from xgen_mm.data.samplers import FixedGroups, LengthGroups, TokenBudgetGroups
from xgen_mm.data.streams import BatchStream

pytest.importorskip("datasets", reason="needs the `train` extra")

NUM_BATCHES = 40


def numbers(batches: Any) -> list[list[list[int]]]:
    return [batch["numbers"] for batch in batches]


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


def make_stream(*, repeat: bool = True, **arguments: Any) -> BatchStream:
    return stream(three_sources(repeat=repeat), bad=29, **arguments)


# Every worker is a process, and there are only so many processors.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stop", range(1, NUM_BATCHES, 3))
def test_loader_in_process_goes_on_with_the_remaining_batches(stop: int, world_size: int, rank: int) -> None:
    arguments = {"rank": rank % world_size, "world_size": world_size}
    uninterrupted = numbers(islice(ResumableLoader(make_stream(**arguments)), NUM_BATCHES))
    loader = ResumableLoader(make_stream(**arguments))
    before = numbers(islice(loader, stop))
    resumed = ResumableLoader(make_stream(**arguments))
    resumed.load_state_dict(through_json(loader.state_dict()))
    assert before + numbers(islice(resumed, NUM_BATCHES - stop)) == uninterrupted


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stop", [3, 10])
def test_loader_with_four_workers_goes_on_with_the_remaining_batches(stop: int, world_size: int) -> None:
    def loader() -> ResumableLoader:
        return ResumableLoader(make_stream(rank=world_size - 1, world_size=world_size), num_workers=4)

    uninterrupted = numbers(islice(loader(), 20))
    stopped = loader()
    before = numbers(islice(stopped, stop))
    resumed = loader()
    resumed.load_state_dict(through_json(stopped.state_dict()))
    assert before + numbers(islice(resumed, 20 - stop)) == uninterrupted


def test_loader_stopped_twice_goes_on_twice() -> None:
    uninterrupted = numbers(islice(ResumableLoader(make_stream()), NUM_BATCHES))
    state, read = ResumableLoader(make_stream()).state_dict(), []
    for count in (5, 11, 24):
        loader = ResumableLoader(make_stream())
        loader.load_state_dict(through_json(state))
        read += numbers(islice(loader, count))
        state = loader.state_dict()
    assert read == uninterrupted


@pytest.mark.parametrize(
    "grouping",
    [
        pytest.param(FixedGroups(batch_size=3), id="fixed"),
        pytest.param(LengthGroups(batch_size=3), id="length"),
        pytest.param(TokenBudgetGroups(max_tokens=64), id="budget"),
    ],
)
def test_loader_with_other_groupings_goes_on_with_the_remaining_batches(grouping: Any) -> None:
    arguments = {"grouping": grouping, "groups_per_batch": 1}
    uninterrupted = numbers(islice(ResumableLoader(make_stream(**arguments)), NUM_BATCHES))
    loader = ResumableLoader(make_stream(**arguments))
    before = numbers(islice(loader, 17))
    resumed = ResumableLoader(make_stream(**arguments))
    resumed.load_state_dict(through_json(loader.state_dict()))
    assert before + numbers(islice(resumed, NUM_BATCHES - 17)) == uninterrupted


@pytest.mark.parametrize("num_workers", [0, 4])
def test_epoch_that_ends_gives_every_sample_once_over_all_ranks_and_workers(num_workers: int) -> None:
    def epoch(rank: int) -> list[list[list[int]]]:
        return numbers(ResumableLoader(make_stream(repeat=False, rank=rank, world_size=2), num_workers=num_workers))

    seen = Counter(chain.from_iterable(chain.from_iterable(epoch(0) + epoch(1))))
    rows = [2000 + row + 10_000 * copy for row in range(80) for copy in range((2000 + row) % 3)]
    expected = [number for number in [*range(97), *range(1000, 1061), *rows] if number % 29]
    assert seen == Counter(expected)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_epoch_that_ends_is_followed_by_another_one_in_another_order(num_workers: int) -> None:
    def loader() -> ResumableLoader:
        return ResumableLoader(make_stream(repeat=False), num_workers=num_workers)

    one = loader()
    first, second = numbers(one), numbers(one)
    assert first != second
    stopped = loader()
    assert numbers(stopped) == first
    before = numbers(islice(stopped, 4))
    resumed = loader()
    resumed.load_state_dict(through_json(stopped.state_dict()))
    assert before + numbers(resumed) == second


def test_packs_of_a_stream_fit_their_rows() -> None:
    for pack in chain.from_iterable(numbers(islice(ResumableLoader(make_stream()), NUM_BATCHES))):
        assert 0 < sum(len(NumberEncoder()(record(number))) for number in pack) <= CAPACITY


def test_ranks_and_workers_read_different_batches() -> None:
    ranks = [numbers(islice(ResumableLoader(make_stream(rank=rank, world_size=2)), 5)) for rank in range(2)]
    assert not {*chain(*chain(*ranks[0]))} & {*chain(*chain(*ranks[1]))}


def test_loader_of_other_settings_refuses_the_state() -> None:
    state = ResumableLoader(make_stream(), num_workers=2).state_dict()
    with pytest.raises(ValueError, match="num_workers was 2, now 0"):
        ResumableLoader(make_stream()).load_state_dict(state)
    with pytest.raises(ValueError, match="world_size was 1, now 2"):
        ResumableLoader(make_stream(world_size=2), num_workers=2).load_state_dict(state)
    with pytest.raises(ValueError, match="mixture was"):
        ResumableLoader(make_stream(seed=5), num_workers=2).load_state_dict(state)


def test_loader_statistics_count_what_was_drawn_and_left_out() -> None:
    loader = ResumableLoader(make_stream(repeat=False))
    read: list[int] = []
    statistics: dict[str, dict[str, int]] = {}
    for batch in loader:
        read += chain.from_iterable(batch["numbers"])
        statistics = loader.statistics()
    assert sum(statistics["drawn"].values()) == sum(len(NumberEncoder()(record(number))) for number in read)
    # 0, 29, 58 and 87; 1015 and 1044.
    assert statistics["skipped"]["list: bad number"] == 4
    assert statistics["skipped"]["iterable: bad number"] == 2
