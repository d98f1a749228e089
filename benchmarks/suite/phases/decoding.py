"""Decoding: seconds per generated token, by cache and batch, against the bare language model."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, StaticCache

from xgen_mm.modeling.host import CACHE_NAME

from ..clock import Job, ratios
from ..context import Context
from ..results import OURS, Recorder
from ..shapes import HOST, SMALL
from ..systems import BuiltSystem

NUM_TOKENS = 16
BATCHES = (1, 4, 16)
CUDA_BATCHES = (1, 4, 16, 64)


def filled_cache(built: BuiltSystem, *, batch: int, length: int, room: int = 0) -> Any:
    """A cache with random keys and values, as after a prompt of `length` positions.

    Args:
        built: The system whose language model it is for.
        batch: Rows.
        length: Positions.
        room: Positions that a cache of fixed size has beyond them; 0 makes one that grows.
    """
    config = built.model.config.text_config
    cache = StaticCache(config=config, max_cache_len=length + room) if room else DynamicCache(config=config)
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        keys = torch.randn(batch, heads, length, width, dtype=built.dtype, device=built.device)
        cache.update(keys, keys.clone(), layer)
    return cache


def continue_from(model: Any, cache: Any, ids: torch.Tensor, *, num_tokens: int) -> Job:
    """`generate` after a prompt that the cache holds but for its last token; the cache is cut back each time."""
    mask = torch.ones_like(ids)
    start = ids.shape[1] - 1

    def job() -> object:
        outputs = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **{CACHE_NAME: cache},
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        if outputs.shape[1] != ids.shape[1] + num_tokens:
            raise RuntimeError(f"`generate` stopped after {outputs.shape[1] - ids.shape[1]} of {num_tokens} tokens.")
        cache.crop(start - cache.get_seq_length())
        return outputs

    return job


def step_by_hand(step: Callable[..., Any], cache: Any, ids: torch.Tensor, *, num_tokens: int) -> Job:
    """The shortest possible loop over a model's forward pass."""
    start = ids.shape[1] - 1

    def job() -> object:
        token = ids[:, -1:]
        for _ in range(num_tokens):
            scores = step(input_ids=token, **{CACHE_NAME: cache}, use_cache=True).logits
            token = scores[:, -1:].argmax(-1)
        cut_back(cache, start)
        return token

    return job


def cut_back(cache: Any, length: int) -> None:
    """Shorten a cache of either kind to `length` positions."""
    if isinstance(cache, StaticCache):
        for layer in cache.layers:
            layer.cumulative_length.fill_(length)
    else:
        cache.crop(length - cache.get_seq_length())


def measure_decoding(context: Context, recorder: Recorder) -> None:
    """`generate` against the bare language model's, per batch; then caches and compilation by host cost."""
    batches = CUDA_BATCHES if context.device == "cuda" else BATCHES
    built = context.build(OURS, SMALL)
    for batch in batches[: 2 if context.is_quick else None]:
        _measure_generate(context, recorder, built, batch=batch)
        if context.device == "cuda":
            _measure_static(context, recorder, built, batch=batch)
    peers = [] if context.is_quick else [name for name in ("idefics2", "idefics3") if name in context.systems]
    for name in peers:
        _measure_generate(context, recorder, context.build(name, SMALL), batch=1)
    context.release()
    host = context.build(OURS, HOST)
    _measure_generate(context, recorder, host, batch=1, prefix="host: ")
    _measure_static(context, recorder, host, batch=1, prefix="host: ")


def _measure_generate(
    context: Context, recorder: Recorder, built: BuiltSystem, *, batch: int, prefix: str = ""
) -> None:
    ids = built.input_ids(1, batch=batch)
    cache = filled_cache(built, batch=batch, length=ids.shape[1] - 1)
    bare = context.bare(built).causal_lm()
    num_tokens = NUM_TOKENS if batch == 1 else NUM_TOKENS // 4
    static = filled_cache(built, batch=batch, length=ids.shape[1] - 1, room=num_tokens)
    jobs: dict[str, Job] = {
        "generate": continue_from(built.model, cache, ids, num_tokens=num_tokens),
        "bare generate": continue_from(bare, cache, ids, num_tokens=num_tokens),
    }
    jobs["loop, static cache"] = step_by_hand(built.model, static, ids, num_tokens=num_tokens)
    if batch == 1:
        jobs["bare loop"] = step_by_hand(bare, cache, ids, num_tokens=num_tokens)
    rounds = context.rounds(21, quick=9) if prefix else context.rounds(9 if batch == 1 else 4, quick=3)
    times = context.time(jobs, rounds)
    case = f"{prefix}batch {batch}"
    for name, found in times.items():
        recorder.add(f"{name}, per token", [t / num_tokens for t in found], case=case, entry=built.name, unit="s")
        if name.startswith("bare"):
            recorder.add(f"ratio to {name}", ratios(times, {"generate": 1}, {name: 1}), case=case, entry=built.name)


def _measure_static(context: Context, recorder: Recorder, built: BuiltSystem, *, batch: int, prefix: str = "") -> None:
    """One token after a prompt with a picture: growing cache, fixed cache, fixed cache with a compiled step."""
    inputs = built.prompt(1, batch=batch)
    ids, case = inputs["input_ids"], f"{prefix}batch {batch}"
    caches = {
        "dynamic": DynamicCache(config=built.model.config.text_config),
        "static": StaticCache(config=built.model.config.text_config, max_cache_len=ids.shape[1] + NUM_TOKENS),
    }
    with torch.no_grad():
        for cache in caches.values():
            built.model(**inputs, **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1)
            cut_back(cache, ids.shape[1] - 1)
    torch._dynamo.reset()
    mode = "reduce-overhead" if context.device == "cuda" else "default"
    try:
        step = torch.compile(built.model.forward, fullgraph=True, dynamic=False, mode=mode)
        jobs = {
            "dynamic": step_by_hand(built.model, caches["dynamic"], ids, num_tokens=NUM_TOKENS),
            "static": step_by_hand(built.model, caches["static"], ids, num_tokens=NUM_TOKENS),
            "static, compiled": step_by_hand(step, caches["static"], ids, num_tokens=NUM_TOKENS),
        }
        with torch.no_grad():
            compiled, eager = jobs["static, compiled"](), jobs["dynamic"]()
            # Both ways are greedy: the same tokens, or the compiled step is another model. In half precision, random
            # weights leave the best two scores too close for that.
            if built.dtype == torch.float32 and not torch.equal(compiled, eager):  # type: ignore[arg-type]
                recorder.absent("static, compiled", "the compiled step generates other tokens")
                return
        times = context.time(jobs, context.rounds(15, quick=5))
    except torch._dynamo.exc.TorchDynamoException as error:
        recorder.absent("static, compiled", f"the step does not compile as one graph: {str(error).splitlines()[0]}")
        return
    finally:
        torch._dynamo.reset()
    for name, found in times.items():
        recorder.add(f"{name}, per token", [t / NUM_TOKENS for t in found], case=case, unit="s")
    faster = ratios(times, {"dynamic": 1}, {"static, compiled": 1})
    recorder.add("compiled: times faster than dynamic", faster, case=case, unit="times")
