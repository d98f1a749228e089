"""Training of a small random model on packed rows of a stream; as a script, on two processes."""

import sys
from pathlib import Path
from typing import Any

import torch

from tests.data.made_records import conversation, document
from xgen_mm.data.encoding import RecordEncoder
from xgen_mm.data.loading import ResumableLoader, train_on
from xgen_mm.data.mixture import Mixture, MixtureEntry
from xgen_mm.data.mixture_sources import ListSource
from xgen_mm.data.packing import PackingCollator
from xgen_mm.data.samplers import PackGroups
from xgen_mm.data.streams import BatchStream

RUN = Path(__file__)
CAPACITY = 96


def small_model_and_processor() -> tuple[Any, Any]:
    from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMImageProcessor, XGenMMProcessor
    from xgen_mm.tiny.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    width = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = XGenMMConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7, **width},
        resampler_config={"num_latents": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16},
        text_config={"model_type": "phi3", "vocab_size": len(tokenizer), "num_key_value_heads": 2, **width}
        | {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 1},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    image_processor = XGenMMImageProcessor(
        size={"height": 28, "width": 28}, image_grid_pinpoints=config.image_grid_pinpoints
    )
    return XGenMMForConditionalGeneration(config), XGenMMProcessor(image_processor, tokenizer, num_latents=4)


def make_loader(*, rank: int, world_size: int, num_workers: int = 0) -> ResumableLoader:
    _, processor = small_model_and_processor()
    pairs = [document(f"<image>Number {number}.", key=str(number), height=20, width=30) for number in range(23)]
    talks = [conversation(f"<image>{number}?", "It is " + "so " * (number % 5) + ".") for number in range(17)]
    entries = [
        MixtureEntry(name=name, source=ListSource(records), weight=0.5, encoder=RecordEncoder(processor))
        for name, records in (("pairs", pairs), ("talks", talks))
    ]
    stream = BatchStream(
        Mixture(entries),
        grouping=PackGroups(capacity=CAPACITY),
        collator=PackingCollator(processor, row_length=CAPACITY),
        window=12,
        groups_per_batch=2,
        rank=rank,
        world_size=world_size,
    )
    return ResumableLoader(stream, num_workers=num_workers)


def make_trainer(
    directory: Path,
    loader: ResumableLoader,
    *,
    steps: int,
    resume_from_checkpoint: Path | None = None,
    ignore_data_skip: bool = True,
) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(directory),
        use_cpu=True,
        max_steps=steps,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_steps=2,
        ignore_data_skip=ignore_data_skip,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=True,
    )
    model, _ = small_model_and_processor()
    trainer = Trainer(model, arguments)
    train_on(trainer, loader, resume_from_checkpoint=resume_from_checkpoint)
    return trainer


def train(
    directory: Path, *, steps: tuple[int, ...], num_workers: int = 0, rank: int = 0, world_size: int = 1
) -> dict[str, torch.Tensor]:
    """Train up to each number of steps with a new trainer and loader, resumed from the last checkpoint."""
    checkpoint = None
    for step in steps:
        loader = make_loader(rank=rank, world_size=world_size, num_workers=num_workers)
        trainer = make_trainer(directory, loader, steps=step, resume_from_checkpoint=checkpoint)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        checkpoint = directory / f"checkpoint-{step}"
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def main(directory: Path) -> None:
    import os

    rank = int(os.environ["RANK"])
    for name, steps in (("straight", (4,)), ("halved", (2, 4))):
        weights = train(directory / name, steps=steps, rank=rank, world_size=2)
        if rank == 0:
            torch.save(weights, directory / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
