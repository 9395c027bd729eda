"""What proxies write into a service's labels for each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.labels import says_something
from llmproxy.runtimes.swarm_labels import FORGOTTEN, RUN, USED, Use, needed_at, note, others, used_at

NOW = 1_800_000_000.0


def written(labels: dict[str, str], changed: dict[str, str | None]) -> dict[str, str]:
    return {label: text for label, text in {**labels, **changed}.items() if text is not None}


def test_each_has_its_own_word() -> None:
    """What one proxy says is read by the other, and tells itself nothing."""
    labels = written({"llmproxy.route": "m"}, note({}, "one", NOW, 3))
    labels = written(labels, note(labels, "two", NOW + 5, 1))
    assert labels == {"llmproxy.route": "m", USED + "one": f"3@{NOW:.0f}", USED + "two": f"1@{NOW + 5:.0f}"}
    assert others(labels, "one") == [Use("two", 1, NOW + 5)]
    assert others(labels, "two") == [Use("one", 3, NOW)]
    everybody = others(labels, "three")
    assert used_at(everybody) == NOW + 5
    assert (needed_at(everybody, 1), needed_at(everybody, 2), needed_at(everybody, 4)) == (NOW + 5, NOW, None)
    assert used_at([]) is None


def test_those_that_have_ended_are_forgotten() -> None:
    """Notes of proxies that have said nothing for long are taken away by whoever writes next."""
    labels = {USED + "old": f"1@{NOW - FORGOTTEN - 1:.0f}", USED + "new": f"1@{NOW - 60:.0f}"}
    assert written(labels, note(labels, "me", NOW, 2)).keys() == {USED + "new", USED + "me"}


@given(st.dictionaries(st.sampled_from([USED + "a", USED, USED + "b.c", "llmproxy.use", "x"]), st.text()))
def test_anything_else_is_nobody_s(labels: dict[str, str]) -> None:
    """What is no note is left alone."""
    read = others(labels, "me")
    assert all(use.replicas >= 0 for use in read) or not read
    after = written(labels, note(labels, "me", NOW, 1))
    noted = {USED + use.proxy for use in read}
    assert {label: text for label, text in labels.items() if label not in noted}.items() <= after.items()


def test_they_are_no_settings() -> None:
    """None of them is taken for a setting of a route."""
    assert not any(map(says_something, (RUN, USED + "0a1b2c3d")))
    assert says_something("llmproxy.route")
