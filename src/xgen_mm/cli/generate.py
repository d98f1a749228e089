"""Answer a question about pictures.

Pictures come in the order given. Write <image> in the prompt where each one belongs; without any they go first. The
answer streams to stdout.
"""

import argparse
import re
import sys
from typing import Any

from .console import UserError, check_text, print_json, print_text

SUMMARY = "answer a question about pictures"
USAGE = "[options] [--image FILE|URL]... PROMPT"
IMAGE_TOKEN = "<image>"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `generate`."""
    parser.add_argument("prompt", metavar="PROMPT", help=f"question, may hold {IMAGE_TOKEN}; `-` reads it from stdin")
    parser.add_argument(
        "--image",
        metavar="FILE|URL",
        dest="images",
        action="append",
        default=[],
        help="picture, may be repeated; none for a question about text alone",
    )
    add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--raw", action="store_true", help="use the prompt as it is, without the chat template")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive_int, default=256, help="longest answer (default: 256)"
    )
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=non_negative_float,
        default=0.0,
        help="sample with this temperature; 0, the default, takes the likeliest token",
    )
    parser.add_argument(
        "--num-beams", metavar="N", type=positive_int, default=1, help="beam search, without streaming (default: 1)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print text, token counts and seconds as JSON instead of streaming"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--model`, `--device` and `--dtype`."""
    parser.add_argument(
        "--model",
        metavar="DIR|ID",
        help="checkpoint or LoRA adapter: directory or Hub id (default: the small packaged model)",
    )
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto, float32 or bfloat16 (default: auto, that of the weights)",
        metavar="NAME",
    )


def run(args: argparse.Namespace) -> int:
    """Print one answer."""
    prompt = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
    check_text(prompt, name="the prompt")
    check_text(args.system or "", name="`--system`")
    parts = split_prompt(prompt, num_images=len(args.images), is_raw=args.raw)
    if args.raw and args.system:
        raise UserError("`--system` needs the chat template; write the system prompt into the raw prompt instead.")

    from .answering import Sampling, answer, encode_chat, encode_raw
    from .loading import load_model, open_pictures, resolve_checkpoint

    pictures = open_pictures(args.images)
    loaded = load_model(resolve_checkpoint(args.model), device=args.device, dtype=args.dtype)
    if args.raw:
        inputs = encode_raw(loaded, prompt, pictures=pictures)
    else:
        inputs = encode_chat(loaded, build_messages(parts, pictures, system=args.system))
    sampling = Sampling(max_new_tokens=args.max_new_tokens, temperature=args.temperature, num_beams=args.num_beams)
    is_streaming = not args.json and args.num_beams == 1
    result = answer(loaded, inputs, sampling=sampling, write=_write_piece if is_streaming else None)
    if args.json:
        print_json(result.to_dict())
    else:
        print_text("" if is_streaming else result.text)
    return 0


def split_prompt(prompt: str, *, num_images: int, is_raw: bool = False) -> list[str]:
    """Texts between the places of the pictures.

    Args:
        prompt: What the user wrote.
        num_images: Number of pictures.
        is_raw: Whether every `<image>` has to be written out.

    Returns:
        `num_images + 1` texts; picture `i` stands between texts `i` and `i + 1`.

    Raises:
        UserError: If the prompt is empty, or holds another number of `<image>` than there are pictures.

    >>> split_prompt("Compare <image> and <image>.", num_images=2)
    ['Compare ', ' and ', '.']
    >>> split_prompt("What is this?", num_images=1)
    ['', 'What is this?']
    """
    texts = prompt.split(IMAGE_TOKEN)
    if not prompt.strip():
        raise UserError("the prompt is empty; ask something.")
    if len(texts) == 1 and not is_raw:
        return [""] * num_images + [prompt]
    if len(texts) - 1 != num_images:
        raise UserError(
            f"the prompt holds {len(texts) - 1} {IMAGE_TOKEN} but `--image` was given {num_images} times; write one "
            f"{IMAGE_TOKEN} per picture" + ("." if is_raw else ", or none to put the pictures first.")
        )
    return texts


def build_messages(texts: list[str], pictures: list[Any], *, system: str | None) -> list[dict[str, Any]]:
    """Chat messages with one user turn of text and image parts.

    The texts stay parts of their own, so that control tokens in them are neutralised by the chat template.
    """
    content: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        if index:
            content.append({"type": "image", "image": pictures[index - 1]})
        if text:
            content.append({"type": "text", "text": text})
    messages = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return messages


def positive_int(text: str) -> int:
    """Parse an option value that must be at least 1."""
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def non_negative_float(text: str) -> float:
    """Parse an option value that must not be negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return value


def _write_piece(text: str) -> None:
    print_text(text, end="")
