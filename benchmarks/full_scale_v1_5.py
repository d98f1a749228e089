"""Converting and loading a checkpoint of the released size, measured.

Writes a checkpoint of 4.36 billion seeded random values (bfloat16, four files, 8.7 GB) in the layout of the v1.5
releases, then measures, each step in a process of its own: a plain copy of the files, the conversion, loading the
original files directly, an answer of eight tokens about a picture of four tiles, and the way back to the original
layout, whose files must be the same bit by bit.

    python benchmarks/full_scale_v1_5.py WORK_DIRECTORY [--scale tiny] [--json RESULTS]

Needs about 30 GB of free disk and, for the loading steps, 12 GB of memory. `--scale tiny` takes seconds and tests the
script. What it wrote is removed at the end unless `--keep` is given.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NUM_FILES = 4
NUM_NEW_TOKENS = 8
TABLE_ROWS = 32064
SEED = 15
MAX_COPY_RATIO, MAX_CONVERT_BYTES, MAX_LOAD_RATIO = 2.0, 3 * 10**9, 1.15
RELEASED_CONFIG = {
    "architectures": ["XGenMMModelForConditionalGeneration"],
    "auto_map": {"AutoConfig": "modeling_xgenmm.XGenMMConfig"},
    "model_type": "xgenmm",
    "text_config": {"initial_tokenizer_len": 32012, "model_type": "phi3", "sliding_window": 2047},
    "torch_dtype": "bfloat16",
    "vision_encoder_config": {"anyres_patch_sampling": True, "image_aspect_ratio": "anyres"},
    "vision_tokenizer_config": {"model_type": "xgenmm_vision_tokenizer"},
}
TINY_SIZES: dict[str, dict[str, Any]] = {
    "text_config": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vision_encoder_config": {
        "siglip_vision_config": {
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
        }
    },
    "vision_tokenizer_config": {"vis_feature_dim": 32, "lang_embedding_dim": 64, "num_vis_tokens": 8, "depth": 2},
}


def write_original(directory: Path, *, scale: str) -> dict[str, Any]:
    """Write the checkpoint in the original layout; returns how large it is."""
    import torch
    from safetensors.torch import save_file

    config = {**RELEASED_CONFIG}
    if scale == "tiny":
        for section, sizes in TINY_SIZES.items():
            config[section] = {**RELEASED_CONFIG[section], **sizes}  # type: ignore[dict-item]
        config["text_config"]["num_key_value_heads"] = 4  # type: ignore[index]
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    generator = torch.Generator().manual_seed(SEED)
    groups = [group for group in split_evenly(original_shapes(config), NUM_FILES) if group]
    weight_map: dict[str, str] = {}
    num_values = 0
    for number, shapes in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for key, shape in shapes.items():
            # Near 1 for normalisation weights, near 0 otherwise: activations stay finite through all layers.
            is_scale = "norm" in key and key.endswith("weight")
            values = torch.randn(shape, generator=generator, dtype=torch.bfloat16) * 0.02
            tensors[key] = values + 1 if is_scale else values
            num_values += values.numel()
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, name)
    index = {"metadata": {"total_size": 2 * num_values}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return {"num_values": num_values, "bytes": 2 * num_values}


def original_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the original layout with its shape."""
    from xgen_mm import XGenMMConfig
    from xgen_mm.conversion.inventory import build_inventory
    from xgen_mm.conversion.key_rules import V1_5

    inventory = build_inventory(XGenMMConfig(**config), V1_5)
    shapes = {**inventory.released, **{name: shape for name, shape in inventory.dropped.items() if shape}}
    for name in V1_5.open_tables:
        shapes[name] = (TABLE_ROWS, *shapes[name][1:])
    return {V1_5.prefix + name: shape for name, shape in shapes.items()}


