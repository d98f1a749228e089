"""A picture of the training curve."""

import json
from pathlib import Path

from ..errors import XGenMMError


def draw_curve(record: Path, picture: Path) -> None:
    """Draw `training_curve.json` as a PNG: losses and patch accuracy on the left, development figures on the right.

    Args:
        record: File written during training.
        picture: File to write.

    Raises:
        XGenMMError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise XGenMMError("Drawing the curve needs matplotlib: `pip install matplotlib`.") from error
    rows = json.loads(record.read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("answer_loss", "patch_accuracy", "token_accuracy"):
        _plot(left, rows, name, label=name.replace("_", " "))
    left.set_ylim(0, 1.5)
    for name in sorted({key for row in rows for key in row if key.startswith("dev/")}):
        _plot(right, rows, name, label=name.removeprefix("dev/").replace("_", " "), marker=".")
    right.set_ylim(0, 1.02)
    right.set_title("held-out training digits, share of right answers", fontsize=9)
    left.set_title("training batches", fontsize=9)
    for axes in (left, right):
        axes.set_xlabel("minutes")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(picture, dpi=110)


def _plot(axes: object, rows: list[dict[str, float]], name: str, **style: object) -> None:
    points = [(row["minutes"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
