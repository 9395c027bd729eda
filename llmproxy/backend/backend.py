"""One backend, as requests, the operator and the scheduler see it.

Requests enter by :meth:`Backend.enter` and are told by the :class:`~llmproxy.backend.gate.Waiter` protocol.
What is decided is carried out in :mod:`llmproxy.backend.conduct`.
"""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred

from llmproxy.backend.conduct import Conduct
from llmproxy.backend.effects import State
from llmproxy.backend.gate import Waiter
from llmproxy.config.model import BackendSpec
from llmproxy.errors import Refusal, shutting_down
from llmproxy.scheduling.outlook import Leave

__all__ = ["Backend"]


PUNCTUAL = 0.05
"""Seconds before the end of a cool-down in which a request is not early: clients that obey Retry-After come
to the millisecond, and timers are less exact than that (curl was refused once more every third time)."""


class Backend(Conduct):
    """One model server behind a route."""

    # -- requests -----------------------------------------------------------------------------------

    def enter(self, waiter: Waiter, *, again: bool = False) -> bool:
        """Ask for the backend on behalf of a request; starts it when it is absent.

        :param again: it was admitted before, see :meth:`llmproxy.backend.gate.Gate.enter`.
        :return: True when the waiter is held now; False when it has been told already.
        """
        refusal = self.refusal
        if refusal is not None and self.state == "failed" and (self.retry_in or 1.0) < PUNCTUAL:
            # It comes when it was told to.
            self.lifecycle.cooled()
            refusal = self.refusal
        if refusal is not None:
            waiter.refused(refusal)
            return False
        try:
            held = self.gate.enter(waiter, again=again)
        except Refusal as full:
            told = evolve(full, retry_after=self.retry_after(full.retry_after or 1.0))
            waiter.refused(told.about(self.name, self.state))
            return False
        if held:
            self._wanted()
        return held

    def _wanted(self) -> None:
        self.hurry()
        if self.state in ("absent", "sleeping"):
            self.surroundings.scheduler.wanted(self)

    def granted(self) -> None:
        """There is room for it: start it, or wake it, unless it is wanted no more."""
        self.wishes.unfit = None
        # Its memory may have been waited for, and it may have been stopped meanwhile.  That all who waited
        # have left makes no difference.
        if not self._closing and (self.wanted_since is not None or self.admission.abandoned):
            self.lifecycle.demand()

    def refuse_waiting(self, refusal: Refusal) -> None:
        """It is not started for those who wait; others may come."""
        told = self.wishes.unfit = refusal.about(self.name, self.state)
        self.wishes.run_since = None
        self.gate.dismiss(lambda waiter: waiter.refused(told))

    def visit(self, waiter: Waiter) -> bool:
        """Reach the backend if it is ready, without waking it or keeping it awake (monitoring).

        :return: whether the waiter was admitted.
        """
        self.hurry()
        return self.gate.visit(waiter)

    def leave(self, waiter: Waiter) -> None:
        """A held waiter gives up its place; the start goes on."""
        self.admission.leave(waiter, self.surroundings.clock.seconds())
        if not self.admission.waiting and self.state in ("absent", "sleeping"):
            # Whoever left for it did so for nothing; a later start is no swap.
            self.wishes.swapped_in = False

    def keep(self, seconds: float) -> None:
        """The request that has just ended asks for it to be kept so long, instead of its idle time."""
        self._lingering.ask(min(seconds, self.spec.max_keep_alive), self.gate.used_at)
        if self.state == "ready" and not self.gate.busy:
            self.arm("idle")

    @property
    def roomy(self) -> bool:
        """A request would be handed over at once."""
        return self.refusal is None and self.admission.roomy

    @property
    def refusal(self) -> Refusal | None:
        """Why no request is taken at present; None when they are."""
        if self._closing:
            return shutting_down().about(self.name, self.state)
        if self._failure is not None:
            return self._refusal_for(self._failure)
        return None

    # -- what the operator and the fleet want -------------------------------------------------------

    def watch(self) -> Deferred[None]:
        """Follow what the runtime knows of it; fires when the present state is known."""
        return self.runtime.watch(self.spec, self).addCallback(lambda _: self._read_facts())

    def demand(self) -> None:
        """Start it without a request (the operator, or ``prewarm``)."""
        self.wishes.unfit = None
        runs = self.state in ("ready", "starting", "waking") and self.wishes.stop is None
        if self._failure is None and not self._closing and not runs:
            # A request that comes while it ends waits in the queue; a wish has nothing else to remember it.
            self.wishes.run_since = self.surroundings.clock.seconds()
        if self._failure is None and not self._closing:
            self._wanted()

    def stop_wanted(self, cause: str, *, force: bool = False) -> None:
        """End it when it has drained, and nobody starts beside it; at once when ``force``."""
        self.wishes.run_since = None
        self.admission.abandoned = False
        if force or self.state not in ("ready", "draining", "sleeping"):
            # What has not served yet is in nobody's way but its own.
            self.lifecycle.leave(cause)
        else:
            self.wishes.stop = cause
            if (self._timers.left("drain") or 0.0) > self.surroundings.drain:
                # It has been leaving for another one so far, and may have had minutes for that.
                self.arm("drain")
            self.surroundings.scheduler.look(self)

    def sleep_wanted(self, cause: str) -> None:
        """Put it to sleep when it has drained, and nobody starts beside it.

        :raises ValueError: it cannot sleep.
        """
        if not self.needs.sleep:
            raise ValueError(self.name)
        self.wishes.run_since = None
        if self.state == "ready" and self.gate.busy:
            self.wishes.cause, self.wishes.leaves_as = cause, str(min(self.needs.sleep))
            self.lifecycle.drain(cause)
        elif self.state == "ready":
            self.wishes.sleep = cause
            self.surroundings.scheduler.look(self)

    def carry_out(self, leave: Leave) -> None:
        """The scheduler has decided that it leaves."""
        wishes = self.wishes
        if leave.why == "drained":
            cause = wishes.cause
        elif leave.why == "idle":
            limit = self.spec.sleep_idle if self.state == "sleeping" else self._idle_limit
            cause = wishes.sleep or f"idle for {limit:g} s"
        else:
            cause = wishes.stop or leave.why
        wishes.cause, wishes.leaves_as = cause, leave.how
        if leave.drain:
            self.lifecycle.drain(cause)
        elif leave.how == "stop":
            self.lifecycle.leave(cause)
        else:
            self.lifecycle.doze(int(leave.how), cause)

    def reset(self) -> None:
        """Forget failed starts, so that the next request tries again."""
        self.lifecycle.forgive()

    def refuse_all(self) -> None:
        """Take no more requests and send away those who wait: the proxy ends."""
        self._closing = True
        self.wishes.run_since = None
        self._launcher.give_up()
        # A start goes on without the proxy, which is back before it is over, most often.
        refusal = shutting_down()
        told = evolve(refusal, retry_after=max(refusal.retry_after or 1.0, self.retry_after(1.0)))
        told = told.about(self.name, self.state)
        self.gate.dismiss(lambda waiter: waiter.refused(told))

    def when(self, *states: State) -> Deferred[None]:
        """Fire when it is in one of these states."""
        return self._witnesses.when(self.state, states)

    def retune(self, spec: BackendSpec) -> None:
        """Settings changed that leave the running backend as it is."""
        self.spec = spec
        self.admission.max_waiting = spec.max_waiting
        self.admission.max_in_flight = spec.max_in_flight
        self._serving.retuned()
        if spec.models is not None:
            self.identity.models = spec.models
        self.surroundings.renamed()
        self._read_facts()
        if self.state == "ready":
            self.arm("idle")
        elif self.state == "sleeping":
            self.arm("sleep_idle")
        self.gate.advance()

    def retire(self, cause: str, *, succeeded: bool) -> Deferred[None]:
        """It is configured no more: those who wait go to its successor, and it ends when it has drained.

        Fires when it has ended; where its runtime does not say so, when that has been waited for long enough.
        """
        self._closing = self._retired = True
        self._launcher.give_up()
        self.gate.dismiss(lambda waiter: waiter.handed_on(self.name if succeeded else None))
        self.reset()
        self.stop_wanted(cause)
        return self.when("absent", "failed").addCallback(self._has_left)

    def _has_left(self, _: None) -> Deferred[None] | None:
        if self.unsure:
            return self._doubt.news().addCallback(self._has_left)
        self.close()
        return None

    def ended(self) -> Deferred[None]:
        """Fires when it has ended, or nobody is at that any more."""
        ended = self.when("absent", "failed")
        return ended.addCallback(lambda _: self._doubt.news() if self._doubt.ending else None)

    @property
    def changing(self) -> bool:
        """The runtime or the engine has been asked for something, and has not answered."""
        asked = self._launcher.launching or (self._retired and self.unsure)
        return asked or self.state in ("stopping", "falling_asleep", "waking")

    def hand_over(self) -> None:
        """Another process decides from now on: those who wait go there, what is in flight goes on here, and
        the backend itself is left as it is."""
        self._closing = True
        self.gate.dismiss(lambda waiter: waiter.handed_on(self.name))
        self.close()

    def close(self) -> None:
        """Let go of timers and connections; the backend itself is left as it is."""
        self._closing, self._retired = True, False
        self._launcher.give_up()
        self._engine.leave_alone()
        self._serving.ask_no_more()
        self._startup.over()
        self._diary.over()
        self._timers.close()
        self._doubt.close()
        self.gate.close()
        self._witnesses.dismiss()
