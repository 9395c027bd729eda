"""``/api/requests`` and ``/api/usage``: what is asked, and what is told."""

from __future__ import annotations

import json
import tempfile
from typing import Any

from llmproxy.usage.book import Book
from llmproxy.usage.keeping import keep_book
from llmproxy.usage.records import StoreError
from llmproxy.web.accesslog import AccessLog
from llmproxy.web.metrics import Metrics
from llmproxy.web.underway import open_sums
from tests.front import FrontCase
from tests.unit.test_front import KEY
from tests.unit.test_usage import Lane

ADMIN = b"Authorization: Bearer admin\r\n"
ANSWER = b'{"usage":{"prompt_tokens":7,"completion_tokens":5}}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[]}\n\n'


class UsageCase(FrontCase):
    """A proxy that keeps books, of models that need half of a GPU each."""

    def setUp(self) -> None:
        super().setUp()
        self.clock.advance(1_769_860_800.0)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.book = self.keep(folder.name)

    def keep(self, folder: str) -> Book:
        self.reload(state_dir=folder)
        book = keep_book(self.fleet, self.clock, Lane())
        self.site.book, book.open_requests = book, lambda: open_sums(self.site)
        self.site.access_log = AccessLog(self.clock, book.observe)
        self.addCleanup(book.close)
        return book

    def settle(self) -> None:
        self.site.access_log.flush()

    def ask(self, path: bytes) -> Any:
        self.settle()
        status, _, body = self.client().get(path, ADMIN).answer()
        assert status == 200, body
        return json.loads(body)

    def refusal(self, path: bytes) -> tuple[int, str | None]:
        status, error, _ = self.client().get(path, ADMIN).error()
        return status, error["param"]

    def serve(self, model: str = "coder3b", headers: bytes = KEY) -> None:
        """One request from its beginning to its end, a second long, half of it to the first byte."""
        client = self.client().post(b"/v1/completions", {"model": model}, headers)
        self.clock.advance(0.5)
        self.far().send(OK[:60])
        self.far().send(OK[60:-5])
        self.clock.advance(0.5)
        self.far().send(OK[-5:])
        self.assertEqual(client.answer()[0], 200)

    def stream(self, events: int) -> None:
        """A stream that is open, and has had so many events."""
        self.client().post(b"/v1/completions", {"model": "coder3b", "stream": True})
        self.far().send(STREAM)
        for _ in range(events):
            self.far().send(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))


