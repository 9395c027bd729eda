"""Upgrades that do not come about: all is as it was."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from llmproxy.errors import UpgradeFailed
from llmproxy.upgrade.new import AGREE, SEE
from llmproxy.upgrade.old import PREPARE, QUIET, TAKE_OVER
from tests.unit.test_front import OK
from tests.unit.test_upgrade import UpgradeCase


class NoUpgradeTests(UpgradeCase):
    """When the new process does not come up, all is as it was."""

    def refused(self, done: Deferred[Any], words: str) -> None:
        self.assertIn(words, str(self.failureResultOf(done, UpgradeFailed).value))
        self.assertFalse(self.fleet.scheduler.frozen)
        client = self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        self.ready()
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)
        # And it may be tried again.
        self.upgrade()

    def ends_undecided(self) -> None:
        """The new one does, having started and stopped nothing."""
        self.clock.turn()
        self.clock.advance(AGREE)
        self.clock.turn()
        self.assertEqual(self.told, ["stop"])
        self.assertEqual(self.new.did, [])
        self.assertTrue(self.new_fleet.scheduler.frozen)

    def test_it_ends(self) -> None:
        """With whatever status."""
        done = self.upgrader.upgrade()
        os.close(self.children[0].line)
        self.clock.turn()
        self.assertEqual(self.children[0].did, ["kill"])
        self.children[0].ends("status 1")
        self.refused(done, "it ended with status 1")

    def test_it_says_why(self) -> None:
        """A wrong setting, for one; its end comes later, in the middle of the next upgrade."""
        done = self.upgrader.upgrade()
        with socket.socket(fileno=self.children[0].line) as end:
            end.send(json.dumps({"say": "failed", "why": "listen: no"}).encode())
            self.clock.turn()
        self.assertIn("listen: no", str(self.failureResultOf(done, UpgradeFailed).value))
        again = self.upgrader.upgrade()
        self.children[0].ends("status 2")
        self.assertNoResult(again)
        self.children[1].ends("status 3")
        os.close(self.children[1].line)
        self.refused(again, "status 3")

    def test_it_takes_too_long(self) -> None:
        """To be prepared."""
        done = self.upgrader.upgrade()
        self.clock.advance(PREPARE)
        os.close(self.children[0].line)
        self.refused(done, "not prepared")

    def test_something_is_under_way_for_too_long(self) -> None:
        """What only the old process can end: a container that is being created."""
        self.world.hold_starts = True
        self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        done = self.upgrader.upgrade()
        self.come_up()
        self.clock.turn()
        self.clock.advance(SEE)
        self.clock.turn()
        self.clock.pump([1.0] * int(QUIET + 1))
        self.clock.turn()
        self.assertIn("coder is being created", str(self.failureResultOf(done, UpgradeFailed).value))
        self.assertEqual(self.told, ["stop"])
        self.assertEqual(self.old.did, [])

    def test_it_dies_when_it_should_serve(self) -> None:
        """The old one accepts and decides again."""
        done = self.upgrader.upgrade()
        child = self.children[0]
        with socket.socket(fileno=child.line) as end:
            end.send(json.dumps({"say": "prepared", "pid": 1, "version": "2"}).encode())
            self.clock.turn()
            self.assertEqual(self.old.did, ["pause"])
            self.assertTrue(self.fleet.scheduler.frozen)
            self.clock.advance(TAKE_OVER)
        self.assertEqual(self.old.did, ["pause", "resume"])
        self.refused(done, "did not serve")

    def test_the_process_between_is_killed_as_the_new_one_would_serve(self) -> None:
        """One of them decides, and it is the old one: the new one has asked, and had no answer."""
        self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        done = self.committed()
        self.successor._line.doRead()
        self.children[0].ends("signal 9")
        self.ends_undecided()
        self.refused(done, "signal 9")

    def test_the_old_one_is_killed_as_the_new_one_would_serve(self) -> None:
        """It ends and decides nothing; whoever starts the next one finds all as it was."""
        self.committed()
        assert self.upgrader._line is not None
        self.upgrader._line.close()
        self.ends_undecided()

    def test_what_runs_is_the_old_one_s_to_stop(self) -> None:
        """Also when backends end with the proxy: that one goes on."""
        self.config = evolve(self.config, stop_backends_on_exit=True)
        self.warm("coder")
        done = self.committed()
        self.children[0].ends("signal 9")
        self.failureResultOf(done, UpgradeFailed)
        self.clock.turn()
        self.assertEqual(self.told, ["stop"])
        self.successResultOf(self.new_fleet.close())
        self.assertEqual([call for call in self.world.calls if call[0] == "stop"], [])
        self.assertEqual(self.backend("coder").state, "ready")

    def test_what_it_knows_is_not_written_down(self) -> None:
        """The old one knows more."""
        self.warm("coder")
        done = self.committed()
        for _ in range(3):
            self.successor._line.doRead()
            self.clock.advance(0)
        self.assertEqual(list(self.new_fleet.scheduler.leases), [])
        self.fleet.scheduler.lease("0", 0.25, 600, "a game")
        self.upgrader.parts.state.flush()
        self.children[0].ends("signal 9")
        self.failureResultOf(done, UpgradeFailed)
        self.clock.turn()
        self.assertEqual(self.told, ["stop"])
        self.new_state.close()
        self.assertEqual(len(self.upgrader.parts.state.read()["leases"]), 1)

    def test_the_old_one_is_told_to_end_meanwhile(self) -> None:
        """Then no other one serves, whatever it has been told, and backends that end with the proxy do."""
        for far in (self.upgrader.upgrade, self.committed):
            done = far()
            assert self.upgrader._line is not None
            for tell in self.old.ending:
                tell()
            self.assertIn("this process ends", str(self.failureResultOf(done, UpgradeFailed).value))
            self.assertEqual(self.children[-1].did, ["kill"])
            self.assertFalse(self.fleet.scheduler.frozen)
            if far == self.committed:
                self.clock.turn()
                self.assertEqual((self.told, self.new.did), (["stop"], []))
                self.assertEqual(self.old.did, ["pause", "resume"])
            else:
                os.close(self.children[-1].line)

    def test_the_old_one_is_told_to_end_as_it_has_given_its_place_away(self) -> None:
        """The new one has it by then; the sockets are that one's, and not ended with this process."""
        self.committed()
        self.clock.turn()
        self.clock.advance(AGREE)
        self.clock.turn()
        self.assertEqual(self.told, ["serves"])
        for tell in self.old.ending:
            tell()
        self.assertEqual(self.children[0].did, ["let go"])
        self.assertEqual(self.old.did, ["pause", "hand over"])
        self.assertTrue(self.fleet.scheduler.frozen)
        self.children[0].ends()
        self.assertEqual(self.old.did, ["pause", "hand over"])

    def test_the_new_one_is_told_to_end_before_it_serves(self) -> None:
        """It does not ask for a place that it would leave empty, and does not end the other one's sockets."""
        for heard in ((), ("hello", "go")):
            self.build()
            done = self.committed()
            for _ in heard:
                self.successor._line.doRead()
            for tell in self.new.ending:
                tell()
            self.clock.advance(AGREE)
            self.clock.turn()
            self.assertEqual((self.told, self.new.did), ([], ["hand over"]))
            self.assertEqual(self.children[0].did, ["kill"])
            self.children[0].ends("signal 9")
            self.refused(done, "signal 9")

    def test_the_new_one_is_told_to_end_when_it_has_been_given_the_place(self) -> None:
        """It has not read that yet; what was given counts, and the old one ends with it."""
        self.committed()
        for _ in ("hello", "go"):
            self.successor._line.doRead()
        self.clock.advance(AGREE)
        assert self.upgrader._line is not None
        self.upgrader._line.doRead()
        self.assertEqual(self.children[0].did, ["let go"])
        for tell in self.new.ending:
            tell()
        self.assertEqual((self.told, self.new.did), (["serves"], ["resume"]))
        self.assertFalse(self.new_fleet.scheduler.frozen)

    def test_one_at_a_time(self) -> None:
        """And none before this process serves itself."""
        first = self.upgrader.upgrade()
        self.failureResultOf(self.upgrader.upgrade(), UpgradeFailed)
        os.close(self.children[0].line)
        self.children[0].ends("status 1")
        self.failureResultOf(first, UpgradeFailed)
        self.old.running = False
        self.failureResultOf(self.upgrader.upgrade(), UpgradeFailed)
