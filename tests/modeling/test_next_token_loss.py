"""Loss without logits: the numbers of the host's loss, and no scores of all positions in memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.loss.loss_utils import ForCausalLMLoss

from tests.picture_batch import make_batch
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.modeling import output_layer
from xgen_mm.modeling.next_token_loss import next_token_loss
from xgen_mm.modeling.output_layer import XGenMMOutputLayer

VOCABULARY, WIDTH = 50, 16


class LargestTensor(TorchDispatchMode):
    """Remembers how many values the largest result of an operator has, and the types of matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_values = 0
        self.product_types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.num_values = max(self.num_values, tensor.numel())
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.product_types.add(args[-1].dtype)
        return result


def head_and_rows(*, labelled: float = 0.5) -> tuple[XGenMMOutputLayer, torch.Tensor, torch.Tensor]:
    """Output layer, hidden states (2, 60, WIDTH) and labels."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head = XGenMMOutputLayer(WIDTH, VOCABULARY)
    hidden = torch.randn(2, 60, WIDTH, generator=generator).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (2, 60), generator=generator)
    return head, hidden, labels.masked_fill(torch.rand(2, 60, generator=generator) > labelled, -100)


def gradients(loss: torch.Tensor, head: nn.Module, hidden: torch.Tensor) -> list[torch.Tensor]:
    # Scaled, as accumulation steps and loss scalers do.
    return list(torch.autograd.grad(3 * loss, [hidden, *head.parameters()]))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Seven positions at a time; returns the number of their scores."""
    monkeypatch.setattr(output_layer, "SCORES_PER_CHUNK", 7 * VOCABULARY + 3)
    return 7 * VOCABULARY


@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunks", "one-call"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="mean"),
        pytest.param({"num_items_in_batch": 17}, id="number-of-items"),
        pytest.param({"num_items_in_batch": torch.tensor(17)}, id="tensor-of-items"),
        pytest.param({"shift_labels": True}, id="shifted-labels"),
        pytest.param({"ignore_index": -1}, id="other-ignored-label"),
    ],
)
def test_loss_and_gradients_equal_the_hosts(small_chunks: int, settings: dict[str, Any], is_chunked: bool) -> None:
    head, hidden, labels = head_and_rows()
    labels = labels.masked_fill(labels == -100, settings.get("ignore_index", -100))
    if "shift_labels" in settings:
        settings = {"shift_labels": labels.flip(1)}
    expected = ForCausalLMLoss(head(hidden), labels, VOCABULARY, **settings)
    found = next_token_loss(head, hidden, labels, is_chunked=is_chunked, **settings)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients(found, head, hidden), gradients(expected, head, hidden), atol=1e-6, rtol=1e-5)


def test_frozen_output_layer_gets_no_gradient(small_chunks: int) -> None:
    head, hidden, labels = head_and_rows()
    head.requires_grad_(False)
    (expected,) = torch.autograd.grad(ForCausalLMLoss(head(hidden), labels, VOCABULARY), [hidden])
    next_token_loss(head, hidden, labels, is_chunked=True).backward()
    torch.testing.assert_close(hidden.grad, expected, atol=1e-7, rtol=1e-5)
    assert head.weight.grad is None


