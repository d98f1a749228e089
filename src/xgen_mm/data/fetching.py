"""Fetches pictures that a data set names by URL: several at a time, within limits, into a cache that can be resumed.

Made for thousands to a few millions of pictures. For hundreds of millions use `img2dataset`, which spreads the work
over machines; its output (tar shards) is read as `image_text_pairs`.
"""

import hashlib
import ipaddress
import json
import logging
import os
import random
import socket
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from ..errors import DataError
from ..processing.image_loading import DOWNLOAD_DEADLINE_SECONDS, DOWNLOAD_TIMEOUT_SECONDS, MAX_DOWNLOAD_BYTES
from .formats.row import cause

logger = logging.getLogger(__name__)

FetchReason: TypeAlias = Literal[
    "bad address",
    "private address",
    "not found",
    "too many redirects",
    "too large",
    "timed out",
    "no picture",
    "opted out",
    "no connection",
    "server error",
]

USER_AGENT = "xgen-mm (picture fetcher for training data; honours X-Robots-Tag)"
# Only decoders of common web formats look at fetched bytes.
PICTURE_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_RETRIED_REASONS = frozenset({"timed out", "no connection", "server error"})
_MAX_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """Limits of fetching.

    Attributes:
        timeout_seconds: Longest silence of a server.
        deadline_seconds: Longest time for one picture, redirects included, retries not.
        max_bytes: Largest picture, after decompression in transit.
        max_redirects: Most redirects; each target is checked like the first address.
        retries: Further attempts after a fault that may pass: silence, a broken connection, status 429 or 5xx.
        backoff_seconds: Pause before the first retry; it doubles. A server's `Retry-After` counts too, up to 30 s.
        workers: Pictures fetched at the same time.
        per_host: Of these, most from one host.
        allow_private: Whether addresses of private networks and of this machine may be asked. Off, because a data set
            could otherwise reach services that only this machine sees.
        honour_opt_out: Whether pictures whose `X-Robots-Tag` says `noai`, `noimageai`, `noindex` or `noimageindex` are
            refused.
        user_agent: What servers are told.
    """

    timeout_seconds: float = DOWNLOAD_TIMEOUT_SECONDS
    deadline_seconds: float = DOWNLOAD_DEADLINE_SECONDS
    max_bytes: int = MAX_DOWNLOAD_BYTES
    max_redirects: int = 5
    retries: int = 2
    backoff_seconds: float = 0.5
    workers: int = 16
    per_host: int = 4
    allow_private: bool = False
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
            DataError: If it cannot be fetched; the reason is one of `FetchReason`.
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
            with _open_client(self.settings) as client, ThreadPoolExecutor(self.settings.workers) as pool:
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
            if error.reason not in _RETRIED_REASONS:
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
                return _fetch_once(client, url, self.settings)
            except _PassingFault as fault:
                if attempt >= self.settings.retries:
                    raise DataError(fault.reason, str(fault)) from fault
                pause = max(self.settings.backoff_seconds * 2**attempt * random.uniform(1, 1.5), fault.wait_seconds)
                time.sleep(min(pause, _MAX_BACKOFF_SECONDS))
                attempt += 1


