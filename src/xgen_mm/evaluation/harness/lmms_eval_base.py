"""What the chat and the simple form of the lmms-eval adapter share. Imports lmms-eval.

Loaded by lmms-eval itself, through the entry point that `plugin.py` fills.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from ...errors import XGenMMError
from ..answering import describe_model
from ..journal import Journal
from ..prompted_model import DEFAULT_MAX_NEW_TOKENS
from .adapter import DEFAULT_MAX_BATCH_TOKENS, ModelAdapter, Reply, Request
from .loading import load_adapter
from .messages import PromptFormat


class XGenMMHarnessModel(lmms):
    """An xGen-MM model under lmms-eval.

    Every argument can be set in `--model_args name=value,...`.

    Args:
        pretrained: Directory or Hub id of a checkpoint; not needed with `model`.
        model: A loaded model.
        processor: Its processor.
        device: Torch device; `None` takes an accelerator if there is one. With several processes, each has its own.
        dtype: `auto` keeps the precision of the weights.
        revision: Commit, branch or tag on the Hub.
        batch_size: Most prompts of a batch, or `auto` to go by `max_batch_tokens` alone.
        max_batch_size: Upper bound of `batch_size`.
        max_batch_tokens: Most prompt tokens of a batch, image tokens and padding included.
        prompt_format: As in `ModelAdapter`.
        system_prompt: Put first; `None` leaves it to the chat template.
        max_new_tokens: Longest reply where a task names none.
        max_tiles: Most tiles of a picture, thumbnail included.
        on_error: What a prompt that cannot be answered does: `raise` at the end, after all others were answered, or
            `empty` to be counted as an empty reply.
        resume_dir: Directory that keeps every reply as it comes; a run that was interrupted goes on from there, with
            any number of processes. Whatever decides the replies must be the same as before.
        thumbnails_dir: Directory that gets small copies of the pictures; `None` for none.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        model: Any = None,
        processor: Any = None,
        device: str | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | str | None = None,
        max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS,
        prompt_format: PromptFormat = "auto",
        system_prompt: str | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        max_tiles: int | None = None,
        on_error: str = "raise",
        resume_dir: str | None = None,
        thumbnails_dir: str | None = None,
    ) -> None:
        """Load the model; see the class for the arguments."""
        super().__init__()
        if on_error not in ("raise", "empty"):
            raise ValueError(f"`on_error` is {on_error!r}; expected `raise` or `empty`.")
        self._join_processes()
        rows = [int(size) for size in (batch_size, max_batch_size) if size not in (None, "auto")]
        settings: dict[str, Any] = {
            "max_batch_tokens": int(max_batch_tokens),
            "max_batch_rows": min(rows, default=None),
            "prompt_format": prompt_format,
            "system_prompt": system_prompt,
            "max_tiles": max_tiles,
            "thumbnails_dir": None if thumbnails_dir is None else Path(thumbnails_dir),
        }
        if model is not None:
            self.adapter = ModelAdapter(model, processor, **settings)
        elif pretrained is not None:
            place = self._choose_device(device)
            self.adapter = load_adapter(pretrained, device=place, dtype=dtype, revision=revision, **settings)
        else:
            raise ValueError("No checkpoint: give `--model_args pretrained=DIRECTORY_OR_HUB_ID`.")
        self.default_max_new_tokens = int(max_new_tokens)
        self.on_error = on_error
        # By task and document; where a document is asked about several times, the last reply, or the last that failed.
        self.replies: dict[tuple[str, int], Reply] = {}
        self.journal = None if resume_dir is None else self._open_journal(Path(resume_dir))

    def _open_journal(self, directory: Path) -> Journal:
        journal = Journal(directory, rank=self.rank)
        adapter = self.adapter
        settings = {
            **asdict(describe_model(adapter.model, name=adapter.model.name_or_path)),
            "form": type(self).__name__,
            **adapter.settings(),
        }
        # Other processes may be here first.
        journal.directory.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            journal.start(settings, resume=True)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        journal.load()
        return journal

    def _join_processes(self) -> None:
        self._rank, self._world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if self.world_size > 1 and not torch.distributed.is_initialized():
            # lmms-eval gathers through this object where no group of processes is there yet.
            self.accelerator = Accelerator()

    def _choose_device(self, device: str | None) -> str | None:
        """One accelerator per process of a machine, where the user names none in particular."""
        if self.world_size == 1 or not torch.accelerator.is_available() or ":" in str(device) or device == "cpu":
            return device
        return f"{torch.accelerator.current_accelerator()}:{os.environ.get('LOCAL_RANK', '0')}"

    @property
    def device(self) -> torch.device:
        """Where lmms-eval counts requests, which it then gathers: a place that the processes' backend can read."""
        is_gloo = torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo"
        return torch.device("cpu") if is_gloo else self.adapter.model.device

    @property
    def config(self) -> Any:
        """Configuration of the model."""
        return self.adapter.model.config

    @property
    def tokenizer_name(self) -> str:
        """What lmms-eval's request cache goes by."""
        return str(self.adapter.processor.tokenizer.name_or_path).replace("/", "__")

    def document(self, task: str, split: str, doc_id: int) -> Any:
        """A row of a task's data, which lmms-eval puts there before it asks."""
        return self.task_dict[task][split][doc_id]

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Replies to all requests, in their order."""
        replies = self._run("generate_until", requests, read=self.read_generation)
        return [
            GenerationResult(
                text=reply.text,
                token_counts=TokenCounts(input_tokens=reply.num_prompt_tokens, output_tokens=reply.num_new_tokens),
            )
            for reply in replies
        ]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Loss of each continuation, and whether it is the greedy one.

        Whatever the method is called, lmms-eval 0.7.3 takes the choice with the lowest value, and its own models give
        the mean loss per token. Of all that a model may return it passes on the text of a `GenerationResult` alone and
        turns everything else into a string, so the pair stands there.
        """
        replies = self._run("loglikelihood", requests, read=self.read_likelihood)
        return [GenerationResult(text=(_loss(reply), reply.is_greedy)) for reply in replies]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("Tasks of several rounds are not supported by this adapter; leave them out.")

    def read_generation(self, arguments: tuple[Any, ...]) -> Request:
        """The prompt of a `generate_until` request, whose arguments differ between the two forms."""
        raise NotImplementedError

    def read_likelihood(self, arguments: tuple[Any, ...]) -> Request:
        """The prompt of a `loglikelihood` request."""
        raise NotImplementedError

    def _run(
        self, kind: str, instances: Sequence[Instance], *, read: Callable[[tuple[Any, ...]], Request]
    ) -> list[Reply]:
        requests = [read(instance.args) for instance in instances]
        keys = [_key(kind, instance, request) for instance, request in zip(instances, requests, strict=True)]
        known = {position: reply for position, key in enumerate(keys) if (reply := self._known(kind, key)) is not None}
        replies: dict[int, Reply] = {}
        failed: list[tuple[str, int]] = []
        with tqdm(total=len(requests), desc=kind, disable=self.rank != 0, unit="prompt") as progress:
            for position, reply in self.adapter.replies(requests, known=known):
                instance = instances[position]
                place = (instance.task_name, instance.doc_id)
                replies[position] = reply
                if place not in self.replies or self.replies[place].error is None or reply.error is not None:
                    self.replies[place] = reply
                if reply.error is not None:
                    failed.append(place)
                elif self.journal is not None and position not in known:
                    self.journal.append(kind, [{"id": keys[position], "position": position, **asdict(reply)}])
                progress.update()
        if failed and self.on_error == "raise":
            task, doc_id = failed[0]
            raise XGenMMError(
                f"{len(failed)} of {len(requests)} prompts failed, the first of task `{task}`, document {doc_id}: "
                f"{self.replies[failed[0]].error}. With `on_error=empty` they count as empty replies."
            )
        return [replies[position] for position in range(len(requests))]

    def _known(self, kind: str, key: str) -> Reply | None:
        record = None if self.journal is None else self.journal.finished(kind, key)
        return None if record is None else Reply(**{name: record[name] for name in Reply.__dataclass_fields__})


def _loss(reply: Reply) -> float:
    if reply.log_probability is None:
        return float("inf")
    return -reply.log_probability / reply.num_new_tokens


def _key(kind: str, instance: Instance, request: Request) -> str:
    """What tells a request from others, of other versions of its task too."""
    described = repr((kind, instance.args[0], request.settings, request.continuation, instance.idx))
    return f"{instance.task_name}/{instance.doc_id}/{hashlib.sha256(described.encode()).hexdigest()[:16]}"
