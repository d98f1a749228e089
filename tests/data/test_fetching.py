"""Pictures from a server that misbehaves in every way that servers do."""

import gzip
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from xgen_mm.data import fetching
from xgen_mm.data.fetching import Fetcher, FetchSettings
from xgen_mm.data.reading import RecordSource
from xgen_mm.data.records import Document, Picture, Text
from xgen_mm.errors import DataError
from xgen_mm.images import bounded_download


def encode(format: str, *, height: int = 6, width: int = 9) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(stream, format)
    return stream.getvalue()


PNG = encode("PNG")
SETTINGS = FetchSettings(
    allow_private=True, timeout_seconds=0.3, deadline_seconds=0.8, max_bytes=20_000, backoff_seconds=0.01, workers=8
)


class RudeHandler(BaseHTTPRequestHandler):
    """Answers by path; counts what was asked."""

    asked: ClassVar[Counter[str]] = Counter()
    agents: ClassVar[set[str]] = set()
    busy = most_busy = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        name = self.path.strip("/").partition("/")[0]
        with self.lock:
            type(self).asked[self.path] += 1
            type(self).agents.add(self.headers["User-Agent"])
        getattr(self, f"answer_{name.replace('.', '_')}", self.answer_nothing)()

    def send(self, content: bytes, *, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for header, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def answer_nothing(self) -> None:
        self.send(b"", status=404)

    def answer_good(self) -> None:
        self.send(PNG, Content_Type="text/plain")

    def answer_jpeg(self) -> None:
        self.send(encode("JPEG"))

    def answer_page(self) -> None:
        self.send(b"<html>not here</html>", Content_Type="image/png")

    def answer_svg(self) -> None:
        self.send(b'<svg xmlns="http://www.w3.org/2000/svg"/>', Content_Type="image/svg+xml")

    def answer_silent(self) -> None:
        time.sleep(0.7)

    def answer_trickle(self) -> None:
        self.send_response(200)
        self.end_headers()
        for byte in PNG[:30]:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)

    def answer_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(10_000):
            self.wfile.write(PNG + b"\0" * 4096)

    def answer_bomb(self) -> None:
        self.send(gzip.compress(b"\0" * 5_000_000), Content_Encoding="gzip")

    def answer_garbled(self) -> None:
        self.send(b"no gzip at all", Content_Encoding="gzip")

    def answer_truncated(self) -> None:
        self.send(PNG[:40], Content_Length=str(len(PNG)))

    def answer_reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def answer_moved(self) -> None:
        self.send(b"", status=302, Location="/good")

    def answer_loop(self) -> None:
        self.send(b"", status=301, Location="/loop")

    def answer_inward(self) -> None:
        self.send(b"", status=302, Location="http://127.0.0.2:9/good")

    def answer_metadata(self) -> None:
        self.send(b"", status=302, Location="http://169.254.169.254/latest")

    def answer_file(self) -> None:
        self.send(b"", status=302, Location="file:///etc/passwd")

    def answer_shy(self) -> None:
        self.send(PNG, X_Robots_Tag="otherbot: noai, noindex")

    def answer_broken(self) -> None:
        self.send(b"", status=503, Retry_After="0")

    def answer_flaky(self) -> None:
        is_first = self.asked[self.path] < 3
        self.send(b"" if is_first else PNG, status=500 if is_first else 200)

    def answer_busy(self) -> None:
        with self.lock:
            type(self).busy += 1
            type(self).most_busy = max(self.busy, self.most_busy)
        time.sleep(0.05)
        with self.lock:
            type(self).busy -= 1
        self.send(PNG)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            # The other side has gone, as it should.
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        del format, args


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with QuietServer(("127.0.0.1", 0), RudeHandler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    RudeHandler.asked.clear()


def fault_of(cache: Path, url: str, **changes: Any) -> DataError:
    fault = Fetcher(cache, settings=replace(SETTINGS, **changes)).fetch_many([url])[url]
    assert isinstance(fault, DataError)
    return fault


@pytest.mark.parametrize("name", ["good", "jpeg", "moved", "flaky"])
def test_fetch_picture_is_kept_and_not_asked_for_again(server: str, name: str, tmp_path: Path) -> None:
    url = f"{server}/{name}"
    path = Fetcher(tmp_path, settings=SETTINGS).fetch(url)
    assert Picture(path).load().size == (9, 6)
    asked = dict(RudeHandler.asked)
    assert Fetcher(tmp_path, settings=SETTINGS).fetch(url) == path
    assert dict(RudeHandler.asked) == asked


@pytest.mark.parametrize(
    ("name", "reason", "attempts"),
    [
        ("gone", "not found", 1),
        ("page", "no picture", 1),
        ("svg", "no picture", 1),
        ("garbled", "no picture", 1),
        ("endless", "too large", 1),
        ("bomb", "too large", 1),
        ("loop", "too many redirects", 6),
        ("file", "bad address", 1),
        ("shy", "opted out", 1),
        ("silent", "timed out", 2),
        ("trickle", "timed out", 2),
        ("truncated", "no connection", 2),
        ("reset", "no connection", 2),
        ("broken", "server error", 2),
    ],
)
def test_fetch_fault_has_its_reason_and_is_retried_only_if_it_may_pass(
    server: str, name: str, reason: str, attempts: int, tmp_path: Path
) -> None:
    url = f"{server}/{name}"
    fault = fault_of(tmp_path, url, retries=1)
    assert fault.reason == reason
    assert url in str(fault)
    assert RudeHandler.asked[f"/{name}"] == attempts


@pytest.mark.parametrize("url", ["ftp://example.com/a.png", "http://", "http://[::1", "no address", "http://a\x00b/"])
def test_fetch_address_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    assert fault_of(tmp_path, url).reason == "bad address"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.0.0.1", "192.168.1.1", "169.254.169.254", "[::1]", "0.0.0.0", "[::ffff:10.0.0.1]"],
)
def test_fetch_private_address_is_refused_without_being_asked(host: str, tmp_path: Path) -> None:
    fault = fault_of(tmp_path, f"http://{host}:9/a.png", allow_private=False)
    assert fault.reason == "private address"


