"""The dashboard's resource in memory: pages, files, signing in, and the APIs under the session's cookie."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from importlib.resources import files
from typing import Any

from attrs import evolve

from llmproxy.config.model import Cors, Key
from llmproxy.keys.guard import FREE
from llmproxy.web.auth import Authenticator
from llmproxy.web.ui.files import Files, page
from tests.front import CHAT, CODER, KEYS, FrontCase
from tests.unit.test_front import ADMIN, EVENTS, KEY, Client, TLSTransport

JSON = b"Content-Type: application/json\r\n"
STATIC = files("llmproxy.web.ui") / "static"
PAGES = (b"/ui/", b"/ui/requests", b"/ui/usage", b"/ui/playground", b"/ui/backends/coder")


class UiCase(FrontCase):
    """What browsers do."""

    def sign_in(self, key: Any = "admin", headers: bytes = JSON, client: Client | None = None) -> Client:
        return (client or self.client()).post(b"/ui/session", {"key": key}, headers)

    def cookie(self) -> bytes:
        """Of a session."""
        status, fields, _ = self.sign_in().answer()
        self.assertEqual(status, 200)
        return b"Cookie: %b\r\n" % fields["set-cookie"].partition(";")[0].encode()


class PageTests(UiCase):
    """Pages and files."""

    def test_without_a_session_there_is_the_sign_in(self) -> None:
        """401 with the page as its body, at every page's own address."""
        for path in PAGES:
            status, fields, body = self.client().get(path, b"").answer()
            self.assertEqual(status, 401)
            self.assertEqual(fields["www-authenticate"], "Bearer")
            self.assertEqual(fields["content-type"], "text/html; charset=utf-8")
            self.assertEqual(fields["cache-control"], "no-store")
            self.assertIn(b'id="sign-in"', body)
        self.assertEqual({entry.outcome for entry in self.log.entries}, {"refused"})

    def test_a_key_alone_is_enough(self) -> None:
        """As with the API; one that is no administrator's is told so."""
        for path in PAGES:
            status, fields, body = self.client().get(path, ADMIN).answer()
            self.assertEqual((status, fields["content-type"]), (200, "text/html; charset=utf-8"))
            self.assertIn(b'<main id="main"', body)
            self.assertNotIn(b"sign-out", body)
        self.assertEqual(self.client().get(b"/ui/", KEY).error()[0], 403)

    def test_with_a_session_there_are_the_pages(self) -> None:
        """They name the key, and can be left."""
        cookie = self.cookie()
        for path in PAGES:
            status, _, body = self.client().get(path, cookie).answer()
            self.assertEqual(status, 200)
            self.assertIn(b'<span class="who">root</span>', body)
            self.assertIn(b'id="sign-out"', body)

    def test_without_keys_nobody_signs_in(self) -> None:
        """Nor out."""
        self.site.authenticator = Authenticator(())
        status, _, body = self.client().get(b"/ui/", b"").answer()
        self.assertEqual(status, 200)
        self.assertNotIn(b"sign-out", body)
        self.assertEqual(self.client().get(b"/ui/api/backends", b"").answer()[0], 200)

    def test_the_short_address(self) -> None:
        """/ui leads to /ui/."""
        status, fields, _ = self.client().get(b"/ui", b"").answer()
        self.assertEqual((status, fields["location"]), (308, "/ui/"))

    def test_what_is_not_there(self) -> None:
        """404, and 405 for other methods."""
        for path in (
            b"/ui/nothing",
            b"/ui/static/nothing.js",
            b"/ui/static/..%2fresource.py",
            b"/ui/static/../resource.py",
            b"/ui/static/",
            b"/ui/backends/",
            b"/ui/backends/a/b",
        ):
            self.assertEqual(self.client().get(path, ADMIN).error()[0], 404, path)
        for path in (*PAGES, b"/ui", b"/ui/static/app.css"):
            status, _, fields = self.client().post(path, {}, ADMIN + JSON).error()
            self.assertEqual((status, fields["allow"]), (405, "GET, HEAD"), path)

    def test_every_answer_is_guarded(self) -> None:
        """Pages, files, refusals and what is passed inside: nothing from elsewhere, no frame around it."""
        cookie = self.cookie()
        for path, headers in (
            (b"/ui/", b""),
            (b"/ui/", cookie),
            (b"/ui/static/app.css", b""),
            (b"/ui/nothing", cookie),
            (b"/ui/api/backends", cookie),
            (b"/ui/api/backends", b""),
            (b"/ui/v1/models", cookie),
            (b"/ui", b""),
        ):
            _, fields, _ = self.client().get(path, headers).answer()
            policy = dict(part.strip().split(" ", 1) for part in fields["content-security-policy"].split(";"))
            self.assertEqual(policy["default-src"], "'none'")
            for kind in ("script-src", "style-src", "connect-src", "img-src", "form-action"):
                self.assertEqual(policy[kind], "'self'")
            for kind in ("base-uri", "frame-ancestors", "trusted-types"):
                self.assertEqual(policy[kind], "'none'")
            self.assertEqual(fields["x-content-type-options"], "nosniff")
            self.assertEqual(fields["referrer-policy"], "no-referrer")
            self.assertEqual(fields["cross-origin-opener-policy"], "same-origin")
            self.assertEqual(fields["cross-origin-resource-policy"], "same-origin")
            self.assertEqual(fields["date"], "Thu, 01 Jan 1970 00:00:00 GMT")

    def test_pages_of_others_are_not_told_that_they_may_read(self) -> None:
        """Where other pages may use the models, they may not through the dashboard."""
        self.reload(cors=Cors(("*",)))
        page_of_others = b"Origin: https://chat.example\r\n"
        for path in (b"/ui/", b"/ui/api/backends", b"/ui/v1/models"):
            _, fields, _ = self.client().get(path, ADMIN + page_of_others).answer()
            self.assertNotIn("access-control-allow-origin", fields)

    def test_files(self) -> None:
        """Each has its type, needs no key, and is sent again only when it has changed."""
        kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        for file in STATIC.iterdir():
            path = b"/ui/static/" + file.name.encode()
            status, fields, body = self.client().get(path, b"").answer()
            self.assertEqual((status, body), (200, file.read_bytes()))
            kind = kinds[file.name.rpartition(".")[2]]
            self.assertEqual(fields["content-type"], f"{kind}; charset=utf-8")
            self.assertEqual(fields["cache-control"], "no-cache")
            for tag in (fields["etag"], f'"other", W/{fields["etag"]}'):
                asks = f"If-None-Match: {tag}\r\n".encode()
                status, again, body = self.client().get(path, asks).answer()
                self.assertEqual((status, body, again["etag"]), (304, b"", fields["etag"]))
                self.assertNotIn("content-length", again)
            self.assertEqual(self.client().get(path, b'If-None-Match: "other"\r\n').answer()[0], 200)

    def test_a_connection_goes_on_after_a_304(self) -> None:
        """It has no body, and is not waited for."""
        client = self.client()
        tag = client.get(b"/ui/static/app.css", b"").answer()[1]["etag"].encode()
        client.get(b"/ui/static/app.css", b"If-None-Match: %b\r\n" % tag)
        self.assertEqual(client.answer()[0], 304)
        self.assertEqual(client.get(b"/healthz", b"").answer()[0], 200)

    def test_names_are_text(self) -> None:
        """Whatever is in an address or the name of a key, it is no markup."""
        told = page("backend", title="</title><script>", version="1", who="<b>&", current="overview").decode()
        self.assertNotIn("</title><script>", told)
        self.assertIn("&lt;/title&gt;&lt;script&gt;", told)
        self.assertIn("&lt;b&gt;&amp;", told)
        status, _, body = self.client().get(b"/ui/backends/%3Cscript%3Ealert(1)", ADMIN).answer()
        self.assertEqual(status, 200)
        self.assertNotIn(b"<script>alert", body)

    def test_no_page_has_what_the_policy_forbids(self) -> None:
        """No script, style or handler within it, nothing from elsewhere; each file that it names is there."""
        known = Files()
        for name in ("signin", "overview", "backend", "requests", "usage", "playground"):
            told = page(name, title="t", version="1", who="w", current="overview", signs_out=True).decode()
            self.assertNotRegex(told, r"(?i)\son\w+=|\sstyle=|<style|javascript:|https?://")
            for script in re.findall(r"<script[^>]*>[^<]*", told):
                self.assertRegex(script, r'^<script type="module" src="/ui/static/[a-z]+\.js">$')
            for file in re.findall(r'"/ui/static/([^"]+)"', told):
                self.assertIsNotNone(known.get(file), file)

    def test_no_script_makes_markup_of_text(self) -> None:
        """Or code: what is shown goes in as text."""
        banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|\.style\b|https?://(?!www\.w3\.org)"
        for file in STATIC.iterdir():
            if file.name.endswith(".js"):
                source = file.read_text("utf-8")
                self.assertNotRegex(source, banned, file.name)
                for name in re.findall(r'from "\./([^"]+)"', source):
                    self.assertIsNotNone(Files().get(name), name)


