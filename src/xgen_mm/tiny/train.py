"""Train the small model: `torchrun --nproc_per_node 2 -m xgen_mm.tiny.train --stage tower|joint --output DIR`."""

import argparse
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.trainer_utils import get_last_checkpoint

from .architecture import build_config, vision_fields
from .development import MeasureDevelopment
from .digits import GlyphBank
from .joint_stage import QuestionBatches, QuestionMaker, XGenMMWithPatchHead
from .mnist import DEFAULT_DIR, fetch_mnist, read_mnist
from .recipe import TinyRecipe, load_recipe
from .tokenizer import build_tokenizer
from .tower_stage import MosaicBatches, TowerWithPatchHead
from .training import EMA_FILE, RecordCurve, build_trainer

SAVE_STEPS = 200


def main(arguments: list[str] | None = None) -> None:
    """Run one stage from the command line."""
    parser = argparse.ArgumentParser(description="Train the small model that ships with xgen-mm.")
    parser.add_argument("--stage", choices=["tower", "joint"], required=True)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/tiny/digits.yaml"))
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="directory of the run; one folder per stage",
    )
    parser.add_argument(
        "--mnist",
        type=Path,
        default=DEFAULT_DIR,
        help="directory of the four MNIST files",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    # Two processes of one thread each beat one process of two threads.
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe)
    fetch_mnist(options.mnist)
    if options.stage == "tower":
        run_tower_stage(recipe, mnist=options.mnist, output=options.output)
    else:
        run_joint_stage(recipe, mnist=options.mnist, output=options.output)


def run_tower_stage(recipe: TinyRecipe, *, mnist: Path, output: Path) -> None:
    """Train the vision tower on mosaics and leave its weight average in `output/tower`."""
    torch.manual_seed(recipe.seed)
    pixels, classes = read_mnist(mnist, "train")
    kept = len(pixels) - recipe.held_out_digits
    fields = {key: value for key, value in vision_fields(recipe.model).items() if key != "model_type"}
    tower = SiglipVisionModel._from_config(SiglipVisionConfig(**fields), attn_implementation="eager")
    model = TowerWithPatchHead(tower, seed=recipe.seed)
    batches = MosaicBatches(pixels[:kept], classes[:kept], recipe=recipe)
    directory = output / "tower"
    trainer, _ = build_trainer(
        model,
        batches,
        optim=recipe.tower.optim,
        steps=len(batches) // recipe.num_processes,
        seed=recipe.seed,
        output_dir=directory,
        save_steps=150,
    )
    last = get_last_checkpoint(str(directory)) if directory.is_dir() else None
    trainer.train(resume_from_checkpoint=last)


def run_joint_stage(recipe: TinyRecipe, *, mnist: Path, output: Path) -> None:
    """Train the whole model from the tower in `output/tower` and leave its weight average in `output/joint`.

    Raises:
        FileNotFoundError: If the tower stage has not been run into `output`.
    """
    torch.manual_seed(recipe.seed)
    pixels, classes = read_mnist(mnist, "train")
    kept = len(pixels) - recipe.held_out_digits
    tokenizer = build_tokenizer()
    config = build_config(recipe.model, tokenizer)
    # One call for all tiles of a step: the batch is sized for it.
    config.max_tiles_per_call = 2 * recipe.joint.tiles_per_process
    model = XGenMMWithPatchHead._from_config(config, attn_implementation="sdpa")
    model.patch_loss_weight = (
        recipe.joint.patch_loss_weight[0],
        recipe.joint.patch_loss_weight[1],
    )
    load_tower(model, output / "tower" / EMA_FILE)
    maker = QuestionMaker(GlyphBank(pixels[:kept], classes[:kept]), tokenizer, config)
    held_out = QuestionMaker(GlyphBank(pixels[kept:], classes[kept:]), tokenizer, config)
    batches = QuestionBatches(maker, recipe)
    directory = output / "joint"
    steps = len(batches) // recipe.num_processes
    trainer, average = build_trainer(
        model,
        batches,
        optim=recipe.joint.optim,
        steps=steps,
        seed=recipe.seed,
        output_dir=directory,
        save_steps=SAVE_STEPS,
    )
    record = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, RecordCurve))
    trainer.add_callback(MeasureDevelopment(model, held_out, average, record, every=SAVE_STEPS, seed=recipe.seed))
    last = get_last_checkpoint(str(directory)) if directory.is_dir() else None
    if last is not None:
        average.restore(Path(last))
    trainer.train(resume_from_checkpoint=last)


def load_tower(model: XGenMMWithPatchHead, path: Path) -> None:
    """Copy the tower and the patch head of the tower stage into a new model.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` not found. Run the tower stage with the same `--output` first.")
    weights = load_file(path)
    for prefix, module in (
        ("vision_tower.", model.model.vision_tower),
        ("patch_head.", model.patch_head),
    ):
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        module.load_state_dict(part)


if __name__ == "__main__":
    main()
