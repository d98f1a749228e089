"""Features of a frozen vision tower, computed once and read back in every epoch.

A picture's features are stored under the hash of its file, or of its pixels where it comes decoded, so that reading
them back needs no decoding. A directory belongs to one tower and one way of cutting tiles; it says so in
`fingerprint.json`, and is refused for others.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..errors import ImageInputError, XGenMMError
from ..output_directory import DirectoryLock
from .collators import Batch
from .encoding import picture_size
from .records import Picture

FINGERPRINT_FILE = "fingerprint.json"
SHARD_PATTERN = "features-{number:05d}.safetensors"
# Settings that change nothing about the pixels of the tiles.
_UNRELATED_SETTINGS = {"processor_class", "auto_map", "image_processor_type", "_valid_processor_keys"}


class FeatureStoreError(XGenMMError):
    """Stored features do not belong to the model or the pictures at hand."""


class FeatureWriter:
    """Computes features and writes them to a directory. Pictures that are there already are not computed again.

    A tile of the released models takes 729 x 1152 numbers: 1.7 MB in bfloat16, so 8.4 MB for a picture of five tiles.

    Args:
        directory: Where to write; it may hold features of an earlier run.
        model: Its vision tower computes the features, in the precision and on the device that it is in. Under
            autocast the tower of a training step would compute in another one: cast the model instead.
        processor: Its image processor cuts the tiles.
        pictures_per_shard: Pictures per file.

    Raises:
        FeatureStoreError: If the directory belongs to another tower or other settings, or holds a damaged file.
        DirectoryInUseError: If another writer has the directory.
        ValueError: If the model's resampler needs more than features, as that of v1 does.
    """

    def __init__(self, directory: str | Path, *, model: Any, processor: Any, pictures_per_shard: int = 256) -> None:
        if hasattr(model.config, "max_prompt_tokens"):
            raise ValueError("The resampler of a v1 model reads the prompt too; features alone are of no use to it.")
        self.directory = Path(directory)
        self.model = model
        self.processor = processor
        self.pictures_per_shard = pictures_per_shard
        self.directory.mkdir(parents=True, exist_ok=True)
        # Held until nobody has this writer any more.
        self._lock = DirectoryLock(self.directory).acquire()
        fingerprint = fingerprint_of(model, processor)
        _write_fingerprint(fingerprint, self.directory)
        check_fingerprint(_read_fingerprint(self.directory), fingerprint, directory=self.directory)
        self._known = set(_index(self.directory))
        self._pending: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def add(self, pictures: Iterable[Picture]) -> int:
        """Compute and keep the features of pictures; complete files are written on the way.

        Returns:
            How many were computed; the others were there.

        Raises:
            ImageInputError: If a picture cannot be read. Those before it are kept.
        """
        computed = 0
        for picture in pictures:
            key = content_key(picture)
            if key in self._known:
                continue
            inputs = self.processor.image_processor([picture.load()], return_tensors="pt")
            tower = self.model.get_input_embeddings().weight.device
            sizes = inputs.get("image_sizes")
            outputs = self.model.get_image_features(inputs["pixel_values"].to(tower), sizes, return_dict=True)
            self._pending[key] = outputs.last_hidden_state.cpu().contiguous()
            self._known.add(key)
            computed += 1
            if len(self._pending) >= self.pictures_per_shard:
                self.flush()
        return computed

    def flush(self) -> None:
        """Write what has been computed; call it at the end.

        Raises:
            FeatureStoreError: If the file cannot be written. What was computed is kept for another call.
        """
        if not self._pending:
            return
        path, unfinished = _reserve_shard(self.directory)
        # Under another name until it is complete, so that an interrupted run leaves no broken file.
        try:
            save_file(self._pending, unfinished)
            unfinished.rename(path)
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            raise FeatureStoreError(
                f"`{path}` cannot be written ({error}). Make room on the disk and call `flush` again."
            ) from error
        self._pending = {}


class FeatureReader:
    """Reads features back, in the place of `TileReader` in a collator. It can be sent to worker processes.

    Args:
        directory: What `FeatureWriter` wrote.
        model: The model that is trained: its tower must be the one that computed the features.
        processor: Its processor.

    Raises:
        FeatureStoreError: If the features belong to another tower or other settings, or a file is damaged.
        FileNotFoundError: If there are none.
    """

    def __init__(self, directory: str | Path, *, model: Any, processor: Any) -> None:
        self.directory = Path(directory)
        found = _read_fingerprint(self.directory)
        check_fingerprint(found, fingerprint_of(model, processor), directory=self.directory)
        self.has_sizes = bool(found["has_sizes"])
        self._files = _index(self.directory)
        self._open: dict[Path, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay with their process."""
        return {**self.__dict__, "_open": {}}

    def __call__(self, pictures: Sequence[Picture]) -> Batch:
        """`mm_encoder_outputs` with the tower's features, shape (tiles, cells, width), and `image_sizes`.

        Raises:
            FeatureStoreError: If a picture's features are not there.
            ImageInputError: If a picture's file cannot be read.
        """
        keys = [content_key(picture) for picture in pictures]
        missing = [index for index, key in enumerate(keys) if key not in self._files]
        if missing:
            raise FeatureStoreError(
                f"`{self.directory}` lacks the features of {len(missing)} of {len(keys)} pictures (first key: "
                f"{keys[missing[0]][:12]}). Add them with `FeatureWriter`, or decode pictures instead."
            )
        features = torch.cat([self._read(key) for key in keys])
        batch: Batch = {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(last_hidden_state=features)}}
        if self.has_sizes:
            batch["image_sizes"] = torch.tensor([picture_size(picture) for picture in pictures])
        return batch

    def _read(self, key: str) -> torch.Tensor:
        path = self._files[key]
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt")
            tensor: torch.Tensor = self._open[path].get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
        return tensor


