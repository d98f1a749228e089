"""Which files of a directory belong on the Hub: a list of names that do, and a reason for everything else."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConversionError, ImageInputError, PushError, XGenMMError
from ..images.opening import WEB_FORMATS, open_header
from ..weight_files import INDEX_NAME, SINGLE_NAME, check_weight_files, read_raw_header, weight_files
from .links import refuse_links
from .push_scan import scan_file

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODEL_CONFIG = "config.json"
PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")
PLAIN_NAMES = frozenset(
    {
        MODEL_CONFIG,
        "generation_config.json",
        *PROCESSOR_CONFIGS,
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "chat_template.json",
        ADAPTER_CONFIG,
        ADAPTER_WEIGHTS,
        "README.md",
        "LICENSE",
        "LICENSE.md",
        "LICENSE.txt",
        "NOTICE",
    }
)
GENERATED_MARK = "# Generated from xgen_mm/"
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg")

_WEIGHTS = re.compile(r"model(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?\.safetensors")
_INDEX = re.compile(r"model\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
_TEMPLATE = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")
_SHOWN = re.compile(r"""!\[[^\]]*\]\(\s*<?([^)\s>]+)|<img\b[^>]*?\bsrc\s*=\s*["']([^"']+)""", re.IGNORECASE)
# The first that fits says why a file stays here.
_REASONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"(?:.*/)?checkpoint-\d+/.*", "checkpoint of a training run; push it by itself"),
        (r"(?:.*/)?\..*", "hidden"),
        (r"original/.*", "for `xgen-mm convert --reverse`; not part of the model"),
        (
            r".*\.(?:pem|key|p12|pfx|jks|env|netrc)|(?:.*/)?(?:id_(?:rsa|dsa|ecdsa|ed25519)|credentials|secrets?)\b.*",
            "secret",
        ),
        (
            r"(?:.*/)?(?:optimizer|scheduler|scaler|rng_state|training_args|random_states)\w*\.(?:bin|pt|pth|pkl)",
            "state of the training run, a pickle",
        ),
        (r"(?:.*/)?(?:trainer_state|all_results|train_results|eval_results)\.json", "state of the training run"),
        (
            r"(?:global_step\d+|pytorch_model_fsdp|optimizer)\w*/.*|(?:.*/)?(?:latest|zero_to_fp32\.py)",
            "state of the training run",
        ),
        (r".*\.(?:bin|pt|pth|pkl|pickle|ckpt|npy|npz|joblib)", "pickle or raw data; weights go as safetensors"),
        (r".*\.log|(?:.*/)?(?:logs|runs|wandb|events\.out).*", "log"),
        (r".*\.py", "code that this package did not write"),
        (r".*\.safetensors", "weights that no index names"),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadPlan:
    """What would be uploaded.

    Attributes:
        kind: `model`, `processor` or `adapter`.
        files: Size in bytes by name, in the order of uploading: weights first.
        left_out: Reason by name of a file, or of a folder, ending in a slash.
    """

    kind: str
    files: dict[str, int]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> list[str]:
        """Names of the weight files among the files."""
        return [name for name in self.files if name.endswith(".safetensors")]


def plan_upload(directory: Path, *, secrets: tuple[str, ...] = ()) -> UploadPlan:
    """Choose and check the files of a directory; nothing is sent.

    Args:
        directory: A checkpoint, a processor or a LoRA adapter.
        secrets: Texts that must not be in any file, such as the token in use.

    Raises:
        PushError: If it is none of these, weights are damaged, or a file holds a secret or a local path.
    """
    if not directory.is_dir():
        raise PushError(f"`{directory}` is no directory; give the directory of a checkpoint, processor or adapter.")
    kind = _kind(directory)
    try:
        chosen = _chosen(directory)
        refuse_links(directory, chosen)
        _check_weights(directory, chosen, kind=kind)
    except ConversionError as error:
        raise PushError(f"the weights cannot be pushed: {error}") from error
    except PushError:
        raise
    except XGenMMError as error:
        raise PushError(f"{error} Nothing was sent.") from error
    problems = [
        *_missing_modules(directory, chosen),
        *_bad_pictures(directory, chosen),
        *(problem for name in chosen for problem in scan_file(directory, name, secrets=secrets)),
    ]
    if problems:
        raise PushError(f"`{directory}` cannot be pushed, nothing was sent. {' '.join(problems)}")
    weights = [name for name in chosen if name.endswith(".safetensors")]
    ordered = [*weights, *(name for name in chosen if name not in weights)]
    return UploadPlan(
        kind=kind,
        files={name: (directory / name).stat().st_size for name in ordered},
        left_out=_left_out(directory, set(chosen)),
    )


def is_replaced_weight_file(name: str, *, plan: UploadPlan) -> bool:
    """Whether a file on the Hub is a weight file of the model that this push replaces, under a name no longer used.

    Left in place, it would be loaded instead of the new weights or beside them.
    """
    if plan.kind != "model" or name in plan.files:
        return False
    ours = {_variant(weight) for weight in plan.weights}
    return (bool(_WEIGHTS.fullmatch(name)) or bool(_INDEX.fullmatch(name))) and _variant(name) in ours


def _kind(directory: Path) -> str:
    if (directory / ADAPTER_CONFIG).is_file():
        return "adapter"
    if (directory / MODEL_CONFIG).is_file():
        return "model"
    if any((directory / name).is_file() for name in PROCESSOR_CONFIGS):
        return "processor"
    raise PushError(
        f"`{directory}` holds no `{MODEL_CONFIG}`, `{ADAPTER_CONFIG}` or processor; give the directory that "
        "`save_pretrained` or `xgen-mm export` wrote."
    )


def _variant(name: str) -> str | None:
    match = _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name)
    return None if match is None else match["variant"]


