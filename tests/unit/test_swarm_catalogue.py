"""When labels of services say another thing."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.labels import LabelledContainer
from llmproxy.runtimes.interface import RuntimeUnavailable
from llmproxy.runtimes.swarm_catalogue import AGAIN_AFTER, SETTLED, Labels

Found = list[LabelledContainer]


class LabelsTests(SynchronousTestCase):
    """A manager that answers when the test says so."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[Found]] = []
        self.told = 0
        self.labels = Labels(self.clock, self.ask)
        self.labels.changed.append(self.tell)

    def ask(self) -> Deferred[Found]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def tell(self) -> None:
        self.told += 1

    def hears(self, *idle: str) -> None:
        """After an event each of these services is a route."""
        self.labels.look()
        self.clock.advance(SETTLED)
        found = [LabelledContainer(f"s{number}", {"idle": each}) for number, each in enumerate(idle)]
        self.asked[-1].callback(found)

    def test_only_news(self) -> None:
        """Most changes of services change nothing of that."""
        self.hears()
        self.assertEqual(self.told, 0)
        self.hears("1m")
        self.hears("1m")
        self.assertEqual(self.told, 1)
        self.hears("2m")
        self.hears()
        self.assertEqual(self.told, 3)

    def test_many_events(self) -> None:
        """They are read once, and once more where something came meanwhile."""
        for _ in range(100):
            self.labels.look()
        self.clock.advance(SETTLED)
        self.assertEqual(len(self.asked), 1)
        for _ in range(100):
            self.labels.look()
        self.clock.advance(SETTLED)
        self.assertEqual(len(self.asked), 1)
        self.asked[0].callback([])
        self.clock.advance(SETTLED)
        self.assertEqual(len(self.asked), 2)

    def test_no_leader(self) -> None:
        """They are read again after a while, or at the next event."""
        self.labels.look()
        self.clock.advance(SETTLED)
        self.asked[0].errback(RuntimeUnavailable("no leader"))
        self.clock.advance(AGAIN_AFTER)
        self.assertEqual(len(self.asked), 2)
        self.asked[1].errback(RuntimeUnavailable("no leader"))
        self.hears("1m")
        self.assertEqual((len(self.asked), self.told), (3, 1))
        self.labels.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closed(self) -> None:
        """Nothing is told or asked any more."""
        self.labels.look()
        self.clock.advance(SETTLED)
        self.labels.close()
        self.asked[0].callback([LabelledContainer("s", {})])
        self.labels.look()
        self.assertEqual((self.told, self.clock.getDelayedCalls()), (0, []))