@pytest.mark.parametrize("name", ["inward", "metadata"])
def test_fetch_redirect_to_a_private_address_is_refused(
    server: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bounded_download.is_public
    monkeypatch.setattr(bounded_download, "is_public", lambda number: number == "127.0.0.1" or real(number))
    fault = fault_of(tmp_path, f"{server}/{name}", allow_private=False)
    assert fault.reason == "private address"
    assert RudeHandler.asked[f"/{name}"] == 1


def test_fetch_goes_to_the_address_that_was_checked(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(server.rpartition(":")[2])
    answers = iter(["127.0.0.1", "10.0.0.1", "10.0.0.1"])

    def resolve(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        # The first question about the name gets a harmless answer, later ones would lead inside.
        number = next(answers) if host == "pictures.example.com" else host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port))]

    monkeypatch.setattr(bounded_download, "is_public", lambda number: number == "127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = f"http://pictures.example.com:{port}/good"
    path = Fetcher(tmp_path, settings=replace(SETTINGS, allow_private=False)).fetch(url)
    assert path.read_bytes() == PNG


def test_fetch_name_that_is_unknown_is_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*args: Any, **kwargs: Any) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    fault = fault_of(tmp_path, "http://nowhere.example/a.png", allow_private=False)
    assert fault.reason == "no connection"
    assert "cannot be resolved" in str(fault)


def test_fetch_lasting_faults_are_remembered_and_passing_ones_not(server: str, tmp_path: Path) -> None:
    lasting, passing = f"{server}/gone", f"{server}/broken"
    for _ in range(2):
        faults = Fetcher(tmp_path, settings=replace(SETTINGS, retries=0)).fetch_many([lasting, passing])
        assert [fault.reason for fault in faults.values()] == ["not found", "server error"]
    assert [RudeHandler.asked["/gone"], RudeHandler.asked["/broken"]] == [1, 2]
    Fetcher(tmp_path, settings=SETTINGS, retry_failed=True).fetch_many([lasting])
    assert RudeHandler.asked["/gone"] == 2


def test_fetch_damaged_note_and_leftover_part_do_no_harm(server: str, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, settings=SETTINGS)
    path = fetcher.path_of(f"{server}/good")
    path.parent.mkdir(parents=True)
    path.with_suffix(".json").write_text("{", encoding="utf-8")
    path.with_name(f"{path.name}.1-1.part").write_bytes(b"half")
    assert fetcher.fetch(f"{server}/good").read_bytes() == PNG
    assert not path.with_suffix(".json").exists()


def test_fetch_many_asks_once_per_address_and_few_times_per_host(server: str, tmp_path: Path) -> None:
    RudeHandler.most_busy = 0
    urls = [f"{server}/busy/{number}" for number in range(12)]
    done: list[str] = []
    found = Fetcher(tmp_path, settings=replace(SETTINGS, per_host=3, timeout_seconds=5)).fetch_many(
        [*urls, *urls], on_done=done.append
    )
    assert list(found) == urls
    assert all(isinstance(path, Path) for path in found.values())
    assert sorted(done) == sorted(urls)
    assert set(RudeHandler.asked.values()) == {1}
    assert 1 < RudeHandler.most_busy <= 3


def test_fetch_says_who_asks(server: str, tmp_path: Path) -> None:
    Fetcher(tmp_path, settings=SETTINGS).fetch(f"{server}/good")
    assert RudeHandler.agents == {fetching.USER_AGENT}


def test_fetch_opted_out_picture_may_be_asked_for_on_purpose(server: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, honour_opt_out=False)
    assert Fetcher(tmp_path, settings=settings).fetch(f"{server}/shy").read_bytes() == PNG


def test_record_source_with_fetcher_leaves_out_what_a_document_can_do_without(server: str, tmp_path: Path) -> None:
    rows = [
        {"texts": ["a", None, None], "images": [None, f"{server}/good", f"{server}/gone"]},
        {"texts": ["b", None], "images": [None, f"{server}/page"]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    fetcher = Fetcher(tmp_path / "cache", settings=SETTINGS)
    source = RecordSource(path=path, format="obelics", fetcher=fetcher)
    (document,) = source
    assert isinstance(document, Document)
    assert document.parts == (Text("a"), Picture(fetcher.path_of(f"{server}/good")))
    report = source.report.to_dict()
    assert report["records"] == 1
    assert report["bad_rows"] == {"no picture": 1}
    assert report["pictures_left_out"] == {"not found": 1}
    with pytest.raises(DataError, match=r"Row `rows.jsonl:0` of `obelics`: .*status 404"):
        list(replace(source, policy="raise"))
