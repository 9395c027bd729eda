"""An upgrade as the operator asks for it: by the API, and by the command."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from llmproxy.cli.upgrade_command import upgrade as command
from llmproxy.errors import UpgradeFailed
from tests.unit.fake_proxy import run
from tests.unit.test_api import ApiCase

DONE = {
    "pid": 17,
    "version": "2.0",
    "seconds": 0.62,
    "paused": 0.003,
    "former": {"pid": 16, "version": "1.9", "in_flight": 2},
}


class AskedTests(ApiCase):
    """``POST /api/upgrade``."""

    def test_it_is_answered_when_it_is_done(self) -> None:
        """With who serves now."""
        done: Deferred[dict[str, Any]] = Deferred()
        self.site.upgrade = lambda: done
        client = self.post("upgrade")
        self.turn()
        self.assertEqual(client.take(), b"")
        done.callback(DONE)
        self.assertEqual(self.answered(client), (200, DONE))

    def test_it_is_said_why_it_cannot_be(self) -> None:
        """409, and that all is as it was."""
        self.site.upgrade = lambda: fail(UpgradeFailed("it was not prepared within 90 s"))
        status, _, message, hint = self.refused(self.post("upgrade"))
        self.assertEqual((status, message), (409, "Not upgraded: it was not prepared within 90 s."))
        self.assertIn("as before", hint)
        self.site.upgrade = None
        self.assertEqual(self.refused(self.post("upgrade"))[0], 409)

    def test_a_fault_is_one(self) -> None:
        """500, and the log has it."""
        self.site.upgrade = lambda: fail(ZeroDivisionError())
        self.assertEqual(self.answered(self.post("upgrade"))[0], 500)

    def test_it_is_for_administrators(self) -> None:
        """Nothing begins for others."""
        self.site.upgrade = lambda: succeed(DONE)
        client = self.client().post(b"/api/upgrade", b"", b"Authorization: Bearer client\r\n")
        self.assertEqual(client.answer()[0], 403)


def test_the_command_tells_who_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the process before it still does; with --json all of it."""
    monkeypatch.setattr("llmproxy.cli.client.Api.upgrade", lambda _: DONE)
    monkeypatch.setenv("LLMPROXY_ADMIN_KEY", "x")
    done = run("upgrade")
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        "llmproxy 2.0 serves (process 17) after 0.6 s",
        "before it was 1.9 (process 16), and finishes 2 requests",
    ]
    assert '"paused": 0.003' in run("upgrade", "--json").output
    assert command.name == "upgrade"