class SessionTests(UiCase):
    """Signing in and out."""

    def test_the_admin_key_opens_a_session(self) -> None:
        """Its cookie is random, for the dashboard alone, and goes with the browser."""
        seen = set()
        for _ in range(3):
            status, fields, body = self.sign_in().answer()
            self.assertEqual((status, json.loads(body)), (200, {"key": "root"}))
            value, *attributes = fields["set-cookie"].split("; ")
            self.assertEqual(sorted(attributes), ["HttpOnly", "Path=/ui/", "SameSite=Strict"])
            self.assertGreaterEqual(len(value.partition("=")[2]), 43)
            self.assertEqual(fields["cache-control"], "no-store")
            seen.add(value)
        self.assertEqual(len(seen), 3)

    def test_on_tls_the_cookie_is_secure(self) -> None:
        """Ours, or that of a proxy in front, by its own word or the browser's."""
        transport = TLSTransport()
        client = Client(self.site, transport)
        self.addCleanup(client.leave)
        self.assertIn("Secure", self.sign_in(client=client).answer()[1]["set-cookie"])
        self.assertIn(
            "Secure", self.sign_in(headers=JSON + b"Origin: https://h\r\n").answer()[1]["set-cookie"]
        )
        told = JSON + b"X-Forwarded-Proto: https\r\n"
        self.assertNotIn("Secure", self.sign_in(headers=told).answer()[1]["set-cookie"])
        self.site.believe(["192.168.1.1"], [])
        self.assertIn("Secure", self.sign_in(headers=told).answer()[1]["set-cookie"])

    def test_a_trusted_proxy_tells_by_which_name_it_was_asked(self) -> None:
        """That is what a page's own requests are known by, then; nobody else's word counts for it."""
        said = b"Origin: https://llm.example\r\nX-Forwarded-Host: llm.example\r\nX-Forwarded-Proto: https\r\n"
        self.site.believe([], ["llm.example"])
        self.assertEqual(self.sign_in(headers=JSON + said).error()[0], 403)
        self.site.believe(["192.168.1.1"], ["llm.example"])
        self.assertEqual(self.sign_in(headers=JSON + said).answer()[0], 200)

    def test_other_keys_open_none(self) -> None:
        """Wrong ones, and those that are no administrator's."""
        for key, expected in (("wrong", 401), ("", 401), ("client", 403)):
            status, _, fields = self.sign_in(key).error()
            self.assertEqual(status, expected)
            self.assertNotIn("set-cookie", fields)

    def test_what_is_no_key_is_refused(self) -> None:
        """Of another type, or with what could break a header."""
        for key in (None, 1, ["admin"], {"a": 1}, "admin\r\nX: y"):
            status, error, _ = self.sign_in(key).error()
            self.assertEqual((status, error["param"]), (400, "key"))
        self.assertEqual(self.client().post(b"/ui/session", b"[1]", JSON).error()[0], 400)

    def test_guessing_takes_longer_and_longer(self) -> None:
        """After some failures even the right key has to wait, and then it is taken; who is in stays in."""
        other = KEYS[0]
        self.site.authenticator = Authenticator((*KEYS, evolve(other, name="boss", secret="boss")))
        cookie = self.cookie()
        for _ in range(FREE + 2):
            while (found := self.sign_in("wrong").error())[0] == 429:
                self.clock.advance(1)
            self.assertEqual(found[0], 401)
        status, error, fields = self.sign_in("boss").error()
        self.assertEqual((status, error["code"], fields["retry-after"]), (429, "rate_limited", "4"))
        self.assertEqual(self.client().get(b"/ui/", cookie).answer()[0], 200)
        self.clock.advance(4)
        self.assertEqual(self.sign_in("boss").answer()[0], 200)

    def test_a_session_outlives_the_wait_for_others(self) -> None:
        """Where an address has to wait in which a session is new, it does, and goes on afterwards."""
        cookie = self.cookie()
        self.site.authenticator = Authenticator(KEYS)
        for _ in range(FREE):
            self.sign_in("wrong")
        self.assertEqual(self.client().get(b"/ui/api/backends", cookie).error()[0], 429)
        self.clock.advance(1)
        self.assertEqual(self.client().get(b"/ui/api/backends", cookie).answer()[0], 200)

    def test_signing_out(self) -> None:
        """The session is over, and the browser forgets the cookie; twice does no harm."""
        cookie = self.cookie()
        for _ in range(2):
            head = b"DELETE /ui/session HTTP/1.1\r\nHost: h\r\n%b\r\n" % cookie
            status, fields, _ = self.client().send(head).answer()
            self.assertEqual(status, 204)
            self.assertIn("Max-Age=0", fields["set-cookie"])
            self.assertEqual(self.client().get(b"/ui/", cookie).answer()[0], 401)

    def test_a_session_ends_with_its_key(self) -> None:
        """Taken away, or expired, and does not come back with it."""
        cookie = self.cookie()
        self.site.authenticator = Authenticator((Key("root", "new", admin=True),))
        self.assertEqual(self.client().get(b"/ui/", cookie).answer()[0], 401)
        self.site.authenticator = Authenticator(KEYS)
        self.assertEqual(self.client().get(b"/ui/", cookie).answer()[0], 401)

    def test_a_session_ends_when_nobody_uses_it(self) -> None:
        """After half a day."""
        cookie = self.cookie()
        self.clock.advance(11 * 3600)
        self.assertEqual(self.client().get(b"/ui/api/backends", cookie).answer()[0], 200)
        self.clock.advance(12 * 3600)
        self.assertEqual(self.client().get(b"/ui/api/backends", cookie).error()[0], 401)

    def test_the_cookie_means_nothing_elsewhere(self) -> None:
        """The API and the models ask for a key."""
        cookie = self.cookie()
        for path in (b"/api/backends", b"/v1/models", b"/coder/health"):
            self.assertEqual(self.client().get(path, cookie).error()[0], 401)

    def test_a_key_counts_more_than_the_cookie(self) -> None:
        """Whoever sends one is judged by it."""
        self.assertEqual(self.client().get(b"/ui/api/backends", self.cookie() + KEY).error()[0], 403)


