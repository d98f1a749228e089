"""Cost of a second chat turn against computing the conversation anew.

A model with the released proportions (SigLIP-so400m and Phi-3-mini in width, fewer layers, random weights) sees one
picture of five tiles. Measured, in turns and in one run: the whole conversation computed anew up to the first token of
the second answer, and the same from the cache of the first turn.

    python benchmarks/chat_turns.py [--layers 3] [--rounds 5] [--json RESULTS]
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, preset_config

PRESET = "xgen-mm-phi3-mini-instruct-interleave-r-v1.5"
MAX_RATIO = 0.12
NUM_FIRST, NUM_SECOND = 24, 24
SEED = 7


def build_model(num_layers: int) -> XGenMMForConditionalGeneration:
    """Model of the released widths with few layers, the tower's share of them kept."""
    fields: dict[str, Any] = preset_config(PRESET).to_dict()
    fields["vision_config"]["num_hidden_layers"] = num_layers
    fields["text_config"]["num_hidden_layers"] = num_layers
    fields["resampler_config"]["num_hidden_layers"] = max(1, num_layers // 4)
    torch.manual_seed(SEED)
    return XGenMMForConditionalGeneration(XGenMMConfig(**fields)).eval()


def conversation(model: XGenMMForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Ids of two turns about a picture of two by two tiles, and its pixels."""
    config = model.config
    generator = torch.Generator().manual_seed(SEED)
    words = torch.randint(3, 32000, (NUM_FIRST + NUM_SECOND,), generator=generator)
    image = torch.full((5 * config.resampler_config.num_latents,), config.image_token_id)
    ids = torch.cat([words[:4], image, words[4:]])[None]
    edge = config.tile_size
    pixel_values = torch.randn(1, 5, 3, edge, edge, generator=generator)
    return {"input_ids": ids, "pixel_values": pixel_values, "image_sizes": torch.tensor([[2 * edge, 2 * edge]])}


def measure(num_layers: int, num_rounds: int) -> dict[str, Any]:
    """Seconds of both ways, alternating."""
    model = build_model(num_layers)
    inputs = conversation(model)
    first = dict(inputs, input_ids=inputs["input_ids"][:, :-NUM_SECOND])
    arguments = {"max_new_tokens": 1, "min_new_tokens": 1, "do_sample": False}
    cache = DynamicCache(config=model.config.get_text_config())
    model.generate(**first, **arguments, cache=cache)
    seconds: dict[str, list[float]] = {"anew": [], "from the cache": []}
    ids = {}
    for _ in range(num_rounds):
        for name in seconds:
            extra = {"cache": copy.deepcopy(cache)} if name == "from the cache" else {}
            started = time.perf_counter()
            ids[name] = model.generate(**inputs, **arguments, **extra)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "layers": num_layers,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "tokens": inputs["input_ids"].shape[1],
        "seconds": medians,
        "ratio": medians["from the cache"] / medians["anew"],
        "same_token": bool(torch.equal(ids["anew"], ids["from the cache"])),
    }


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=3, help="layers of tower and language model (default: 3)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each way (default: 5)")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    results = measure(arguments.layers, arguments.rounds)
    for name, seconds in results["seconds"].items():
        sys.stdout.write(f"second answer, {name:<14} {seconds:8.3f} s\n")
    sys.stdout.write(f"ratio {results['ratio']:.3f} (goal {MAX_RATIO}); same token: {results['same_token']}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if results["ratio"] <= MAX_RATIO and results["same_token"] else 1


if __name__ == "__main__":
    sys.exit(main())
