"""What needs a process of its own: peak memory, and the time until the package can be used."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ..clock import WallClock, ratios, turn_order
from ..context import Context
from ..memory_probe import can_measure
from ..results import OURS, Recorder
from ..shapes import SHALLOW, SMALL, Shape

ROOT = Path(__file__).resolve().parents[3]
# Large blocks go back to the system when they are freed, so that resident memory follows what is in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STARTS: Mapping[str, str] = {
    "import xgen_mm": "import xgen_mm",
    "import our model and processor": "from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor",
    "import Idefics3's": "from transformers import Idefics3ForConditionalGeneration, Idefics3Processor",
    "load the packaged model": (
        "import xgen_mm\n"
        "xgen_mm.XGenMMForConditionalGeneration.from_pretrained(xgen_mm.tiny_checkpoint())\n"
        "xgen_mm.XGenMMProcessor.from_pretrained(xgen_mm.tiny_checkpoint())"
    ),
}


def probe(context: Context, work: str, *, system: str, shape: Shape, num_images: int = 1) -> int:
    """Extra peak memory in bytes of one piece of work; see `memory_probe`."""
    command = [sys.executable, "-m", "benchmarks.suite.memory_probe", work, "--system", system]
    command += ["--shape", shape.name, "--images", str(num_images)]
    command += ["--dtype", str(context.dtype).removeprefix("torch."), "--device", context.device]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command[2:])}` failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout)["bytes"])


def measure_memory(context: Context, recorder: Recorder) -> None:
    """Extra peak of prefill and of the loss, each in a fresh process."""
    if context.device != "cuda" and not can_measure():
        recorder.absent("peak memory", "this system does not tell a process its peak")
        return
    cases = [(SMALL, 1, (OURS, "idefics3")), (SHALLOW, 4, (OURS,))]
    for shape, num_images, names in cases:
        shape = context.shape(shape)
        case = f"{num_images} image" + "s" * (num_images > 1)
        bare = probe(context, "bare", system=OURS, shape=shape, num_images=num_images)
        recorder.add("bare prefill", [bare], case=case, unit="bytes")
        for name in names[: 1 if context.is_quick else None]:
            found = probe(context, "whole", system=name, shape=shape, num_images=num_images)
            recorder.add("prefill", [found], case=case, entry=name, unit="bytes")
            recorder.add("prefill ratio to bare parts", [found / bare], case=case, entry=name)
    ours = probe(context, "loss", system=OURS, shape=SMALL)
    plain = probe(context, "plain loss", system=OURS, shape=SMALL)
    case = "2816 positions"
    recorder.add("loss", [ours], case=case, unit="bytes")
    recorder.add("plain loss", [plain], case=case, unit="bytes")
    recorder.add("loss ratio to plain", [ours / plain], case=case)


def measure_startup(context: Context, recorder: Recorder) -> None:
    """Time of fresh interpreters that import or load, in alternation."""
    uses_wall = isinstance(context.clock, WallClock)
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for index in range(context.rounds(2, quick=1).count):
        for name in turn_order(list(STARTS), index):
            times[name].append(child_seconds(STARTS[name], uses_wall=uses_wall))
    for name, found in times.items():
        recorder.add(name, found, case="fresh process", unit="s")
    found = ratios(times, {"import our model and processor": 1}, {"import Idefics3's": 1})
    recorder.add("import ratio to Idefics3", found, case="fresh process")


def child_seconds(code: str, *, uses_wall: bool = False) -> float:
    """CPU (or wall) seconds of a fresh interpreter that runs `code`."""
    # Not `os.times`, which counts in hundredths of a second.
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if uses_wall:
        return time.perf_counter() - started
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
