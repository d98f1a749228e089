"""Compiled decoding: one graph, compiled once."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import CompileConfig, StaticCache

from xgen_mm import XGenMMForConditionalGeneration
from xgen_mm.modeling.host import CACHE_NAME

from .conftest import TWO, Answers, Encode


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def decode(model: XGenMMForConditionalGeneration, inputs: Any, step: Any, *, num_steps: int) -> list[int]:
    """Greedy decoding with a static cache; `step` is the model or a compiled form of it."""
    ids = inputs["input_ids"]
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=ids.shape[1] + num_steps)
    with torch.no_grad():
        outputs = model(**inputs, **{CACHE_NAME: cache}, use_cache=True)
        found = []
        for position in range(ids.shape[1], ids.shape[1] + num_steps):
            token = outputs.logits[:, -1:].argmax(-1)
            found.append(int(token))
            outputs = step(
                input_ids=token,
                **{CACHE_NAME: cache},
                position_ids=torch.tensor([[position]]),
                use_cache=True,
            )
    return found


def test_decoding_is_one_graph_that_is_compiled_once(model: XGenMMForConditionalGeneration, encode: Encode) -> None:
    inputs = encode(TWO)
    counter = CompileCounter()
    # `fullgraph` makes every graph break an error.
    step = torch.compile(model.forward, backend=counter, fullgraph=True, dynamic=False)
    compiled = decode(model, inputs, step, num_steps=6)
    assert counter.frame_count == 1
    assert compiled == decode(model, inputs, model, num_steps=6)


@pytest.mark.slow
def test_generate_with_compiled_decoding_gives_the_same_answer(encode: Encode, answers: Answers) -> None:
    inputs = encode(TWO)
    config = CompileConfig(fullgraph=True, mode="default")
    # The host compiles on accelerators only unless it is told otherwise.
    config._compile_all_devices = True
    assert answers(inputs, cache_implementation="static", compile_config=config) == answers(inputs)
