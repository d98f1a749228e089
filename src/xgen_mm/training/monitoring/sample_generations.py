"""Answers that are generated during a run, to be looked at."""

import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...processing.image_loading import fetch_image
from ..recipe_sections import SamplePrompt, SampleSection
from .run_metrics import RunMetrics

logger = logging.getLogger(__name__)

SAMPLES_FILE = "samples.jsonl"


class SampleGenerations(TrainerCallback):  # type: ignore[misc]  # the host is taken as untyped
    """Answers the recipe's prompts every so many steps and at the end, and adds them to `samples.jsonl`.

    Training goes on as if nothing had happened: random states and the mode of every module are put back. Only the main
    process answers, greedily. A model that lies in shards (FSDP) is left out, because every process would have to
    take part.

    Args:
        section: Prompts, length of answers, and how often.
        processor: Processor of the model.
        as_documents: Write prompts as base models read them, the picture before the text, rather than as a chat.
        metrics: Whose clock leaves the time out.
    """

    def __init__(
        self, section: SampleSection, processor: Any, *, as_documents: bool = False, metrics: RunMetrics | None = None
    ) -> None:
        self.section = section
        self.processor = processor
        self.as_documents = as_documents
        self.metrics = metrics
        self._last_step = -1
        self._is_off = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Forget answers behind the checkpoint that is resumed, and see whether answers can be had at all.

        Raises:
            ImageInputError: If the picture of a prompt cannot be read, which would otherwise end the run later.
        """
        if not state.is_world_process_zero:
            return
        for prompt in self.section.prompts:
            if prompt.image is not None:
                fetch_image(prompt.image)
        path = Path(args.output_dir, SAMPLES_FILE)
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            path.write_text("".join(kept) if state.global_step else "", encoding="utf-8")
        self._is_off = _is_sharded(model)
        if self._is_off:
            logger.warning(
                "No sample answers: the model lies in shards, so every process would have to generate. Look at a "
                "saved checkpoint instead (`xgen-mm generate`)."
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Answer, if it is time to."""
        if state.global_step % self.section.steps == 0:
            self._answer(args, state, model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Answer, unless that was just done, or the run goes on later."""
        if state.global_step != self._last_step and state.global_step >= state.max_steps:
            self._answer(args, state, model)

    def _answer(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        self._last_step = state.global_step
        if self._is_off or not state.is_world_process_zero:
            return
        with as_if_nothing_happened(model):
            rows = [
                {"step": state.global_step, "prompt": prompt.text, "image": prompt.image, "answer": answer}
                for prompt in self.section.prompts
                for answer in [self._answer_one(model, prompt)]
            ]
        path = Path(args.output_dir, SAMPLES_FILE)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            logger.warning("`%s` cannot be written: %s", path, error)
        if self.metrics is not None:
            self.metrics.restart_clock()

    def _answer_one(self, model: Any, prompt: SamplePrompt) -> str:
        images = [fetch_image(prompt.image)] if prompt.image is not None else []
        if self.as_documents:
            mark = self.processor.image_token if images else ""
            inputs = self.processor(text=mark + prompt.text, images=images or None, return_tensors="pt")
        else:
            content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": prompt.text}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        inputs = inputs.to(next(model.parameters()).device)
        # The cache is off in a model that is trained with gradient checkpointing.
        output = model.generate(
            **inputs, max_new_tokens=self.section.max_new_tokens, do_sample=False, num_beams=1, use_cache=True
        )
        new = output[0, inputs["input_ids"].shape[1] :]
        text: str = self.processor.decode(new, skip_special_tokens=True)
        return text.strip()


@contextmanager
def as_if_nothing_happened(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; modes and random states are put back behind.

    Args:
        model: The model that is trained.
    """
    is_training = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in is_training:
                module.training = mode
            random.setstate(python)
            np.random.set_state(numpy)


def _is_sharded(model: nn.Module) -> bool:
    """Whether weights are spread over processes, by FSDP of any kind or tensor parallelism."""
    return any(
        hasattr(weight, "device_mesh") or hasattr(weight, "_is_flat_param") for weight in model.parameters()
    ) or any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