class _PassingFault(Exception):
    """A fault that may be gone at the next attempt."""

    def __init__(self, reason: FetchReason, message: str, *, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.wait_seconds = wait_seconds


def _open_client(settings: FetchSettings) -> Any:
    # The host's own HTTP client, so that proxies and certificates behave as for the Hub.
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    limits = httpx.Limits(max_connections=settings.workers, max_keepalive_connections=settings.workers)
    headers = {"User-Agent": settings.user_agent, "Accept": "image/*"}
    return httpx.Client(timeout=settings.timeout_seconds, follow_redirects=False, limits=limits, headers=headers)


def _fetch_once(client: Any, url: str, settings: FetchSettings) -> bytes:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    deadline = time.monotonic() + settings.deadline_seconds
    try:
        address = httpx.URL(url)
        for _ in range(settings.max_redirects + 1):
            request = _checked_request(client, address, settings, origin=url)
            response = client.send(request, stream=True)
            try:
                if response.status_code not in _REDIRECTS or "location" not in response.headers:
                    return _read_picture(response, url, settings, deadline)
                address = address.join(response.headers["location"])
            finally:
                response.close()
    except httpx.TimeoutException as error:
        raise _PassingFault("timed out", f"`{url}` did not answer in {settings.timeout_seconds:g} s.") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise DataError("bad address", f"`{url}` is no address that can be fetched ({error}).") from error
    except httpx.DecodingError as error:
        raise DataError("no picture", f"`{url}` sends what cannot be decompressed ({error}).") from error
    except (httpx.HTTPError, OSError) as error:
        raise _PassingFault("no connection", f"`{url}`: {error or type(error).__name__}.") from error
    raise DataError("too many redirects", f"`{url}` redirects more than {settings.max_redirects} times.")


def _checked_request(client: Any, address: Any, settings: FetchSettings, *, origin: str) -> Any:
    """A request that goes to an address that was checked, whatever the name resolves to a moment later."""
    if address.scheme not in ("http", "https") or not address.host:
        raise DataError("bad address", f"`{origin}` leads to `{address}`, which is no http(s) address.")
    if settings.allow_private or _uses_proxy(address):
        # A proxy resolves names itself; only what needs no resolving can be checked here.
        if not settings.allow_private and (address.host == "localhost" or not _is_public_literal(address.host)):
            raise DataError(
                "private address", f"`{origin}` leads to `{address}`, on a private network or this machine."
            )
        return client.build_request("GET", address)
    try:
        found = socket.getaddrinfo(address.host, address.port or 0, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _PassingFault("no connection", f"`{origin}`: `{address.host}` cannot be resolved ({error}).") from error
    numbers = [str(entry[4][0]).partition("%")[0] for entry in found]
    private = [number for number in numbers if not _is_public(number)]
    if private:
        raise DataError("private address", f"`{origin}` leads to {private[0]}, on a private network or this machine.")
    # Where there is a choice, the network that every machine has.
    pinned = address.copy_with(host=min(numbers, key=lambda number: ":" in number))
    name = address.netloc.decode("ascii")
    return client.build_request("GET", pinned, headers={"Host": name}, extensions={"sni_hostname": address.host})


def _is_public(number: str) -> bool:
    address = ipaddress.ip_address(number)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast


def _is_public_literal(host: str) -> bool:
    try:
        return _is_public(host)
    except ValueError:
        return True


def _uses_proxy(address: Any) -> bool:
    proxies = urllib.request.getproxies()
    has_proxy = address.scheme in proxies or "all" in proxies
    return has_proxy and not urllib.request.proxy_bypass(address.host)


def _read_picture(response: Any, url: str, settings: FetchSettings, deadline: float) -> bytes:
    status = response.status_code
    if status in _RETRIED_STATUS:
        wait = _seconds(response.headers.get("retry-after"))
        raise _PassingFault("server error", f"`{url}` answers with status {status}.", wait_seconds=wait)
    if status != 200:
        raise DataError("not found", f"`{url}` answers with status {status}.")
    tags = {tag.strip().lower() for tag in response.headers.get("x-robots-tag", "").replace(":", ",").split(",")}
    if settings.honour_opt_out and tags & _OPT_OUT:
        raise DataError(
            "opted out", f"`{url}` asks not to be used (X-Robots-Tag: {', '.join(sorted(tags & _OPT_OUT))})."
        )
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > settings.max_bytes:
            raise DataError("too large", f"`{url}` sends more than {settings.max_bytes} bytes.")
        if time.monotonic() > deadline:
            raise _PassingFault("timed out", f"`{url}` takes longer than {settings.deadline_seconds:g} s.")
    check_picture(bytes(content), name=url)
    return bytes(content)


def check_picture(content: bytes, *, name: str) -> None:
    """Tell from the bytes themselves, not from what a server says, whether they begin like a picture.

    Raises:
        DataError: If not.
    """
    try:
        with Image.open(BytesIO(content), formats=PICTURE_FORMATS) as image:
            has_pixels = 0 not in image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError("no picture", f"`{name}` sends no picture that can be read ({cause(error)}).") from error
    if not has_pixels:
        raise DataError("no picture", f"`{name}` sends a picture without pixels.")


def _host_of(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2].lower()


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.strip().isdigit() else 0.0


def _write(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
