"""From a training run to a checkpoint directory: `python -m xgen_mm.tiny.export --run DIR --to DIR`."""

import argparse
from pathlib import Path

import torch
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
    """Write a checkpoint that `from_pretrained` reads, in bfloat16.

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
    averaged.setdefault("lm_head.weight", averaged["model.language_model.embed_tokens.weight"])
    network.load_state_dict(averaged)
    network.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END_TOKEN),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        # The placeholder of a picture is nothing a model may say.
        suppress_tokens=[processor.image_token_id],
    )
    network.to(torch.bfloat16).save_pretrained(directory)
    processor.save_pretrained(directory)


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
