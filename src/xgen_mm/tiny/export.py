"""From a training run to a checkpoint directory: `python -m xgen_mm.tiny.export --run DIR --to DIR`."""

import argparse
from pathlib import Path

from safetensors.torch import load_file
from transformers import GenerationConfig

from ..modeling.modeling_xgen_mm import XGenMMForConditionalGeneration
from ..processing.image_processing_xgen_mm import XGenMMImageProcessor
from ..processing.processing_xgen_mm import XGenMMProcessor
from .architecture import build_config
from .curve import draw_curve
from .recipe import ModelRecipe, load_recipe
from .tokenizer import END_TOKEN, build_tokenizer
from .training import CURVE_FILE, EMA_FILE

# Shared with the embedding table, so it is stored once.
OUTPUT_TABLE = "lm_head.weight"
TRAINING_ONLY = "patch_head."


def build_processor(model: ModelRecipe) -> XGenMMProcessor:
    """Processor of the small model: its tokenizer, and tiles of its size on the five released grids."""
    tokenizer = build_tokenizer()
    config = build_config(model, tokenizer)
    image_processor = XGenMMImageProcessor(
        size={"height": model.tile_size, "width": model.tile_size},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )
    return XGenMMProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        num_latents=model.num_latents,
        tile_grouping=config.tile_grouping,
    )


def export_checkpoint(weights: Path, directory: Path, *, model: ModelRecipe) -> None:
    """Write a checkpoint that `from_pretrained` reads: float16 on disk, float32 in memory.

    Args:
        weights: Weight average of the joint stage (`ema.safetensors`).
        directory: Where the checkpoint goes; created if needed.
        model: Sizes the weights were trained with.

    Raises:
        RuntimeError: If the weights do not fit the sizes.
    """
    processor = build_processor(model)
    tokenizer = processor.tokenizer
    network = XGenMMForConditionalGeneration(build_config(model, tokenizer))
    averaged = {name: value for name, value in load_file(weights).items() if not name.startswith(TRAINING_ONLY)}
    # The output layer shares the embedding table, so it has no entry of its own.
    averaged.setdefault(OUTPUT_TABLE, averaged["model.language_model.embed_tokens.weight"])
    network.load_state_dict(averaged)
    network.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END_TOKEN),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        # The placeholder of a picture is nothing a model may say.
        suppress_tokens=[processor.image_token_id],
    )
    # Stored in half precision, computed in single: the configuration keeps the network's own type, and casting up when
    # the weights are read costs nothing, while half-precision arithmetic would cost accuracy and, on a CPU, time.
    halved = {name: value.half() for name, value in network.state_dict().items() if name != OUTPUT_TABLE}
    network.save_pretrained(directory, state_dict=halved, with_code=False)
    processor.save_pretrained(directory, with_code=False)


def main(arguments: list[str] | None = None) -> None:
    """Export a finished (or interrupted) joint stage from the command line."""
    parser = argparse.ArgumentParser(description="Write the checkpoint of a training run, and draw its curve.")
    parser.add_argument("--run", type=Path, required=True, help="`--output` of the training run")
    parser.add_argument("--to", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/tiny/digits.yaml"))
    options = parser.parse_args(arguments)
    stage = options.run / "joint"
    export_checkpoint(stage / EMA_FILE, options.to, model=load_recipe(options.recipe).model)
    draw_curve(stage / CURVE_FILE, stage / "training_curve.png")


if __name__ == "__main__":
    main()
