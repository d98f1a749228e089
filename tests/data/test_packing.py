from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.data.made_records import conversation, document
from xgen_mm.data.collators import PaddingCollator
from xgen_mm.data.encoding import RecordEncoder, Sample
from xgen_mm.data.packing import PackingCollator, plan_packs

if TYPE_CHECKING:
    from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMProcessor


@pytest.fixture
def samples(tiny_processor: "XGenMMProcessor") -> list[Sample]:
    """Documents and conversations of different lengths, with no picture to three, some of which learn at once."""
    encoder = RecordEncoder(tiny_processor)
    return [
        encoder(conversation("How many?", "One.")),
        encoder(document("Words come first, then a picture:<image>so.")),
        encoder(conversation("<image>What number is written here?", "Seven, I think.", height=20, width=60)),
        encoder(document("<image>one and<image>two", height=84, width=20)),
        encoder(conversation("<image><image>Which is larger?", "The first.", "Why?", "<image>See.")),
    ]


def learned_count(batch: dict[str, Any]) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())


def weighted_loss(model: Any, collator: Any, samples: list[Sample]) -> torch.Tensor:
    """Loss of samples one by one, each weighted by its learned tokens."""
    batches = [collator([sample]) for sample in samples]
    with torch.no_grad():
        losses = torch.stack([model(**batch).loss for batch in batches])
    counts = torch.tensor([learned_count(batch) for batch in batches])
    return (losses * counts).sum() / counts.sum()


def model_for(
    config: "XGenMMConfig", *, attention: str, sliding_window: int | None
) -> "XGenMMForConditionalGeneration":
    from xgen_mm import XGenMMForConditionalGeneration

    config.text_config.sliding_window = sliding_window
    config._attn_implementation = attention
    torch.manual_seed(0)
    return XGenMMForConditionalGeneration(config).eval()


@pytest.mark.parametrize("flatten", [pytest.param(False, id="rows"), pytest.param(True, id="one-row")])
@pytest.mark.parametrize("sliding_window", [pytest.param(None, id="full"), pytest.param(9, id="window-9")])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_batch_has_the_weighted_loss_of_its_samples(
    tiny_config: "XGenMMConfig",
    tiny_processor: "XGenMMProcessor",
    samples: list[Sample],
    attention: str,
    sliding_window: int | None,
    flatten: bool,
) -> None:
    model = model_for(tiny_config, attention=attention, sliding_window=sliding_window)
    packed = PackingCollator(tiny_processor, flatten=flatten)([samples[:3], samples[3:]])
    assert packed["input_ids"].shape[0] == (1 if flatten else 2)
    assert "attention_mask" not in packed
    with torch.no_grad():
        loss = model(**packed).loss
    alone = weighted_loss(model, PaddingCollator(tiny_processor), samples)
    torch.testing.assert_close(loss, alone, atol=1e-5, rtol=0)
    # The comparison means something only if samples that see one another have another loss.
    with torch.no_grad():
        mixed = model(**packed | {"position_ids": torch.arange(packed["input_ids"].shape[1])[None]}).loss
    assert abs(float(mixed - alone)) > 1e-3


def test_packed_batch_has_the_gradients_of_the_padded_one(
    tiny_model: "XGenMMForConditionalGeneration", tiny_processor: "XGenMMProcessor", samples: list[Sample]
) -> None:
    gradients = []
    for batch in (PackingCollator(tiny_processor)([samples]), PaddingCollator(tiny_processor)(samples)):
        tiny_model.zero_grad()
        tiny_model(**batch).loss.backward()
        gradients.append(
            {name: weight.grad.clone() for name, weight in tiny_model.named_parameters() if weight.grad is not None}
        )
    assert len(gradients[0]) > 20
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_packed_row_is_laid_out_as_documented(tiny_processor: "XGenMMProcessor", samples: list[Sample]) -> None:
    first, second = samples[0], samples[3]
    length = len(first) + len(second) + 3
    batch = PackingCollator(tiny_processor, row_length=length)([[first, second]])
    assert batch["position_ids"][0].tolist() == [*range(len(first)), *range(len(second)), 0, 1, 2]
    assert batch["input_ids"][0].tolist() == [
        *first.input_ids,
        *second.input_ids,
        *[tiny_processor.tokenizer.pad_token_id] * 3,
    ]
    # The document's first token is a picture; the conversation's first is a turn mark: neither is learned anyway.
    assert batch["labels"][0].tolist() == [*first.labels, *second.labels, -100, -100, -100]
    assert batch["use_cache"] is False


def test_first_token_of_a_packed_sample_is_not_learned(tiny_processor: "XGenMMProcessor") -> None:
    sample = RecordEncoder(tiny_processor)(document("Words at once."))
    assert sample.labels[0] != -100
    batch = PackingCollator(tiny_processor)([[sample, sample]])
    starts = (batch["position_ids"] == 0).nonzero()[:, 1]
    assert batch["labels"][0, starts].tolist() == [-100, -100]


def test_pack_longer_than_its_row_is_refused(tiny_processor: "XGenMMProcessor", samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="`row_length` is 10"):
        PackingCollator(tiny_processor, row_length=10)([samples])


def test_plan_packs_fits_every_sample_once_and_wastes_little() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, size=500).astype(int).clip(8, 1000).tolist()
    rows = plan_packs(lengths, capacity=1000)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 1000
    assert len(rows) == -(-sum(lengths) // 1000)


def test_plan_packs_sample_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="A sample of 11 tokens does not fit into a row of 10"):
        plan_packs([3, 11], capacity=10)


def test_trainer_on_packs_learns_what_it_learns_on_padded_batches(
    tiny_config: "XGenMMConfig", tiny_processor: "XGenMMProcessor", samples: list[Sample], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="`Trainer` needs the `train` extra")
    from transformers import Trainer, TrainingArguments

    weights = []
    for collator, data, batch_size in (
        (PackingCollator(tiny_processor), [samples[:3], samples[3:]], 2),
        (PaddingCollator(tiny_processor), samples, 5),
    ):
        model = model_for(tiny_config, attention="sdpa", sliding_window=None)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            max_steps=2,
            per_device_train_batch_size=batch_size,
            optim="sgd",
            learning_rate=0.1,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=data, data_collator=collator).train()
        weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
    untrained = model_for(tiny_config, attention="sdpa", sliding_window=None)
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(weights[0]["lm_head.weight"], untrained.lm_head.weight, atol=1e-4)


def test_sample_goes_into_the_row_that_it_fills_exactly() -> None:
    assert plan_packs([6, 4], capacity=10) == [[0, 1]]
    # Rather than into the row with the most room.
    assert plan_packs([5, 6, 4], capacity=10) == [[0], [1, 2]]