def _chosen(directory: Path) -> list[str]:
    """Names of the files to upload, sorted."""
    names = {path.name for path in directory.iterdir() if path.is_file()}
    chosen = {name for name in names if name in PLAIN_NAMES or _INDEX.fullmatch(name)}
    chosen |= {name for name in names if name.endswith(".py") and _is_generated(directory / name)}
    for variant in {_variant(name) for name in names if _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name)}:
        chosen |= set(weight_files(directory, variant=variant)) if _has_weights(names, variant) else set()
    templates = directory / "additional_chat_templates"
    found = [f"{templates.name}/{path.name}" for path in templates.glob("*.jinja")]
    chosen |= {name for name in found if _TEMPLATE.fullmatch(name)}
    return sorted(chosen | set(_shown_pictures(directory)))


def _has_weights(names: set[str], variant: str | None) -> bool:
    """Whether there is a file to start from: a single one or an index; stray shards are none."""
    single = SINGLE_NAME if variant is None else f"model.{variant}.safetensors"
    index = INDEX_NAME if variant is None else f"{SINGLE_NAME}.index.{variant}.json"
    if single in names and index in names:
        raise PushError(
            f"`{single}` and `{index}` are both there, from two saves; loaders do not agree on which one counts. "
            "Remove the older one."
        )
    return single in names or index in names


def _is_generated(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as stream:
        return stream.readline().startswith(GENERATED_MARK)


def _shown_pictures(directory: Path) -> list[str]:
    """Pictures of the directory that its card shows."""
    card = directory / "README.md"
    if not card.is_file():
        return []
    references = {one or other for one, other in _SHOWN.findall(card.read_text(encoding="utf-8", errors="replace"))}
    shown = []
    for reference in references:
        path = PurePosixPath(reference.partition("#")[0].partition("?")[0])
        is_inside = not path.is_absolute() and ".." not in path.parts and ":" not in str(path)
        is_hidden = any(part.startswith(".") for part in path.parts)
        if is_inside and not is_hidden and path.suffix.lower() in PICTURES and (directory / path).is_file():
            shown.append(str(path))
    return shown


def _bad_pictures(directory: Path, chosen: list[str]) -> list[str]:
    """Files that the card shows as pictures and that are none, whatever their names say."""
    problems = []
    for name in chosen:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in PICTURES:
            continue
        try:
            if suffix == ".svg":
                is_picture = "<svg" in (directory / name).read_text(encoding="utf-8")
            else:
                open_header(directory / name, name=name, formats=WEB_FORMATS).close()
                is_picture = True
        except (ImageInputError, OSError, UnicodeDecodeError):
            is_picture = False
        if not is_picture:
            problems.append(f"README.md shows {name}, which is no image; replace it or remove it from the card.")
    return problems


def _check_weights(directory: Path, chosen: list[str], *, kind: str) -> None:
    weights = [name for name in chosen if name.endswith(".safetensors")]
    if kind == "adapter" and ADAPTER_WEIGHTS not in weights:
        raise PushError(f"`{directory}` lacks `{ADAPTER_WEIGHTS}`; save the adapter as safetensors.")
    if kind == "model" and not weights:
        raise PushError(
            f"`{directory}` has a `{MODEL_CONFIG}` but no weights in safetensors form; save the model with "
            "`save_pretrained`, or give a directory with the processor alone."
        )
    for variant in {_variant(name) for name in weights if _WEIGHTS.fullmatch(name)}:
        check_weight_files(directory, variant=variant)
    for name in weights:
        read_raw_header(directory / name)


def _missing_modules(directory: Path, chosen: list[str]) -> list[str]:
    """Modules that a configuration points to and that would not be uploaded; a loader would fail on them."""
    problems = []
    for name in (MODEL_CONFIG, *PROCESSOR_CONFIGS[:3]):
        if name not in chosen:
            continue
        for target in _auto_map_targets(directory / name):
            module = f"{target.rpartition('--')[2].partition('.')[0]}.py"
            if "--" not in target and module not in chosen:
                problems.append(
                    f"{name}: `auto_map` names `{module}`, which is missing or not written by this package; "
                    "save the checkpoint again or remove the entry."
                )
    return sorted(set(problems))


def _auto_map_targets(path: Path) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return []
    return _targets(content)


def _targets(content: Any) -> list[str]:
    if not isinstance(content, dict):
        return []
    found = []
    for key, value in content.items():
        if key == "auto_map" and isinstance(value, dict):
            entries = [entry for item in value.values() for entry in (item if isinstance(item, list) else [item])]
            found += [entry for entry in entries if isinstance(entry, str)]
        else:
            found += _targets(value)
    return found


def _left_out(directory: Path, chosen: set[str]) -> dict[str, str]:
    """Reason by name; a folder from which nothing goes is one entry."""
    reasons: dict[str, str] = {}
    for path in sorted(directory.iterdir()):
        inside = sorted(item for item in path.rglob("*") if item.is_file()) if _is_folder(path) else [path]
        names = [item.relative_to(directory).as_posix() for item in inside]
        rest = [name for name in names if name not in chosen]
        if _is_folder(path) and rest and len(rest) == len(names):
            found = {_reason(name) for name in rest}
            reasons[f"{path.name}/"] = _reason(rest[0]) if len(found) == 1 else "not part of the checkpoint"
        else:
            reasons |= {name: _reason(name) for name in rest}
    return reasons


def _is_folder(path: Path) -> bool:
    # What lies behind a link is nobody's business here.
    return path.is_dir() and not path.is_symlink()


def _reason(name: str) -> str:
    for pattern, reason in _REASONS:
        if pattern.fullmatch(name):
            return reason
    return "not part of the checkpoint"
