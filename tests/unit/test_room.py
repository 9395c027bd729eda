"""What bodies take while their requests are held, the changed ones included."""

from __future__ import annotations

import errno
from unittest import mock

from llmproxy.config.model import Limits
from llmproxy.web import body as bodies
from tests.front import CHAT, CODER, FrontCase
from tests.unit.test_front import OK

LONG = "x" * 5000


class RoomTests(FrontCase):
    """Of a proxy with a model that is known by another name."""

    def test_a_changed_body_takes_the_place_of_the_clients(self) -> None:
        """Only what is sent is kept, it is counted, and it is given back when it is over."""
        client = self.client().post(b"/v1/completions", {"model": "gpt-4", "prompt": LONG})
        room = self.site.room
        held = room.memory
        self.assertGreater(held, 5000)
        self.assertLess(held, 5200)
        self.ready()
        self.assertIn(b'"sitechat"', self.body())
        self.assertEqual(len(self.body()), held)
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)
        self.assertEqual((room.memory, room.disk), (0, 0))

    def test_it_waits_in_a_file_where_memory_is_full(self) -> None:
        """And is sent from there."""
        self.site.bound(Limits(body_memory=100))
        client = self.client().post(b"/v1/completions", {"model": "gpt-4", "prompt": LONG})
        self.assertEqual(self.site.room.memory, 0)
        self.assertGreater(self.site.room.disk, 5000)
        self.ready()
        sent = self.far().transport.producer
        while sent is not None and not self.body().endswith(b"}"):
            sent.resumeProducing()
        self.assertIn(b'"sitechat"', self.body())
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)
        self.assertEqual(self.site.room.disk, 0)

    def test_no_room_for_it_is_told(self) -> None:
        """507 when it would be too much, or the file system takes no more; no model is started for it."""
        self.build([CODER, CHAT])
        room = self.site.room
        original = bodies.Body.replace
        for fault, logged in ((bodies.Full("More than may be."), 0), (OSError(errno.ENOSPC, "full"), 1)):
            with mock.patch.object(bodies.Body, "replace", side_effect=fault):
                client = self.client().post(b"/v1/completions", {"model": "gpt-4", "prompt": LONG})
            self.assertEqual(client.error()[0], 507)
            self.assertEqual(len(self.log.failures), logged)
            self.log.failures.clear()
        self.assertIs(bodies.Body.replace, original)
        self.assertEqual((room.memory, room.disk), (0, 0))
        self.assertEqual(self.backend("chat").state, "absent")