class RequestsTests(UsageCase):
    """``/api/requests``."""

    def test_requests_that_are_over(self) -> None:
        """With all that is known of them, the newest first."""
        self.warm("coder", "chat")
        self.serve()
        self.serve("sitechat", b"Authorization: Bearer limited\r\n")
        told = self.ask(b"/api/requests")
        self.assertEqual((told["open"], told["next"]), ([], None))
        newest, oldest = told["finished"]
        self.assertEqual((newest["backend"], newest["key"]), ("chat", "site"))
        self.assertEqual((oldest["prompt_tokens"], oldest["completion_tokens"]), (7, 5))
        self.assertEqual((oldest["first_byte"], oldest["seconds"]), (0.5, 1.0))
        self.assertEqual((oldest["tokens_per_second"], oldest["estimated"]), (10.0, False))
        self.assertEqual(
            (oldest["method"], oldest["path"], oldest["status"]), ("POST", "/v1/completions", 200)
        )
        self.assertEqual(oldest["outcome"], "ok")
        self.assertNotIn("prompt", oldest)

    def test_the_speed_of_an_answer_that_came_whole(self) -> None:
        """It was generated from the beginning, not from its first byte on."""
        self.warm("coder")
        client = self.client().post(b"/v1/completions", {"model": "coder3b"})
        self.clock.advance(2)
        self.far().send(OK)
        client.take()
        (one,) = self.ask(b"/api/requests")["finished"]
        self.assertEqual((one["first_byte"], one["tokens_per_second"]), (2.0, 2.5))

    def test_requests_that_are_open(self) -> None:
        """Those that wait, and those that are in flight, with what they have had."""
        self.warm("chat")
        self.client().post(b"/v1/completions", {"model": "coder3b"})
        self.clock.advance(3)
        self.client().post(b"/v1/completions", {"model": "sitechat", "stream": True})
        self.clock.advance(1)
        self.far().send(STREAM + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        flying, waiting = self.ask(b"/api/requests")["open"]
        self.assertEqual((flying["state"], flying["age"], flying["tokens"]), ("in_flight", 1.0, 1))
        self.assertEqual((flying["first_byte"], flying["held"], flying["key"]), (1.0, 0.0, "me"))
        self.assertEqual((waiting["state"], waiting["held"], waiting["tokens"]), ("waiting", 4.0, None))
        self.assertEqual((waiting["backend"], waiting["first_byte"]), ("coder", None))
        (one,) = self.ask(b"/api/requests?backend=chat&key=me")["open"]
        self.assertEqual(one["backend"], "chat")
        self.assertEqual(self.ask(b"/api/requests?key=root")["open"], [])

    def test_page_by_page(self) -> None:
        """Each page tells where the next begins; the open ones are on the first."""
        self.warm("coder")
        for _ in range(3):
            self.serve()
        first = self.ask(b"/api/requests?limit=2")
        second = self.ask(b"/api/requests?limit=2&before=%d" % first["next"])
        found = [one["id"] for one in (*first["finished"], *second["finished"])]
        self.assertEqual((found, second["next"]), ([3, 2, 1], None))
        self.assertEqual(len(self.ask(b"/api/requests?outcome=refused")["finished"]), 0)

    def test_what_the_proxy_itself_answers_is_not_kept(self) -> None:
        """Of refusals those that were about a backend."""
        self.client().get(b"/healthz")
        self.client().post(b"/v1/completions", {"model": "nope"})
        self.client().get(b"/coder/health")
        (one,) = self.ask(b"/api/requests")["finished"]
        self.assertEqual((one["backend"], one["outcome"], one["first_byte"]), ("coder", "refused", None))

    def test_what_is_not_allowed(self) -> None:
        """It is named."""
        for query, name in (
            (b"limit=501", "limit"),
            (b"limit=x", "limit"),
            (b"before=-1", "before"),
            (b"outcome=great", "outcome"),
        ):
            self.assertEqual(self.refusal(b"/api/requests?" + query), (400, name))
        self.assertEqual(self.client().get(b"/api/requests").answer()[0], 403)

    def test_tokens_per_second(self) -> None:
        """Of each backend, from the second look on: of what is over and of what goes on."""
        self.warm("coder")
        self.ask(b"/api/backends")
        self.stream(30)
        self.clock.advance(2)
        coder, chat = self.ask(b"/api/backends")["backends"]
        self.assertEqual((coder["tokens_per_second"], chat["tokens_per_second"]), (15.0, 0.0))


class SumsTests(UsageCase):
    """``/api/usage``."""

    def test_sums(self) -> None:
        """By what is asked; GPU time with them."""
        self.warm("coder")
        self.serve()
        told = self.ask(b"/api/usage?by=key,backend&since=7d")
        self.assertEqual(
            (told["by"], told["since"], told["until"]), (["key", "backend"], "2026-01-24", "2026-01-31")
        )
        (row,) = told["rows"]
        self.assertEqual((row["key"], row["backend"], row["requests"]), ("me", "coder", 1))
        self.assertEqual((row["prompt_tokens"], row["completion_tokens"], row["estimated_tokens"]), (7, 5, 0))
        self.assertEqual(row["gpu_seconds"], 0.509)

    def test_a_stream_that_does_not_tell(self) -> None:
        """Its tokens are an estimate, and stand apart."""
        self.warm("coder")
        self.stream(5)
        self.far().send(b"0\r\n\r\n")
        (row,) = self.ask(b"/api/usage")["rows"]
        self.assertEqual((row["completion_tokens"], row["estimated_tokens"]), (0, 3))

    def test_as_csv(self) -> None:
        """A head line and one for each row."""
        self.warm("coder")
        self.serve()
        self.settle()
        status, headers, body = self.client().get(b"/api/usage?by=day&format=csv", ADMIN).answer()
        self.assertEqual((status, headers["content-type"]), (200, "text/csv; charset=utf-8"))
        head, row, end = body.decode().split("\r\n")
        self.assertEqual(head.split(",")[:3], ["day", "requests", "prompt_tokens"])
        self.assertEqual((row.split(",")[:3], end), (["2026-01-31", "1", "7"], ""))

    def test_days(self) -> None:
        """As dates and as times ago."""
        told = self.ask(b"/api/usage?since=2026-01-01&until=36h")
        self.assertEqual((told["since"], told["until"], told["rows"]), ("2026-01-01", "2026-01-30", []))
        for query, name in (
            (b"since=yesterday", "since"),
            (b"until=2026-02-30", "until"),
            (b"since=99999d", "since"),
            (b"by=model", "by"),
            (b"by=day,day", "by"),
            (b"format=xml", "format"),
        ):
            self.assertEqual(self.refusal(b"/api/usage?" + query), (400, name))

    def test_a_file_that_cannot_be_read(self) -> None:
        """503, with the reason."""

        def broken(*_: Any) -> Any:
            raise StoreError("the disk is full")

        self.patch(self.book, "_make_store", lambda: type("Broken", (), {"usage": broken, "close": broken})())
        status, error, _ = self.client().get(b"/api/usage", ADMIN).error()
        self.assertEqual((status, error["code"]), (503, "error"))
        self.assertIn("the disk is full", error["message"])
        self.book._store = None

    def test_metrics(self) -> None:
        """Prometheus hears of the same tokens."""
        self.warm("coder")
        metrics = Metrics(self.fleet, "1")
        metrics.count_tokens(self.book.ledger.totals)
        self.serve()
        self.settle()
        text = metrics.render("")[0].decode()
        self.assertIn('llmproxy_tokens_total{backend="coder",key="me",kind="prompt"} 7.0\n', text)
        self.assertIn('llmproxy_tokens_total{backend="coder",key="me",kind="completion"} 5.0\n', text)

    def test_a_backend_that_is_configured_no_more(self) -> None:
        """What it has used is still told, and it uses nothing from then on."""
        self.warm("coder")
        self.serve()
        self.settle()
        self.reload(backends={"chat": self.config.backends["chat"]})
        self.clock.advance(100)
        (row,) = self.ask(b"/api/usage")["rows"]
        self.assertEqual((row["backend"], row["requests"]), ("coder", 1))