class InsideTests(UiCase):
    """What is passed on to the APIs."""

    def test_the_admin_api(self) -> None:
        """The same as under /api, query included."""
        cookie = self.cookie()
        status, _, body = self.client().get(b"/ui/api/backends", cookie).answer()
        self.assertEqual(status, 200)
        names = [one["name"] for one in json.loads(body)["backends"]]
        self.assertEqual(names, ["coder", "chat"])
        status, _, body = (
            self.client().post(b"/ui/api/backends/coder/start?wait=0", {}, cookie + JSON).answer()
        )
        self.assertEqual((status, json.loads(body)["state"]), (202, "starting"))
        self.assertEqual(self.client().get(b"/ui/api/nothing", cookie).error()[0], 404)
        self.assertEqual(self.log.entries[-1].path, "/ui/api/nothing")

    def test_events(self) -> None:
        """They come as they happen."""
        client = self.client().get(b"/ui/api/events", self.cookie())
        self.assertIn(b"text/event-stream", client.take())
        self.backend("coder").demand()
        self.assertIn(b'"to": "starting"', client.take())

    def test_the_models(self) -> None:
        """A chat is streamed by the backend, which sees neither cookie nor key of the session."""
        self.warm("coder")
        cookie = self.cookie()
        body = {"model": "coder3b", "stream": True, "messages": []}
        client = self.client().post(b"/ui/v1/chat/completions", body, cookie + JSON)
        seen = self.far().received
        self.assertTrue(seen.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n"), seen)
        self.assertNotIn(b"ookie", seen)
        self.assertNotIn(b"admin", seen)
        self.assertIn(b"Authorization: Bearer own\r\n", seen)
        self.far().send(EVENTS + b"5\r\nhello\r\n")
        told = client.take()
        self.assertIn(b"hello", told)
        self.assertIn(b"Content-Security-Policy: default-src 'none'", told)
        self.assertEqual(self.client().get(b"/ui/v1/models", cookie).answer()[0], 200)

    def test_only_those_two(self) -> None:
        """No route is reached through the dashboard, by whatever spelling."""
        cookie = self.cookie()
        for path in (b"/ui/coder/x", b"/ui/healthz", b"/ui/%61pi/backends", b"/ui/ui/", b"/ui//api/backends"):
            self.assertEqual(self.client().get(path, cookie).error()[0], 404, path)

    def test_without_a_session(self) -> None:
        """401 as JSON: no page is expected there."""
        for path in (b"/ui/api/backends", b"/ui/v1/models"):
            status, error, _ = self.client().get(path, b"").error()
            self.assertEqual((status, error["code"]), (401, "invalid_api_key"))

    def test_what_changes_anything_is_json(self) -> None:
        """What a form could send is refused; a key of one's own lifts that."""
        cookie = self.cookie()
        for kind in (b"", b"Content-Type: text/plain\r\n", b"Content-Type: multipart/form-data\r\n"):
            for path in (b"/ui/api/backends/coder/start", b"/ui/v1/chat/completions"):
                status, error, _ = self.client().post(path, {}, cookie + kind).error()
                self.assertEqual((status, error["code"]), (415, "invalid_request"))
            self.assertEqual(self.client().post(b"/ui/session", {"key": "admin"}, kind).error()[0], 415)
        remembered = b"Authorization: Basic %b\r\n" % b64encode(b":admin")
        self.assertEqual(self.client().get(b"/ui/", remembered).answer()[0], 200)
        path = b"/ui/api/backends/coder/start"
        self.assertEqual(self.client().post(path, {}, remembered).error()[0], 415)
        self.assertEqual(self.started(), 0)
        self.assertEqual(self.client().post(b"/ui/api/backends/coder/start", {}, ADMIN).answer()[0], 202)
        head = b"DELETE /ui/api/leases/none HTTP/1.1\r\nHost: h\r\n%b\r\n" % cookie
        self.assertEqual(self.client().send(head).error()[0], 404)

    def test_pages_of_others_change_nothing(self) -> None:
        """Under /ui and under /api, with a cookie, a key, or neither; looking is not kept from them here."""
        cookie = self.cookie()
        for said in (b"Sec-Fetch-Site: cross-site\r\n", b"Origin: http://evil.example\r\n"):
            for path, headers in (
                (b"/ui/api/backends/coder/start", cookie + JSON),
                (b"/ui/v1/chat/completions", cookie + JSON),
                (b"/ui/session", JSON),
                (b"/api/backends/coder/start", ADMIN),
                (b"/api/backends/coder/start", b""),
            ):
                status, error, _ = self.client().post(path, {"key": "admin"}, headers + said).error()
                self.assertEqual((status, error["code"]), (403, "not_allowed"), path)
        self.assertEqual(self.started(), 0)
        ours = b"Sec-Fetch-Site: same-origin\r\nOrigin: http://h\r\n"
        self.assertEqual(
            self.client().post(b"/ui/api/backends/coder/start", {}, cookie + JSON + ours).answer()[0], 202
        )

    def test_without_keys_pages_of_others_change_nothing_either(self) -> None:
        """It is the operator's own browser that could be made to ask."""
        self.build((CODER, CHAT))
        self.site.authenticator = Authenticator(())
        foreign = b"Origin: http://evil.example\r\n"
        self.assertEqual(self.client().post(b"/api/backends/coder/start", {}, foreign).error()[0], 403)
        self.assertEqual(self.client().post(b"/api/backends/coder/start", {}, b"").answer()[0], 202)
