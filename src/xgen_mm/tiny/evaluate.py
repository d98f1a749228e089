"""Score a checkpoint on test digits: `python -m xgen_mm.tiny.evaluate --n 1000`."""

import argparse
import json
import sys
from pathlib import Path

from ..modeling.modeling_xgen_mm import XGenMMForConditionalGeneration
from ..processing.processing_xgen_mm import XGenMMProcessor
from .checkpoint import tiny_checkpoint
from .digits import GlyphBank
from .evaluation import evaluate, format_scores, scores_to_json
from .mnist import DEFAULT_DIR, fetch_mnist, read_mnist


def main(arguments: list[str] | None = None) -> None:
    """Print a table of scores and, if asked, write them as JSON."""
    parser = argparse.ArgumentParser(description="Score a small checkpoint on pictures of MNIST test digits.")
    parser.add_argument("--checkpoint", default=None, help="directory of the checkpoint; the packaged one if omitted")
    parser.add_argument("--mnist", type=Path, default=DEFAULT_DIR, help="directory of the four MNIST files")
    parser.add_argument("--n", type=int, default=1000, help="questions per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--json", type=Path, default=None, help="file to write the scores to")
    options = parser.parse_args(arguments)
    if options.n < 1:
        parser.error(f"`--n` is {options.n}; ask at least 1 question per task.")

    checkpoint = options.checkpoint or str(tiny_checkpoint())
    model = XGenMMForConditionalGeneration.from_pretrained(checkpoint, dtype=options.dtype, trust_remote_code=False)
    processor = XGenMMProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    bank = GlyphBank(*read_mnist(fetch_mnist(options.mnist), "test"))
    scores = evaluate(
        model, processor, bank, num_questions=options.n, seed=options.seed, batch_size=options.batch_size
    )
    sys.stdout.write("\n".join(format_scores(scores)) + "\n")
    if options.json is not None:
        content = scores_to_json(scores, checkpoint=Path(checkpoint).name, seed=options.seed)
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
