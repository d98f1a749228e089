"""Downloads an image from an address that a stranger may have written: public hosts only, bounded size and time."""

import ipaddress
import re
import socket
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from ..errors import ImageInputError

USER_AGENT = "xgen-mm (reads an image that its user names)"

# Largest image in bytes, wherever it comes from.
MAX_IMAGE_BYTES = 64 * 2**20

DownloadReason: TypeAlias = Literal[
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

_OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
# Others, and one within another, can turn a kilobyte into gigabytes before anybody counts.
_ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})
_IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All public IPv6 addresses in use; what lies outside is local, or leads to an IPv4 address.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Not public either, but so to Python's own lists of some versions: protocol assignments (metadata services of clouds
# among them), the old way from IPv6 to IPv4, and the second network for documentation.
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")))
# Interface identifiers that hold an IPv4 address (ISATAP, RFC 5214), private and public form.
_ISATAP = (0x00005EFE, 0x02005EFE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """Limits of one download.

    Attributes:
        timeout_seconds: Longest silence of a server.
        deadline_seconds: Longest time for one image, redirects included.
        max_bytes: Largest image, after decompression in transit.
        max_redirects: Most redirects; each target is checked like the first address.
        allow_private: Whether addresses of private networks and of this machine may be asked. Off, because whoever
            wrote the address could otherwise reach services that only this machine sees.
        honour_opt_out: Whether images whose `X-Robots-Tag` says `noai`, `noimageai`, `noindex` or `noimageindex` are
            refused. That is about training data; an image that a user asks about is no such use.
        user_agent: What servers are told.
    """

    timeout_seconds: float = 10.0
    deadline_seconds: float = 60.0
    max_bytes: int = MAX_IMAGE_BYTES
    max_redirects: int = 5
    allow_private: bool = False
    honour_opt_out: bool = False
    user_agent: str = USER_AGENT


class DownloadError(ImageInputError):
    """An image cannot be downloaded.

    Attributes:
        reason: Kind of fault in a few words.
        may_pass: Whether another attempt may succeed.
        wait_seconds: How long the server asks to wait before it.
    """

    def __init__(
        self, reason: DownloadReason, message: str, *, may_pass: bool = False, wait_seconds: float = 0.0
    ) -> None:
        """Keep the facts beside the message."""
        super().__init__(message)
        self.reason: DownloadReason = reason
        self.may_pass = may_pass
        self.wait_seconds = wait_seconds

    def __reduce__(self) -> Any:
        """All facts, so that the error survives the way out of a worker process."""
        return partial(type(self), may_pass=self.may_pass, wait_seconds=self.wait_seconds), (self.reason, str(self))


def is_url(source: str) -> bool:
    """Whether a string is an `http(s)` address; schemes may be written in capitals."""
    return re.match(r"https?://", source, re.IGNORECASE) is not None


def open_client(limits: DownloadLimits, *, connections: int = 1) -> Any:
    """HTTP client for `download`, to be used as a context manager.

    Args:
        limits: As for the downloads.
        connections: Most connections at the same time.
    """
    # The host's own HTTP client, so that proxies and certificates behave as for the Hub.
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    # Each download has a connection of its own, which its deadline may cut.
    pool = httpx.Limits(max_connections=connections, max_keepalive_connections=0)
    headers = {"User-Agent": limits.user_agent, "Accept": "image/*", "Accept-Encoding": "gzip, deflate"}
    return httpx.Client(timeout=limits.timeout_seconds, follow_redirects=False, limits=pool, headers=headers)


def download(url: str, *, limits: DownloadLimits | None = None, client: Any = None) -> bytes:
    """Bytes behind an address. They may be anything; `opening.open_header` tells whether they are an image.

    Args:
        url: `http(s)` address.
        limits: Limits; the defaults suit an address from anywhere.
        client: From `open_client`; `None` makes one for this download.

    Raises:
        DownloadError: If the address is none, is not public, or does not answer with content within the limits.
    """
    limits = limits or DownloadLimits()
    if client is not None:
        return _download(client, url, limits)
    with open_client(limits) as own_client:
        return _download(own_client, url, limits)


def is_public(number: str) -> bool:
    """Whether a numeric IP address belongs to the public internet, also where it wraps an IPv4 address.

    >>> [is_public(number) for number in ("93.184.215.14", "10.0.0.1", "64:ff9b::a00:1", "64:ff9b::5db8:d70e")]
    [True, False, False, True]
    """
    address: _IPAddress = ipaddress.ip_address(number.partition("%")[0])
    if any(address in network for network in _NOT_PUBLIC):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    if address.ipv4_mapped is not None:
        return is_public(str(address.ipv4_mapped))
    if address in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
    wrapped = [address.sixtofour, *(address.teredo or ())]
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        wrapped.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    is_routed = address.is_global or address.sixtofour is not None or address.teredo is not None
    return (
        address in _GLOBAL_UNICAST
        and is_routed
        and all(is_public(str(inner)) for inner in wrapped if inner is not None)
    )


def retry_after(text: str | None) -> float:
    """Seconds that a `Retry-After` header asks for; 0 for a date, or anything else."""
    return float(text) if text is not None and re.fullmatch(r"\s*[0-9]{1,6}\s*", text) else 0.0


def _download(client: Any, url: str, limits: DownloadLimits) -> bytes:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    watch = _Deadline(limits.deadline_seconds)
    shown = url if len(url) <= 200 else f"{url[:197]}..."
    # A stranger's address must not break a message into lines, nor command a terminal.
    name = f"`{''.join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)}`"
    try:
        with watch:
            return _follow(client, httpx.URL(url), name, limits=limits, watch=watch)
    except DownloadError:
        raise
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise DownloadError("bad address", f"{name} is no address that can be fetched ({error}).") from error
    except httpx.TimeoutException as error:
        silence = f"{name} did not answer in {limits.timeout_seconds:g} s."
        raise DownloadError("timed out", silence, may_pass=True) from error
    except Exception as error:
        # What a server sends may provoke more than the errors of the protocol.
        if watch.is_over:
            raise watch.error(name) from error
        if isinstance(error, httpx.DecodingError):
            raise DownloadError("no picture", f"{name} sends what cannot be decompressed ({error}).") from error
        what = f"{name} could not be downloaded ({error or type(error).__name__}). Check the address and the network."
        raise DownloadError("no connection", what, may_pass=True) from error


def _follow(client: Any, address: Any, name: str, *, limits: DownloadLimits, watch: "_Deadline") -> bytes:
    for _ in range(limits.max_redirects + 1):
        request = _checked_request(client, address, name, allow_private=limits.allow_private)
        request.extensions["trace"] = watch.trace
        response = client.send(request, stream=True)
        try:
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return _read(response, name, limits=limits, watch=watch)
            address = address.join(response.headers["location"])
        finally:
            response.close()
    raise DownloadError("too many redirects", f"{name} redirects more than {limits.max_redirects} times.")


def _checked_request(client: Any, address: Any, name: str, *, allow_private: bool) -> Any:
    """A request that goes to an address that was checked, whatever the name resolves to a moment later."""
    if address.scheme not in ("http", "https") or not address.host:
        raise DownloadError("bad address", f"{name} leads to `{address}`, which is no http(s) address.")
    host = address.raw_host.decode("ascii")
    if allow_private:
        return client.build_request("GET", address)
    if not _is_public_as_written(host):
        raise _private(name, f"`{host}`")
    if _uses_proxy(address):
        # A proxy resolves names itself; only what needs no resolving can be checked here.
        return client.build_request("GET", address)
    try:
        found = socket.getaddrinfo(host, address.port or 0, type=socket.SOCK_STREAM)
    except OSError as error:
        what = f"{name}: `{host}` cannot be resolved ({error})."
        raise DownloadError("no connection", what, may_pass=True) from error
    numbers = [str(entry[4][0]) for entry in found]
    private = [number for number in numbers if not is_public(number)]
    if private or not numbers:
        raise _private(name, private[0] if private else host)
    # Where there is a choice, the network that every machine has.
    pinned = address.copy_with(host=min(numbers, key=lambda number: ":" in number))
    headers = {"Host": address.netloc.decode("ascii")}
    return client.build_request("GET", pinned, headers=headers, extensions={"sni_hostname": host})


def _private(name: str, found: str) -> DownloadError:
    return DownloadError(
        "private address",
        f"{name} leads to {found}, on a private network or this machine. Download it yourself and pass the file.",
    )


def _is_public_as_written(host: str) -> bool:
    plain = host.rstrip(".").lower()
    if plain == "localhost" or plain.endswith(".localhost"):
        return False
    with suppress(ValueError):
        return is_public(str(ipaddress.ip_address(plain)))
    try:
        # `127.1`, `0x7f.1` and `2130706433` are addresses too.
        return is_public(socket.inet_ntoa(socket.inet_aton(plain)))
    except OSError:
        return True


def _uses_proxy(address: Any) -> bool:
    proxies = urllib.request.getproxies()
    has_proxy = address.scheme in proxies or "all" in proxies
    return has_proxy and not urllib.request.proxy_bypass(address.host)


def _read(response: Any, name: str, *, limits: DownloadLimits, watch: "_Deadline") -> bytes:
    status = response.status_code
    if status in _PASSING_STATUS:
        wait = retry_after(response.headers.get("retry-after"))
        what = f"{name} could not be downloaded (it answers with status {status})."
        raise DownloadError("server error", what, may_pass=True, wait_seconds=wait)
    if status != 200:
        raise DownloadError("not found", f"{name} could not be downloaded (it answers with status {status}).")
    tags = {tag.strip().lower() for tag in response.headers.get("x-robots-tag", "").replace(":", ",").split(",")}
    if limits.honour_opt_out and tags & _OPT_OUT:
        asked = ", ".join(sorted(tags & _OPT_OUT))
        raise DownloadError("opted out", f"{name} asks not to be used (X-Robots-Tag: {asked}).")
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise DownloadError("no picture", f"{name} sends content encoded as {encoding[:40]!r}, not gzip.")
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > limits.max_bytes:
            raise DownloadError(
                "too large",
                f"{name} sends more than {limits.max_bytes} bytes, the limit for one picture. Download it yourself "
                "and pass the file.",
            )
        if watch.is_over:
            raise watch.error(name)
    if watch.is_over:
        # A connection that was cut looks like the end of the content.
        raise watch.error(name)
    return bytes(content)


class _Deadline:
    """Ends a download when its time is over, even while a server sends headers byte by byte.

    A timeout limits each wait for the next bytes, not their sum; so the connection itself is cut.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._timer = threading.Timer(max(seconds, 0.0), self._cut)
        self._timer.daemon = True
        self._socket: socket.socket | None = None

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._close()

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def error(self, name: str) -> DownloadError:
        return DownloadError("timed out", f"{name} took longer than {self.seconds:g} s.", may_pass=True)

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Called by the HTTP client at each step; remembers the connection."""
        if event == "connection.connect_tcp.complete":
            # A copy of the descriptor cuts the same connection, whatever TLS makes of the original.
            self._close()
            self._socket = info["return_value"].get_extra_info("socket").dup()
            if self.is_over:
                self._cut()

    def _cut(self) -> None:
        connection = self._socket
        if connection is not None:
            # The other side may have closed it already.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