def content_key(picture: Picture) -> str:
    """Hash of a picture's file; of mode, size and pixels if it comes decoded or from a URL.

    Raises:
        ImageInputError: If it cannot be read.
    """
    source = picture.source
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, Path) or (isinstance(source, str) and os.path.isfile(source)):
        try:
            return hashlib.sha256(Path(source).read_bytes()).hexdigest()
        except OSError as error:
            raise ImageInputError(f"`{source}` cannot be read: {error}") from error
    image = picture.load()
    digest = hashlib.sha256(f"{image.mode} {image.height} {image.width}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def fingerprint_of(model: Any, processor: Any) -> dict[str, Any]:
    """What stored features depend on besides the picture.

    Args:
        model: Its vision tower is hashed, weights and precision; a second or two for the released ones.
        processor: Its image processor's settings are taken over.

    Returns:
        A dictionary that JSON can hold.
    """
    tower = getattr(model, "model", model).vision_tower
    digest = hashlib.sha256(type(tower).__name__.encode())
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    settings = {
        name: value
        for name, value in processor.image_processor.to_dict().items()
        if name not in _UNRELATED_SETTINGS and value is not None
    }
    is_tiled = settings.get("image_aspect_ratio", "anyres") == "anyres"
    fingerprint = {"tower": digest.hexdigest(), "image_processor": settings, "has_sizes": is_tiled}
    result: dict[str, Any] = json.loads(json.dumps(fingerprint, default=str))
    return result


def check_fingerprint(found: dict[str, Any], expected: dict[str, Any], *, directory: Path) -> None:
    """Compare what features were computed with to what they are needed for.

    Raises:
        FeatureStoreError: If they differ.
    """
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        raise FeatureStoreError(
            f"The features in `{directory}` were computed with another {' and another '.join(differing)}. Compute "
            "them anew in an empty directory; a tower that is trained has no features to store."
        )


def _write_fingerprint(fingerprint: dict[str, Any], directory: Path) -> None:
    """Write the file if there is none; it appears as a whole, and the first of several writers wins."""
    path = directory / FINGERPRINT_FILE
    if path.exists():
        return
    unfinished = directory / f"{FINGERPRINT_FILE}.{uuid.uuid4().hex}.unfinished"
    unfinished.write_text(json.dumps(fingerprint, indent=1), encoding="utf-8")
    try:
        os.link(unfinished, path)
    except FileExistsError:
        # Another writer was faster; its fingerprint is compared with ours.
        pass
    except OSError:
        # A file system without links, where two writers at the very same moment go unnoticed.
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read_fingerprint(directory: Path) -> dict[str, Any]:
    path = directory / FINGERPRINT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` is missing; write features with `FeatureWriter` first.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        found = error
    if not isinstance(found, dict) or "has_sizes" not in found:
        raise FeatureStoreError(
            f"`{path}` is damaged: it does not say which tower the features belong to. Compute them anew in an empty "
            "directory."
        )
    return found


def _reserve_shard(directory: Path) -> tuple[Path, Path]:
    """The next free name, and the unfinished file that keeps it from all other writers."""
    number = len(list(directory.glob("features-*.safetensors")))
    while True:
        path = directory / SHARD_PATTERN.format(number=number)
        unfinished = path.with_suffix(".unfinished")
        number += 1
        try:
            unfinished.touch(exist_ok=False)
        except FileExistsError:
            # Another writer's, or left behind by one that was killed.
            continue
        # Looked for only now: whoever had this number before has finished its file or given it up.
        if not path.exists():
            return path, unfinished
        unfinished.unlink()


def _damaged(path: Path, error: Exception) -> FeatureStoreError:
    return FeatureStoreError(
        f"`{path}` is no whole file of features ({error}). Delete it and compute the features of its pictures again "
        "with `FeatureWriter`."
    )


def _index(directory: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(directory.glob("features-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as shard:
                files |= dict.fromkeys(shard.keys(), path)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
    return files