def split_evenly(shapes: dict[str, tuple[int, ...]], num_groups: int) -> list[dict[str, tuple[int, ...]]]:
    """Distribute tensors over groups of about the same number of values, in order."""
    total = sum(math.prod(shape) for shape in shapes.values())
    groups: list[dict[str, tuple[int, ...]]] = [{} for _ in range(num_groups)]
    position = 0
    for name, shape in shapes.items():
        groups[min(num_groups - 1, position * num_groups // total)][name] = shape
        position += math.prod(shape)
    return groups


def copy_files(source: Path, destination: Path) -> dict[str, Any]:
    """Copy a checkpoint as it is."""
    shutil.copytree(source, destination)
    return {}


def convert(source: Path, destination: Path) -> dict[str, Any]:
    """Convert a checkpoint into our layout."""
    from xgen_mm.conversion.convert_checkpoint import convert_checkpoint

    report = convert_checkpoint(source, destination)
    return {"num_files": len(report.files), "num_parameters": report.num_parameters}


def load(source: Path, _: Path) -> dict[str, Any]:
    """Load a checkpoint and touch every weight."""
    model = load_model(source)
    # Values that were only mapped would not count as memory in use.
    checksum = sum(float(tensor.view(-1)[::2048].float().abs().sum()) for tensor in model.state_dict().values())
    return {"num_parameters": sum(parameter.numel() for parameter in model.parameters()), "checksum": checksum}


def generate(source: Path, _: Path) -> dict[str, Any]:
    """Load a checkpoint and let it answer about a picture of four tiles."""
    import numpy as np
    import torch
    from PIL import Image

    from xgen_mm import XGenMMImageProcessor

    model = load_model(source)
    config = model.config
    edge = config.tile_size
    rows, columns = np.mgrid[0:edge, 0 : 3 * edge]
    photo = np.stack([rows * 255 // edge, columns * 255 // (3 * edge), (rows + columns) % 256], axis=-1)
    processor = XGenMMImageProcessor(
        size={"height": edge, "width": edge}, image_grid_pinpoints=config.image_grid_pinpoints
    )
    pictures = processor(Image.fromarray(photo.astype(np.uint8)), return_tensors="pt")
    num_tiles = pictures["pixel_values"].shape[1]
    words = torch.randint(3, 32000, (16,), generator=torch.Generator().manual_seed(SEED)).tolist()
    image = [config.image_token_id] * (num_tiles * config.resampler_config.num_latents)
    ids = torch.tensor([words[:4] + image + words[4:]])
    started = time.monotonic()
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **pictures,
            max_new_tokens=NUM_NEW_TOKENS,
            min_new_tokens=NUM_NEW_TOKENS,
        )
    new_ids = output[0, ids.shape[1] :].tolist()
    return {"generate_seconds": time.monotonic() - started, "num_tiles": num_tiles, "new_ids": new_ids}


def restore(source: Path, destination: Path) -> dict[str, Any]:
    """Write a converted checkpoint back into the original layout."""
    from xgen_mm.conversion.restore_checkpoint import restore_checkpoint

    return {"num_files": len(restore_checkpoint(source, destination).files)}


def load_model(source: Path) -> Any:
    """Model of a checkpoint in its stored type."""
    from transformers import AutoModelForImageTextToText

    import xgen_mm  # noqa: F401

    return AutoModelForImageTextToText.from_pretrained(source, dtype="auto").eval()


STEPS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "copy": copy_files,
    "convert": convert,
    "load": load,
    "generate": generate,
    "restore": restore,
}


def run_step(name: str, source: Path, destination: Path) -> dict[str, Any]:
    """Run one step in a process of its own; returns its seconds and its largest memory use."""
    os.sync()
    command = [sys.executable, __file__, str(source), "--step", name, "--destination", str(destination)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    log(f"{name}: {measured['seconds']:.1f} s, {measured['peak_bytes'] / 1e9:.2f} GB")
    return measured


def measure_step(name: str, source: Path, destination: Path) -> None:
    """Body of the process of one step; imports are not part of the time."""
    import torch

    import xgen_mm.conversion.convert_checkpoint
    import xgen_mm.modeling.modeling_xgen_mm  # noqa: F401

    torch.set_num_threads(os.cpu_count() or 1)
    started = time.monotonic()
    details = STEPS[name](source, destination)
    seconds = time.monotonic() - started
    sys.stdout.write(json.dumps({"seconds": seconds, "peak_bytes": peak_memory(), **details}) + "\n")


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes, files mapped into memory included."""
    # Unlike `getrusage`, this does not begin with the memory of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def compare_files(first: Path, second: Path) -> bool:
    """Whether the weight files of two directories are the same bit by bit."""
    names = sorted(path.name for path in first.glob("*.safetensors"))
    return names == sorted(path.name for path in second.glob("*.safetensors")) and all(
        digest(first / name) == digest(second / name) for name in names
    )


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def measure_all(directory: Path, *, scale: str) -> dict[str, Any]:
    """Write the checkpoint, run every step and judge the results."""
    original, copied = directory / "original", directory / "copied"
    converted, restored = directory / "converted", directory / "restored"
    log(f"Writing the original checkpoint to {original}")
    size = write_original(original, scale=scale)
    results: dict[str, Any] = {"scale": scale, "original": size, "machine": describe_machine()}
    results["copy"] = run_step("copy", original, copied)
    shutil.rmtree(copied)
    results["convert"] = run_step("convert", original, converted)
    results["load"] = run_step("load", original, original)
    results["load_converted"] = run_step("load", converted, converted)
    results["generate"] = run_step("generate", original, original)
    results["generate_converted"] = run_step("generate", converted, converted)
    results["restore"] = run_step("restore", converted, restored)
    results["checks"] = {
        "the picture has four tiles": results["generate"]["num_tiles"] == 4,
        "original and converted files give the same answer": (
            results["generate"]["new_ids"] == results["generate_converted"]["new_ids"]
        ),
        "restored files are the original ones bit by bit": compare_files(original, restored),
    }
    if scale == "full":
        # A small checkpoint is all overhead.
        results["checks"] |= {
            "conversion takes at most twice the time of a copy": (
                results["convert"]["seconds"] <= MAX_COPY_RATIO * results["copy"]["seconds"]
            ),
            "conversion takes at most 3 GB of memory": results["convert"]["peak_bytes"] <= MAX_CONVERT_BYTES,
            "direct loading takes at most 1.15 times the weights": (
                results["load"]["peak_bytes"] <= MAX_LOAD_RATIO * size["bytes"]
            ),
        }
    return results


def describe_machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from importlib.metadata import version

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    return {"cores": os.cpu_count(), "memory_bytes": memory, "python": platform.python_version(), **versions}


def format_results(results: dict[str, Any]) -> Iterator[str]:
    """Results as lines of a table."""
    yield f"{results['original']['num_values']:,} values, {results['original']['bytes'] / 1e9:.2f} GB"
    yield f"{'step':<20} {'seconds':>9} {'peak memory':>12}"
    for name in ("copy", "convert", "load", "load_converted", "generate", "generate_converted", "restore"):
        measured = results[name]
        yield f"{name:<20} {measured['seconds']:>9.1f} {measured['peak_bytes'] / 1e9:>9.2f} GB"
    yield f"conversion / copy: {results['convert']['seconds'] / results['copy']['seconds']:.2f}"
    yield f"memory of direct loading / weights: {results['load']['peak_bytes'] / results['original']['bytes']:.3f}"
    for check, has_passed in results["checks"].items():
        yield f"{'yes' if has_passed else 'NO ':<4} {check}"


def log(message: str) -> None:
    """Tell the person at the terminal what is going on."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where to work; it is created")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--keep", action="store_true", help="leave the files that were written")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--destination", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        measure_step(arguments.step, arguments.directory, arguments.destination)
        return 0
    directory = arguments.directory / "full_scale_v1_5"
    try:
        results = measure_all(directory, scale=arguments.scale)
    finally:
        if not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)
    sys.stdout.write("\n".join(format_results(results)) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(results["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
