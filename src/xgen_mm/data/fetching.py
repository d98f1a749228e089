"""Fetches pictures that a data set names by URL: several at a time, within limits, into a cache that can be resumed.

Made for thousands to a few millions of pictures. For hundreds of millions use `img2dataset`, which spreads the work
over machines; its output (tar shards) is read as `image_text_pairs`.
"""

import hashlib
import json
import logging
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, ImageInputError
from ..images.bounded_download import DownloadError, DownloadLimits, download, open_client
from ..images.opening import WEB_FORMATS, open_header

logger = logging.getLogger(__name__)

USER_AGENT = "xgen-mm (picture fetcher for training data; honours X-Robots-Tag)"
_MAX_BACKOFF_SECONDS = 30.0
# Not remembered: the next run may have more luck.
_PASSING_REASONS = frozenset({"timed out", "no connection", "server error"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings(DownloadLimits):
    """Limits of fetching; those of one attempt at a picture are `DownloadLimits`.

    Attributes:
        retries: Further attempts after a fault that may pass: silence, a broken connection, status 429 or 5xx.
        backoff_seconds: Pause before the first retry; it doubles. A server's `Retry-After` counts too, up to 30 s.
        workers: Pictures fetched at the same time.
        per_host: Of these, most from one host.
    """

    retries: int = 2
    backoff_seconds: float = 0.5
    workers: int = 16
    per_host: int = 4
    honour_opt_out: bool = True
    user_agent: str = USER_AGENT


class Fetcher:
    """Fetches pictures into a directory, where they are found again next time, and so are lasting failures.

    Args:
        cache: Directory; files are named after the hash of their URL.
        settings: Limits.
        retry_failed: Whether addresses that failed for good before are asked again.
    """

    def __init__(
        self, cache: str | Path, *, settings: FetchSettings | None = None, retry_failed: bool = False
    ) -> None:
        self.cache = Path(cache).expanduser()
        self.settings = settings or FetchSettings()
        self.retry_failed = retry_failed

    def fetch(self, url: str) -> Path:
        """File of one picture.

        Raises:
            DataError: If it cannot be fetched; the reason is one of `DownloadReason`.
        """
        found = self.fetch_many([url])[url]
        if isinstance(found, DataError):
            raise found
        return found

    def fetch_many(
        self, urls: Iterable[str], *, on_done: Callable[[str], None] | None = None
    ) -> dict[str, Path | DataError]:
        """Files of many pictures, or why there is none.

        Args:
            urls: Addresses; each is fetched once.
            on_done: Called with each address when it is settled, for a progress bar.
        """
        unique = list(dict.fromkeys(urls))
        results: dict[str, Path | DataError] = {}
        missing = []
        for url in unique:
            known = self._recall(url)
            if known is None:
                missing.append(url)
            else:
                results[url] = known
                if on_done is not None:
                    on_done(url)
        if missing:
            hosts: dict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(self.settings.per_host))
            turns = {url: hosts[_host_of(url)] for url in missing}
            with (
                open_client(self.settings, connections=self.settings.workers) as client,
                ThreadPoolExecutor(self.settings.workers) as pool,
            ):
                waiting = {pool.submit(self._settle, client, url, turns[url]): url for url in missing}
                for future in as_completed(waiting):
                    results[waiting[future]] = future.result()
                    if on_done is not None:
                        on_done(waiting[future])
        return {url: results[url] for url in unique}

    def path_of(self, url: str) -> Path:
        """Where the picture of an address is, or would be."""
        name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        return self.cache / name[:2] / name

    def _recall(self, url: str) -> Path | DataError | None:
        path = self.path_of(url)
        if path.is_file():
            return path
        note = path.with_suffix(".json")
        if self.retry_failed or not note.is_file():
            return None
        try:
            failure = json.loads(note.read_text(encoding="utf-8"))
            return DataError(str(failure["reason"]), str(failure["message"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _settle(self, client: Any, url: str, turn: threading.Semaphore) -> Path | DataError:
        path = self.path_of(url)
        try:
            with turn:
                content = self._fetch_patiently(client, url)
        except DataError as error:
            if error.reason not in _PASSING_REASONS:
                note = {"url": url, "reason": error.reason, "message": str(error)}
                _write(path.with_suffix(".json"), json.dumps(note).encode())
            return error
        _write(path, content)
        path.with_suffix(".json").unlink(missing_ok=True)
        return path

    def _fetch_patiently(self, client: Any, url: str) -> bytes:
        attempt = 0
        while True:
            try:
                content = download(url, limits=self.settings, client=client)
            except DownloadError as fault:
                if not fault.may_pass or attempt >= self.settings.retries:
                    raise DataError(fault.reason, str(fault)) from fault
                pause = max(self.settings.backoff_seconds * 2**attempt * random.uniform(1, 1.5), fault.wait_seconds)
                time.sleep(min(pause, _MAX_BACKOFF_SECONDS))
                attempt += 1
            else:
                check_picture(content, name=url)
                return content


def check_picture(content: bytes, *, name: str) -> None:
    """Tell from the bytes themselves, not from what a server says, whether they begin like a picture.

    Raises:
        DataError: If not.
    """
    try:
        open_header(content, name=f"`{name}`", formats=WEB_FORMATS).close()
    except ImageInputError as error:
        raise DataError("no picture", str(error)) from error


def _host_of(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2].lower()


def _write(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
