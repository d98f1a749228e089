import logging
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from tests.data.numbered_streams import (
    NumberEncoder,
    PassOfRecords,
    datasets_source,
    number_of,
    record,
    records,
    three_sources,
)
from xgen_mm.data.cursors import Shard, permuted
from xgen_mm.data.encoding import SampleError
from xgen_mm.data.mixture import Mixture, MixtureEntry, normalise_weights
from xgen_mm.data.mixture_presets import load_preset, preset_names
from xgen_mm.data.mixture_sources import IterableSource, ListSource

SHARDS = [Shard(rank=rank, world_size=2, worker=worker, num_workers=2) for rank in range(2) for worker in range(2)]


def mixture(weights: dict[str, float], *, unit: str = "samples", seed: int = 0) -> Mixture:
    entries = [
        MixtureEntry(name=name, source=ListSource(records(1000 * index, 50)), weight=weight, encoder=NumberEncoder())
        for index, (name, weight) in enumerate(weights.items())
    ]
    return Mixture(entries, unit=unit, seed=seed)


@pytest.mark.parametrize("unit", ["samples", "tokens"])
def test_mixture_keeps_every_share_within_two_samples_at_all_times(unit: str) -> None:
    shares = {"a": 0.6, "b": 0.3, "c": 0.1}
    cursor = mixture(shares, unit=unit).open(Shard())
    largest = {"samples": 1, "tokens": 16}[unit]
    # A source may lag behind by where it starts, too.
    slack = {"samples": 0, "tokens": 512}[unit]
    for _ in range(600):
        next(cursor)
        drawn = cursor.drawn()
        total = sum(drawn.values())
        for name, share in shares.items():
            assert abs(drawn[name] - share * total) <= 2 * largest + slack


def test_mixture_in_tokens_counts_tokens() -> None:
    entries = [
        MixtureEntry(name="short", source=ListSource([record(0)]), weight=0.5, encoder=NumberEncoder()),
        MixtureEntry(name="long", source=ListSource([record(11)]), weight=0.5, encoder=NumberEncoder()),
    ]
    lengths = {number: len(NumberEncoder()(record(number))) for number in (0, 11)}
    assert lengths == {0: 4, 11: 16}
    counts = Counter(number_of(sample) for sample in islice(Mixture(entries, unit="tokens").open(Shard()), 5000))
    assert counts[0] / counts[11] == pytest.approx(4, rel=0.05)


def test_mixture_shards_start_with_different_sources() -> None:
    drawn = mixture(dict.fromkeys("abcdefgh", 1 / 8))
    first = {next(drawn.open(shard)).provenance.key[0] for shard in SHARDS}
    assert len(first) > 1


def test_mixture_seed_alone_decides() -> None:
    def numbers(seed: int) -> list[int]:
        return [number_of(sample) for sample in islice(mixture({"a": 0.7, "b": 0.3}, seed=seed).open(Shard()), 40)]

    assert numbers(0) == numbers(0)
    assert numbers(0) != numbers(1)


def test_weights_that_do_not_add_up_are_divided_by_their_sum_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert normalise_weights({"a": 0.6, "b": 0.3}) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    assert "add up to 0.9, not to 1" in caplog.text


@pytest.mark.parametrize("weights", [{"a": 0.3, "b": 0.7}, {"a": 300, "b": 700}])
def test_weights_that_add_up_or_are_counts_give_no_notice(
    caplog: pytest.LogCaptureFixture, weights: dict[str, float]
) -> None:
    with caplog.at_level(logging.WARNING):
        assert normalise_weights(weights) == pytest.approx({"a": 0.3, "b": 0.7})
    assert caplog.text == ""


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        normalise_weights({"a": 1.0, "b": weight})


@pytest.mark.parametrize("length", [1, 2, 5, 64, 1000])
def test_permuted_is_a_permutation_that_the_seed_chooses(length: int) -> None:
    orders = [[permuted(index, length, seed=seed) for index in range(length)] for seed in range(3)]
    for order in orders:
        assert sorted(order) == list(range(length))
    assert len({tuple(order) for order in orders}) == min(3, length)


@pytest.mark.parametrize("name", ["list", "iterable", "datasets"])
def test_source_shards_share_out_a_pass_without_overlap(name: str) -> None:
    source = three_sources(repeat=False)[name]
    whole = sorted(number_of(made) for made in source.open(Shard()))
    read = sorted(number_of(made) for shard in SHARDS for made in source.open(shard))
    assert len(whole) == len(set(whole)) > 50
    assert read == whole


def test_list_source_passes_differ_in_order_and_hold_the_same() -> None:
    taken = [number_of(made) for made in islice(ListSource(records(0, 30)).open(Shard()), 90)]
    passes = [taken[:30], taken[30:60], taken[60:]]
    assert [sorted(one) for one in passes] == [list(range(30))] * 3
    assert len({tuple(one) for one in passes}) == 3