class _OwnKindOfWeight(torch.Tensor):
    """Stands for quantised weights: a linear layer works, other products do not."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.mm, torch.Tensor.addmm_):
            raise NotImplementedError(func)
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def test_weights_of_another_kind_are_scored_in_one_call(small_chunks: int) -> None:
    head, hidden, labels = head_and_rows()
    expected = next_token_loss(head, hidden, labels, is_chunked=True)
    head.weight = nn.Parameter(head.weight.detach().as_subclass(_OwnKindOfWeight), requires_grad=False)
    loss = next_token_loss(head, hidden, labels, is_chunked=True)
    torch.testing.assert_close(loss.as_subclass(torch.Tensor), expected)
    loss.backward()
    assert hidden.grad is not None


def test_batch_without_labels_gives_zero_and_zero_gradients(small_chunks: int) -> None:
    head, hidden, labels = head_and_rows(labelled=0)
    loss = next_token_loss(head, hidden, labels, is_chunked=True, num_items_in_batch=4)
    assert loss.item() == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients(loss, head, hidden))


def test_graph_that_is_kept_gives_the_same_gradients_again(small_chunks: int) -> None:
    head, hidden, labels = head_and_rows()
    loss = next_token_loss(head, hidden, labels, is_chunked=True)
    first = torch.autograd.grad(2 * loss, [hidden, head.weight], retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, [hidden, head.weight]), first)


def test_no_tensor_is_larger_than_a_chunk_of_scores(small_chunks: int) -> None:
    head, hidden, labels = head_and_rows(labelled=1)
    with LargestTensor() as seen:
        next_token_loss(head, hidden, labels, is_chunked=True).backward()
    rows = 2 * 60 * WIDTH
    assert seen.num_values <= max(small_chunks, rows, head.weight.numel()) < 2 * 60 * VOCABULARY


def test_autocast_multiplies_in_half_precision_and_sums_in_full(small_chunks: int) -> None:
    head, hidden, labels = head_and_rows()
    expected = next_token_loss(head, hidden, labels, is_chunked=True)
    with torch.autocast("cpu", torch.bfloat16), LargestTensor() as seen:
        loss = next_token_loss(head, hidden, labels, is_chunked=True)
    assert loss.dtype == torch.float32
    assert seen.product_types == {torch.bfloat16}
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0.02)
    found, full = gradients(loss, head, hidden), gradients(expected, head, hidden)
    assert [gradient.dtype for gradient in found] == [torch.float32] * 3
    torch.testing.assert_close(found, full, atol=2e-3, rtol=0.05)


def test_compiled_loss_is_one_graph_with_the_same_gradients() -> None:
    head, hidden, labels = head_and_rows()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda rows: next_token_loss(head, rows, labels, is_chunked=True), backend="aot_eager", fullgraph=True
    )
    expected = next_token_loss(head, hidden, labels, is_chunked=True)
    torch.testing.assert_close(
        gradients(compiled(hidden), head, hidden), gradients(expected, head, hidden), atol=1e-6, rtol=1e-5
    )


@pytest.fixture
def batch(
    tiny_processor: XGenMMProcessor, checker_image: Callable[[int, int], Image.Image]
) -> dict[str, torch.Tensor]:
    return make_batch(tiny_processor, checker_image)


def test_training_returns_the_loss_alone_and_scores_labelled_positions_only(
    tiny_model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    tiny_model.train()
    scored: list[int] = []
    tiny_model.lm_head.register_forward_pre_hook(lambda _, args: scored.append(args[0].shape[0]))
    outputs = tiny_model(**batch)
    assert outputs.logits is None
    assert scored == [int((batch["labels"][:, 1:] != -100).sum())]
    assert outputs.to_tuple()[0] is outputs.loss
    with_logits = tiny_model(**batch, skip_logits=False)
    assert with_logits.logits.shape[:2] == batch["input_ids"].shape
    torch.testing.assert_close(outputs.loss, with_logits.loss)


def test_logits_stay_available_where_they_are_asked_for(
    tiny_model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    tiny_model.train()
    assert tiny_model(**inputs).logits is not None
    assert tiny_model(**batch, logits_to_keep=torch.arange(batch["labels"].shape[1])).logits is not None
    tiny_model.eval()
    evaluated = tiny_model(**batch)
    assert evaluated.logits is not None
    alone = tiny_model(**batch, skip_logits=True)
    assert alone.logits is None
    torch.testing.assert_close(alone.loss, evaluated.loss)


def test_loss_function_set_by_hand_still_gets_logits(
    tiny_model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    tiny_model.loss_function = lambda logits, labels, **_: logits.float().mean() + 0 * labels.sum()
    outputs = tiny_model.train()(**batch)
    torch.testing.assert_close(outputs.loss, outputs.logits.mean())


def test_loss_alone_without_labels_is_refused(
    tiny_model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    del batch["labels"]
    with pytest.raises(ValueError, match="`skip_logits` is True but there are no `labels`"):
        tiny_model(**batch, skip_logits=True)


def test_resized_vocabulary_keeps_the_layer_that_scores_in_chunks(tiny_model: XGenMMForConditionalGeneration) -> None:
    size = tiny_model.config.text_config.vocab_size + 5
    tiny_model.resize_token_embeddings(size)
    assert type(tiny_model.lm_head) is XGenMMOutputLayer
    assert tiny_model.lm_head.weight.shape[0] == tiny_model.lm_head.bias.shape[0] == size
    hidden = torch.randn(2, tiny_model.config.text_config.hidden_size)
    expected = F.linear(hidden, tiny_model.lm_head.weight, tiny_model.lm_head.bias)
    torch.testing.assert_close(tiny_model.lm_head(hidden), expected)


def test_scores_beyond_the_range_of_exponentials_and_ignored_targets_give_the_plain_sum() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = 40 * torch.randn(12, WIDTH, generator=generator)
    weight, bias = torch.randn(VOCABULARY, WIDTH, generator=generator), torch.randn(VOCABULARY, generator=generator)
    targets = torch.randint(0, VOCABULARY, (12,), generator=generator)
    targets[::3] = -100
    scores = F.linear(hidden, weight, bias)
    assert (scores.amax(1) - scores.mean(1)).max() > 100
    found = output_layer.summed_cross_entropy(hidden, weight, bias, targets=targets)
    torch.testing.assert_close(found, F.cross_entropy(scores, targets, reduction="sum"))
