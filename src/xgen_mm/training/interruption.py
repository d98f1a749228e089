"""Ctrl-C and SIGTERM end a run behind the step at hand, with a whole checkpoint to go on from."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun hands on to its processes what a scheduler may have sent them already: that is one signal, not two.
LAUNCHER_SECONDS = 1.0
LAUNCHER_VARIABLE = "TORCHELASTIC_RUN_ID"


class RunInterrupted(KeyboardInterrupt):
    """A run that a signal ended; the message says where, and how to go on.

    Like any `KeyboardInterrupt`, it is no `Exception`, so that a loop over several runs ends too.

    Attributes:
        signal_number: The signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        """Keep the signal beside the message."""
        super().__init__(message)
        self.signal_number = signal_number


class StopOnSignal(TrainerCallback):  # type: ignore[misc]  # the host is taken as untyped
    """Ends training behind the step in which a signal arrived, in all processes behind the same one.

    It has to come before `WholeCheckpoints`, and listens only inside `listening()`. A second signal does what it
    would have done without this class.

    Args:
        saves: Whether a checkpoint can be saved; see `distributed: fsdp_size`.

    Attributes:
        stopped_by: The signal that ended training before its last step; `None` if none did.
    """

    def __init__(self, *, saves: bool = True) -> None:
        self.saves = saves
        self.stopped_by: int | None = None
        self._received = 0
        self._since = 0.0
        self._group: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals inside. Only the main thread of a process can; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Whoever has a signal ignored, as `nohup` does, keeps it ignored.
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        previous = {number: handler for number, handler in previous.items() if handler is not signal.SIG_IGN}
        process = os.getpid()

        def receive(number: int, frame: FrameType | None) -> None:
            if os.getpid() != process:
                # A worker that reads data: the process it reads for decides.
                return
            if not self._received:
                self._received, self._since = number, time.monotonic()
                self._say(f"{signal.Signals(number).name}: the run ends behind this step; once more ends it at once.")
            elif time.monotonic() - self._since > (LAUNCHER_SECONDS if LAUNCHER_VARIABLE in os.environ else 0):
                _restore(previous)
                signal.raise_signal(number)

        for number in previous:
            signal.signal(number, receive)
        try:
            yield
        finally:
            _restore(previous)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare to ask the other processes in a way that does not wait for their accelerators."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """End training if any process has received a signal, with a log line and a checkpoint."""
        received = self._received
        if self._group is not None:
            highest = torch.tensor(received)
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self._group)
            received = int(highest)
        if received and state.global_step < state.max_steps:
            self.stopped_by = received
            control.should_training_stop = True
            # Schedulers grant seconds: they are for the checkpoint, not for held-out data.
            control.should_evaluate = False
            control.should_save = control.should_log = self.saves
        return control

    def _say(self, text: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            # A signal may arrive while a stream of Python's is being written.
            os.write(2, f"\n{text}\n".encode())


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
