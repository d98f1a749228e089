"""First token, and a second chat turn about the same picture."""

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from xgen_mm.modeling.host import CACHE_NAME

from ..clock import Job, ratios
from ..context import Context
from ..results import OURS, Recorder
from ..shapes import SMALL
from .decoding import cut_back
from .prefill import prefill_jobs

NUM_SECOND = 24


def measure_turns(context: Context, recorder: Recorder) -> None:
    """`generate` up to the first token, anew and from what an earlier turn left."""
    built = context.build(OURS, SMALL)
    inputs = built.prompt(1)
    ids = inputs["input_ids"]
    arguments = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    cache = DynamicCache(config=built.model.config.text_config)
    with torch.no_grad():
        pictures = built.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        first = {"input_ids": ids[:, :-NUM_SECOND], "attention_mask": inputs["attention_mask"][:, :-NUM_SECOND]}
        built.model(**(inputs | first), **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1)

    def from_cache() -> object:
        outputs = built.model.generate(**inputs, **arguments, **{CACHE_NAME: cache})
        cut_back(cache, ids.shape[1] - NUM_SECOND)
        return outputs

    def from_features() -> object:
        outputs = BaseModelOutputWithPooling(pooler_output=pictures)
        return built.model(input_ids=ids, mm_encoder_outputs={"image": outputs}, use_cache=True, logits_to_keep=1)

    parts = prefill_jobs(built, context.bare(built), num_images=1)
    jobs: dict[str, Job] = {
        "anew": lambda: built.model.generate(**inputs, **arguments),
        "kept features": from_features,
        "kept cache": from_cache,
        "vision": parts["vision"],
        "connector": parts["connector"],
        "language": parts["language"],
    }
    times = context.time(jobs, context.rounds(2, quick=2, warmups=0))
    case = "second turn, 1 image"
    for name in ("anew", "kept features", "kept cache"):
        recorder.add(name, times[name], case=case, unit="s")
    for name in ("kept features", "kept cache"):
        recorder.add(f"{name}: times cheaper", ratios(times, {"anew": 1}, {name: 1}), case=case, unit="times")
    bare = {"vision": 1.0, "connector": 1.0, "language": 1.0}
    recorder.add("first token", times["anew"], case="1 image", unit="s")
    recorder.add("first token, net ratio", ratios(times, {"anew": 1}, bare), case="1 image")
