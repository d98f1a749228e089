"""Have a conversation about pictures.

A model answers scripted questions about handwritten numbers that arrive in different turns. The conversation is
printed and saved as a picture and as JSON. With the small packaged model it takes seconds and needs no download.
"""

import argparse
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import PROGRAM, UserError, print_text
from .demo_script import SCRIPT, Step, is_right, load_picture
from .generate import add_model_arguments

if TYPE_CHECKING:
    from .answering import Answer
    from .loading import LoadedModel

SUMMARY = "a short conversation about pictures, saved as a picture"
USAGE = "[options]"
DEFAULT_OUTPUT = "demo-output"
MAX_NEW_TOKENS = 48
MNIST_CREDIT = "Digits: MNIST test set (Y. LeCun, C. Cortes, C. Burges), CC BY-SA 3.0."


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """A question of the script and what the model made of it; `first_image` counts pictures from 1."""

    step: Step
    answer: "Answer"
    first_image: int

    @property
    def is_correct(self) -> bool:
        """Whether the answer is the expected one."""
        return is_right(self.answer.text, expected=self.step.expected)

    def captioned_numbers(self) -> list[tuple[str, int]]:
        """Caption and number of each picture of this turn."""
        return [(f"Image {self.first_image + i}", number) for i, number in enumerate(self.step.new_numbers)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `demo`."""
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path(DEFAULT_OUTPUT),
        help=f"where the files go (default: {DEFAULT_OUTPUT})",
    )
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Hold the conversation and write its files."""
    output: Path = args.output
    try:
        (output / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to `{output}`: {error.strerror}; choose another `--output`.") from error

    from .loading import load_model, resolve_checkpoint

    loaded = load_model(resolve_checkpoint(args.model), device=args.device, dtype=args.dtype)
    name = describe_model(loaded, given_name=args.model)
    print_text(f"Answers by {name}.\n")
    exchanges, messages = converse(loaded)
    num_correct = sum(exchange.is_correct for exchange in exchanges)
    seconds = sum(exchange.answer.seconds for exchange in exchanges)
    verdict = f"{num_correct} of {len(exchanges)} answers correct"
    print_text(f"\n{verdict}, {seconds:.1f} seconds on {loaded.model.device}.\n")

    write_files(output, exchanges, messages=messages, model_name=name, verdict=verdict)
    print_text(f"Picture   {output / 'conversation.png'}")
    print_text(f"JSON      {output / 'conversation.json'}")
    print_text(f"Images    {output / 'images'}")
    print_text(f"\nNow ask a question of your own:\n  {example_command(output, model=args.model)}")
    return 0


def example_command(output: Path, *, model: str | None) -> str:
    """Command line that asks the first question of the script about the first picture."""
    words = [PROGRAM, "generate", *([] if model is None else ["--model", model])]
    words += ["--image", str(output / "images" / f"{SCRIPT[0].new_numbers[0]}.png"), SCRIPT[0].question]
    return shlex.join(words)


def converse(loaded: "LoadedModel") -> tuple[list[Exchange], list[dict[str, Any]]]:
    """Play the script, printing while the model answers.

    Args:
        loaded: Model and processor.

    Returns:
        The exchanges, and the whole conversation as chat messages with PIL images.
    """
    from .answering import Sampling, answer, encode_chat

    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS)
    messages: list[dict[str, Any]] = []
    exchanges: list[Exchange] = []
    num_images = 0
    for step in SCRIPT:
        content: list[dict[str, Any]] = []
        for index, number in enumerate(step.new_numbers, start=num_images + 1):
            content.append({"type": "text", "text": f"Image {index}: "})
            content.append({"type": "image", "image": load_picture(number)})
            print_text(f"  you    [Image {index}: {number}.png]")
        content.append({"type": "text", "text": step.question})
        print_text(f"  you    {step.question}\n  model  ", end="")
        messages.append({"role": "user", "content": content})

        result = answer(loaded, encode_chat(loaded, messages), sampling=sampling, write=_write_piece)
        exchange = Exchange(step=step, answer=result, first_image=num_images + 1)
        print_text("" if exchange.is_correct else f"   (wrong, expected {step.expected})")
        exchanges.append(exchange)
        messages.append({"role": "assistant", "content": [{"type": "text", "text": result.text}]})
        num_images += len(step.new_numbers)
    return exchanges, messages


def describe_model(loaded: "LoadedModel", *, given_name: str | None) -> str:
    """The model in a few words: its name, and the number of its parameters."""
    from .. import __version__

    name = f"the small model packaged with xgen-mm {__version__}" if given_name is None else given_name
    return f"{name}, {loaded.model.num_parameters() / 1e6:,.1f} million parameters"


def write_files(
    output: Path, exchanges: list[Exchange], *, messages: list[dict[str, Any]], model_name: str, verdict: str
) -> None:
    """Write `conversation.png`, `conversation.json` and the pictures in `images`.

    Args:
        output: Directory that holds a directory `images`.
        exchanges: Questions and answers.
        messages: The conversation as chat messages.
        model_name: What produced the answers.
        verdict: How many of them are right, in words.
    """
    from .conversation_picture import Turn, draw_conversation

    turns = []
    # Names stand above the first two bubbles only; after that the sides tell who speaks.
    names = iter(["You", "xGen-MM"])
    for exchange in exchanges:
        pictures = tuple((caption, load_picture(number)) for caption, number in exchange.captioned_numbers())
        remark = "" if exchange.is_correct else f"expected {exchange.step.expected}"
        turns.append(Turn(is_user=True, speaker=next(names, ""), text=exchange.step.question, pictures=pictures))
        turns.append(
            Turn(
                is_user=False,
                speaker=next(names, ""),
                text=exchange.answer.text or "(no answer)",
                is_correct=exchange.is_correct,
                remark=remark,
            )
        )
        for _, number in exchange.captioned_numbers():
            load_picture(number).save(output / "images" / f"{number}.png")
    drawing = draw_conversation(
        turns,
        title="A conversation about pictures",
        subtitle="Handwritten numbers that arrive in different turns. Every answer is the model's own.",
        footer=[f"Answers by {model_name}.", f"{verdict}.", MNIST_CREDIT],
    )
    drawing.save(output / "conversation.png", optimize=True)
    record = json.dumps(_to_record(exchanges, messages=messages, model_name=model_name), indent=2, ensure_ascii=False)
    (output / "conversation.json").write_text(record + "\n", encoding="utf-8")


def _to_record(exchanges: list[Exchange], *, messages: list[dict[str, Any]], model_name: str) -> dict[str, Any]:
    """The conversation as plain values; picture paths are relative to the file."""
    paths = iter(f"images/{number}.png" for exchange in exchanges for number in exchange.step.new_numbers)
    plain_messages = [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "path": next(paths)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]
    answers = [
        {
            "question": exchange.step.question,
            "expected": exchange.step.expected,
            "is_correct": exchange.is_correct,
            **exchange.answer.to_dict(),
        }
        for exchange in exchanges
    ]
    return {
        "model": model_name,
        "num_correct": sum(exchange.is_correct for exchange in exchanges),
        "num_questions": len(exchanges),
        "messages": plain_messages,
        "answers": answers,
    }


def _write_piece(text: str) -> None:
    print_text(text, end="")
