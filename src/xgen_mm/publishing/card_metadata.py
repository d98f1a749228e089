"""The Hub's metadata of a card: licence, tags, derivation and the `model-index` with its figures."""

import re
from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCardData

from .card_facts import INFERRED, NOT_STATED, Benchmark, CardFacts, ResultTable

PIPELINE_TAG = "image-text-to-text"
COMMON_TAGS = ("xgen-mm", "blip-3")
UNKNOWN_LICENSE = "unknown"
# What the Hub accepts as the type of a data set.
DATASET_TYPE = re.compile(r"(?:[\w-]+/)?[\w.-]+")


def build_metadata(facts: CardFacts) -> ModelCardData:
    """Metadata of a card.

    A model of which only a paper exists gets no `model-index`: its figures must not become those of other weights.

    Args:
        facts: What the card states.
    """
    results = list(eval_results(facts)) if facts.status != "paper_only" else []
    data = ModelCardData(
        language=list(facts.languages) or None,
        license=facts.license.id if facts.license else UNKNOWN_LICENSE,
        library_name=facts.library,
        pipeline_tag=PIPELINE_TAG,
        base_model=list(facts.base_models) or None,
        datasets=list(facts.datasets) or None,
        tags=[*COMMON_TAGS, *facts.tags],
        model_name=facts.name,
        eval_results=results or None,
    )
    if facts.base_relation:
        data["base_model_relation"] = facts.base_relation
    return data


def metadata_text(data: ModelCardData) -> str:
    """YAML of the metadata, without the name that the Hub takes from the repository itself."""
    if data.eval_results is None:
        data.pop("model_name")
    return data.to_yaml()


def eval_results(facts: CardFacts) -> Iterator[EvalResult]:
    """Every figure of a card as the Hub's metadata holds it.

    The Hub joins results of one data set, subset and split, and keeps the source of the first; `check_facts` reports
    tables for which that would lose something.
    """
    for table in facts.results:
        for key, values in table.values.items():
            benchmark = facts.benchmarks[key]
            for shots, value in zip(table.shots, values, strict=True):
                yield _eval_result(
                    facts, table, benchmark=benchmark, split=split_of(facts, table, key), shots=shots, value=value
                )


def split_of(facts: CardFacts, table: ResultTable, key: str) -> str:
    """Split that the figures of one row are from."""
    return table.splits.get(key, facts.benchmarks[key].split)


def _eval_result(
    facts: CardFacts, table: ResultTable, *, benchmark: Benchmark, split: str, shots: int, value: float
) -> EvalResult:
    source = facts.sources[table.source]
    is_address = source.url.startswith("https://")
    unit = "%" if benchmark.unit == "percent" else "points"
    metric = f"{benchmark.metric} ({unit}{f', {shots}-shot' if len(table.shots) > 1 else ''})"
    return EvalResult(
        task_type=PIPELINE_TAG,
        dataset_type=benchmark.dataset,
        dataset_name=benchmark.name,
        dataset_config=benchmark.config,
        # Inferred splits are for readers, who see the word.
        dataset_split=None if split == NOT_STATED or INFERRED in split else split,
        metric_type=benchmark.metric_type,
        metric_name=metric,
        metric_value=value,
        metric_args={"num_few_shot": shots} if len(table.shots) > 1 else None,
        source_name=f"{source.title}, {table.locator}" if is_address else None,
        source_url=source.url if is_address else None,
    )