def test_list_source_count_above_its_size_repeats_evenly_and_below_takes_a_fixed_part() -> None:
    more = Counter(number_of(made) for made in ListSource(records(0, 10), samples=25, repeat=False).open(Shard()))
    assert sorted(more.values()) == [2] * 5 + [3] * 5
    fewer = ListSource(records(0, 100), samples=10)
    taken = [number_of(made) for made in islice(fewer.open(Shard()), 20)]
    assert set(taken[:10]) == set(taken[10:])
    assert len(set(taken)) == 10


def test_source_without_records_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one record"):
        ListSource([])
    with pytest.raises(ValueError, match="gave no record to this shard"):
        next(IterableSource(PassOfRecords(0, 0)).open(Shard()))


def test_datasets_source_of_files_that_cannot_be_divided_is_read_whole_with_a_notice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = datasets_source(0, 40, repeat=False)
    with caplog.at_level(logging.WARNING):
        read = [number_of(made) for rank in range(3) for made in source.open(Shard(rank=rank, world_size=3))]
    assert sorted(read) == sorted(number_of(made) for made in source.open(Shard()))
    assert "8 files is read by 3 parts" in caplog.text


def test_mixture_of_sources_that_end_gives_every_sample_once() -> None:
    entries = [
        MixtureEntry(name=name, source=source, weight=1, encoder=NumberEncoder())
        for name, source in three_sources(repeat=False).items()
    ]
    drawn = Counter(number_of(sample) for sample in Mixture(entries).open(Shard()))
    rows = [2000 + row + 10_000 * copy for row in range(80) for copy in range((2000 + row) % 3)]
    assert sorted(drawn) == [*range(97), *range(1000, 1061), *sorted(rows)]
    assert set(drawn.values()) == {1}


def test_unusable_records_raise_or_are_counted_by_reason(caplog: pytest.LogCaptureFixture) -> None:
    entry = MixtureEntry(
        name="a", source=ListSource(records(0, 60), repeat=False), weight=1, encoder=NumberEncoder(bad=3)
    )
    with pytest.raises(SampleError, match="multiple of 3"):
        list(Mixture([entry]).open(Shard()))
    cursor = Mixture([entry], on_bad_record="skip").open(Shard())
    with caplog.at_level(logging.WARNING):
        assert len(list(cursor)) == 40
    assert cursor.skipped() == {"a: bad number": 20}
    # The first and the tenth are reported.
    assert caplog.text.count("a: bad number") == 2


def test_source_of_which_nothing_is_usable_is_an_error() -> None:
    entry = MixtureEntry(name="a", source=ListSource(records(0, 9)), weight=1, encoder=NumberEncoder(bad=1))
    with pytest.raises(SampleError, match="1000 records of `a` in a row"):
        next(Mixture([entry], on_bad_record="skip").open(Shard()))


def test_mixture_with_a_name_twice_is_refused() -> None:
    entry = MixtureEntry(name="a", source=ListSource(records(0, 9)), weight=1, encoder=NumberEncoder())
    with pytest.raises(ValueError, match="distinct names"):
        Mixture([entry, entry])


@pytest.mark.parametrize(("name", "total"), [("stage1", 1.0), ("stage2", 0.9), ("sft_interleaved", 1.0)])
def test_preset_weights_add_up_to_what_is_published(name: str, total: float) -> None:
    preset = load_preset(name)
    assert sum(entry.weight for entry in preset.data_sets) == pytest.approx(total)
    mint = [entry.weight for entry in preset.data_sets if entry.name.startswith("mint1t")]
    assert sum(mint) == pytest.approx(0.325 if mint else 0)


def test_presets_are_all_readable_and_single_image_counts_are_those_of_the_example_list() -> None:
    assert [load_preset(name).name for name in preset_names()] == preset_names()
    assert sum(entry.samples for entry in load_preset("sft_single_image").data_sets) == 816_639


def test_preset_fills_with_sources_and_says_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    preset = load_preset("stage2")
    sources = {"obelics": ListSource(records(0, 5)), "cc3m": ListSource(records(10, 5))}
    with pytest.raises(ValueError, match=r"missing: \['mint1t_html'"):
        preset.build(sources, encoder=NumberEncoder())
    with pytest.raises(ValueError, match=r"not in it: \['laion'\]"):
        preset.build(sources | {"laion": sources["cc3m"]}, encoder=NumberEncoder(), allow_missing=True)
    with caplog.at_level(logging.WARNING):
        built = preset.build(sources, encoder=NumberEncoder(), allow_missing=True)
    assert built.shares == pytest.approx({"obelics": 0.175 / 0.1875, "cc3m": 0.0125 / 0.1875})
    assert "mint1t_html" in caplog.text


def test_preset_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nunit: samples\ndata_sets:\n  - {name: a, weight: 1, samples: 3}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="either a `weight` or `samples`"):
        load_preset(path)
    with pytest.raises(ValueError, match="no preset `stage9`"):
        load_preset("stage9")
