"""`import xgen_mm` is cheap: it brings in neither the training libraries nor anything that takes time."""

import subprocess
import sys

ROUNDS = 3
ALLOWED_SECONDS = 0.3
HEAVY_MODULES = ("datasets", "peft", "torch", "trl")

# Processor time, not the clock: a busy machine stretches the latter several times over.
TIME_IMPORT = (
    "import time, transformers; start = time.process_time(); import xgen_mm; print(time.process_time() - start)"
)


def run_python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_of_package_leaves_heavy_libraries_unloaded() -> None:
    loaded = run_python(f"import sys, xgen_mm; print(sorted(sys.modules.keys() & set({HEAVY_MODULES})))")
    assert loaded == "[]"


def test_import_of_package_after_host_leaves_heavy_libraries_unloaded() -> None:
    loaded = run_python(f"import sys, transformers, xgen_mm; print(sorted(sys.modules.keys() & set({HEAVY_MODULES})))")
    assert loaded == "[]"


def test_import_of_package_takes_little_longer_than_host() -> None:
    # Timed in one process, after the host. The best of several: what else happens on the machine only ever adds time.
    seconds = [float(run_python(TIME_IMPORT)) for _ in range(ROUNDS)]
    assert min(seconds) < ALLOWED_SECONDS, f"`import xgen_mm` takes {min(seconds):.2f} s more than the host alone"
