"""Downloads from addresses of strangers: what is public, what is refused at every step, and how long it may take."""

import pickle
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from xgen_mm.cli.loading import open_pictures
from xgen_mm.data.fetching import Fetcher, FetchSettings
from xgen_mm.data.formats.row import PictureRules, Row
from xgen_mm.data.records import Picture
from xgen_mm.errors import DataError, ImageInputError
from xgen_mm.evaluation.harness.messages import load_picture
from xgen_mm.images import bounded_download
from xgen_mm.images.bounded_download import DownloadError, DownloadLimits, download, is_public, is_url, retry_after
from xgen_mm.processing.image_loading import fetch_image


def encode() -> bytes:
    stream = BytesIO()
    Image.new("RGB", (9, 6), (200, 30, 30)).save(stream, "PNG")
    return stream.getvalue()


PNG = encode()
SOURCE = Path(__file__).parents[2] / "src" / "xgen_mm"


class Handler(BaseHTTPRequestHandler):
    """Answers by path, and remembers who asked for what."""

    asked: ClassVar[list[tuple[str, str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["User-Agent"], self.headers["Host"]))
        name = self.path.strip("/")
        if name == "slow-headers":
            self.trickle()
            return
        status, headers = {
            "inward": (302, {"Location": "http://127.0.0.2:9/picture"}),
            "mapped": (302, {"Location": "http://[::ffff:10.0.0.1]/picture"}),
            "local-file": (302, {"Location": "file:///etc/passwd"}),
            "nested": (200, {"Content-Encoding": "gzip, gzip"}),
            "zstd": (200, {"Content-Encoding": "zstd"}),
            "squared": (503, {"Retry-After": "²"}),
            "arabic": (429, {"Retry-After": "٣"}),
        }.get(name, (200, {}))
        self.send_response(status)
        for header, value in headers.items():
            self.wfile_header(header, value)
        self.end_headers()
        self.wfile.write(PNG)

    def wfile_header(self, header: str, value: str) -> None:
        self._headers_buffer.append(f"{header}: {value}\r\n".encode())

    def trickle(self) -> None:
        try:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(200):
                self.wfile.write(b"X")
                self.wfile.flush()
                time.sleep(0.02)
        except OSError:
            # The other side has gone, as it should.
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield http.server_address[1]
        http.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Handler.asked.clear()


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of these tests counts as a public one."""
    monkeypatch.setattr(bounded_download, "is_public", lambda number: number == "127.0.0.1" or is_public(number))


@pytest.mark.parametrize(
    "number",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "fec0::1"),
        *("255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1%eth0", "fc00::1"),
        *("ff02::1", "ff0e::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "::10.0.0.1", "2001:db8::1"),
        *("64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::808:808", "2002:7f00:1::", "2002:a00:1::1"),
        *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:0:7f00:1::f7f7:f7f7", "::ffff:0:10.0.0.1", "100::1"),
        *("2a00:1450:4001:81b:0:5efe:10.0.0.1", "2a00:1450:4001:81b:200:5efe:a9fe:a9fe"),
        *("192.0.0.192", "::ffff:192.0.0.192", "64:ff9b::c000:c0", "2002:c000:c0::1", "192.88.99.1", "3fff::1"),
    ],
)  # fmt: skip
def test_address_inside_is_not_public(number: str) -> None:
    assert not is_public(number)


@pytest.mark.parametrize(
    "number",
    [
        *("8.8.8.8", "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"),
        *("64:ff9b::808:808", "2002:808:808::1", "2001:0:808:808::f7f7:f7f7"),
    ],
)
def test_address_outside_is_public_also_where_it_is_wrapped(number: str) -> None:
    assert is_public(number)


def test_letters_that_command_a_terminal_are_written_out_in_messages() -> None:
    with pytest.raises(DownloadError) as caught:
        download("http://\n\x1b[2J127.0.0.1/ä.png")
    assert r"`http://\n\x1b[2J127.0.0.1/ä.png`" in str(caught.value)
    assert all(letter.isprintable() for letter in str(caught.value))


HOSTS = (
    *("127.0.0.1", "127.1", "2130706433", "0x7f.1", "0x7f000001", "0", "localhost", "localhost."),
    *("LOCALHOST", "[::]", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1]"),
    *("169.254.169.254", "100.64.0.1", "224.0.0.1"),
)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with bounded_download.open_client(DownloadLimits()) as opened:
        yield opened


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("has_proxy", [False, True], ids=["direct", "through-a-proxy"])
def test_host_inside_is_refused_however_it_is_written(
    host: str, has_proxy: bool, port: int, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxies = {"http": f"http://127.0.0.1:{port}"} if has_proxy else {}
    monkeypatch.setattr("urllib.request.getproxies", lambda: proxies)
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: False)
    with pytest.raises(DownloadError, match="private network or this machine") as caught:
        download(f"http://{host}:{port}/picture", client=client)
    assert caught.value.reason == "private address"
    assert Handler.asked == []


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(fetch_image, id="processor"),
        pytest.param(lambda url: Picture(url).load(), id="data"),
        pytest.param(lambda url: open_pictures([url]), id="command"),
        pytest.param(lambda url: Fetcher("unused").fetch(url), id="prefetch"),
    ],
)
def test_image_from_inside_is_refused_wherever_it_is_asked_for(
    load: Any, port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ImageInputError, DataError), match="private network or this machine"):
        load(f"http://127.0.0.1:{port}/picture")
    assert Handler.asked == []


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("inward", "private address"),
        ("mapped", "private address"),
        ("local-file", "bad address"),
        ("nested", "no picture"),
        ("zstd", "no picture"),
        ("squared", "server error"),
        ("arabic", "server error"),
    ],
)
def test_answer_that_leads_astray_has_its_reason(name: str, reason: str, port: int) -> None:
    with pytest.raises(DownloadError) as caught:
        download(f"http://127.0.0.1:{port}/{name}")
    assert caught.value.reason == reason
    assert len(Handler.asked) == 1


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("name", ["squared", "arabic"])
def test_strange_digits_in_a_header_do_not_end_a_prefetch(name: str, port: int, tmp_path: Path) -> None:
    settings = FetchSettings(retries=1, backoff_seconds=0.001)
    urls = [f"http://127.0.0.1:{port}/{part}" for part in (name, "picture")]
    found = Fetcher(tmp_path, settings=settings).fetch_many(urls)
    assert [type(result).__name__ for result in found.values()] == ["DataError", "PosixPath"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, 0), ("", 0), ("7", 7), (" 7 ", 7), ("²", 0), ("٣", 0), ("7.5", 0), ("-1", 0), ("9" * 5000, 0), ("Fri", 0)],
)
def test_retry_after_is_a_number_of_seconds_or_nothing(text: str | None, seconds: float) -> None:
    assert retry_after(text) == seconds


def test_no_number_is_told_by_isdigit_which_knows_digits_that_int_does_not() -> None:
    careless = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if ".isdigit()" in line and ".isascii()" not in line
    ]
    assert careless == []


@pytest.mark.usefixtures("loopback")
def test_headers_that_trickle_in_end_with_the_deadline(port: int) -> None:
    limits = DownloadLimits(timeout_seconds=5, deadline_seconds=0.3)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"took longer than 0\.3 s") as caught:
        download(f"http://127.0.0.1:{port}/slow-headers", limits=limits)
    assert caught.value.may_pass
    assert time.monotonic() - start < 2


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("scheme", ["http", "HTTP", "Http"])
def test_image_is_asked_for_by_name_and_by_who_we_are(scheme: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["127.0.0.1", "10.0.0.1"])
    real = socket.getaddrinfo

    def resolve(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        # The first question about the name gets a harmless answer, a second one would lead inside.
        return real(next(answers) if host == "pictures.example.com" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    image = fetch_image(f"{scheme}://pictures.example.com:{port}/picture")
    assert image.size == (9, 6)
    assert Handler.asked == [("/picture", bounded_download.USER_AGENT, f"pictures.example.com:{port}")]
    assert "xgen-mm" in bounded_download.USER_AGENT


def test_private_network_may_be_asked_on_purpose(port: int) -> None:
    assert download(f"http://localhost:{port}/picture", limits=DownloadLimits(allow_private=True)) == PNG


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "HTTP://a\x00b/", "http://a\ud800b/", "http://" + "a" * 300]
)
def test_address_that_is_none_is_the_image_error(url: str) -> None:
    with pytest.raises(ImageInputError):
        fetch_image(url)


def test_addresses_are_told_from_paths_whatever_their_case() -> None:
    assert all(map(is_url, ("http://a", "HTTPS://a", "hTTp://a")))
    assert not any(map(is_url, ("ftp://a", "file:///a", "a.png", "httpx://a", "", " http://a")))


def test_error_survives_the_way_out_of_a_worker_process() -> None:
    error = DownloadError("server error", "it answers with 503", may_pass=True, wait_seconds=7)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, str(copy), copy.may_pass, copy.wait_seconds) == (
        "server error",
        "it answers with 503",
        True,
        7,
    )


@pytest.mark.parametrize("name", ["file:///etc/hostname", "FILE:///etc/hostname", "~/picture.png", "/etc/hostname"])
def test_rows_of_data_name_no_file_of_this_machine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "picture.png").write_bytes(PNG)
    (tmp_path / "root").mkdir()
    row = Row(values={}, dataset="x", key="1", rules=PictureRules(root=tmp_path / "root"))
    for value in (name, {"bytes": None, "path": name}):
        with pytest.raises(DataError) as caught:
            row.picture(value, "image")
        assert caught.value.reason in ("missing image", "unsafe path")


@pytest.mark.parametrize("name", ["file:///etc/hostname", "FILE:///etc/hostname", "~/picture.png"])
def test_tasks_of_a_harness_name_no_file_by_address_or_home(name: str) -> None:
    with pytest.raises(ImageInputError, match="the task names the picture"):
        load_picture(name)
