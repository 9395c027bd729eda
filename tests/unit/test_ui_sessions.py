"""Sessions of the dashboard, their cookie, and what pages of others may not do: without a proxy."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import Refusal
from llmproxy.http.headers import Fields
from llmproxy.web.crosssite import SAFE, refuse_cross_site
from llmproxy.web.ui import cookies
from llmproxy.web.ui.sessions import IDLE, LONGEST, Sessions


def sessions(**limits: float) -> Sessions:
    numbers = count()
    made = Sessions(lambda: f"token-{next(numbers)}")
    for name, value in limits.items():
        setattr(made, name, value)
    return made


def test_a_session_is_found_by_its_id_alone() -> None:
    """It has the key that was signed in with; another id, or a part of it, finds nothing."""
    open_ones = sessions()
    token = open_ones.open(b"secret", 0.0)
    found = open_ones.find(token, 1.0)
    assert found is not None
    assert found.secret == b"secret"
    for other in ("", token[:-1], token + "x", "token-1", "\udcff"):
        assert open_ones.find(other, 1.0) is None


def test_the_id_is_not_kept() -> None:
    """Nothing of the session tells its id, and nothing printed tells the key."""
    open_ones = sessions()
    token = open_ones.open(b"hidden", 0.0)
    found = open_ones.find(token, 0.0)
    assert token.encode() not in found.digest if found is not None else False
    assert "hidden" not in repr(found)
    assert "hidden" not in repr(open_ones)


def test_a_session_that_nobody_uses_ends() -> None:
    """Use puts that off, but not for longer than a session may last."""
    open_ones = sessions()
    token, other = open_ones.open(b"a", 0.0), open_ones.open(b"b", 0.0)
    now = 0.0
    while now + IDLE - 1 < LONGEST:
        now += IDLE - 1
        assert open_ones.find(token, now) is not None
    assert open_ones.find(other, now) is None
    assert open_ones.find(token, LONGEST) is None
    assert len(open_ones) == 0


def test_the_number_of_sessions_is_bounded() -> None:
    """The one that was not used for longest makes room."""
    open_ones = sessions(most=3)
    tokens = [open_ones.open(b"k", float(at)) for at in range(3)]
    open_ones.find(tokens[0], 10.0)
    open_ones.open(b"k", 11.0)
    assert len(open_ones) == 3
    assert open_ones.find(tokens[0], 12.0) is not None
    assert open_ones.find(tokens[1], 12.0) is None


def test_signing_out_ends_one_session() -> None:
    """And no other."""
    open_ones = sessions()
    one, other = open_ones.open(b"k", 0.0), open_ones.open(b"k", 0.0)
    found = open_ones.find(one, 0.0)
    assert found is not None
    open_ones.close(found)
    assert open_ones.find(one, 0.0) is None
    assert open_ones.find(other, 0.0) is not None


# -- the cookie -----------------------------------------------------------------------------------------


def test_the_cookie_is_read_back() -> None:
    """Among others, at its own port."""
    fields = Fields([(b"Host", b"h:8000"), (b"Cookie", b"a=b; llmproxy_session_8000=abc; c=d")])
    assert cookies.read(fields) == "abc"
    other = Fields([(b"Host", b"h:9000"), (b"Cookie", b"llmproxy_session_8000=abc")])
    assert cookies.read(other) is None
    plain = Fields([(b"Host", b"h"), (b"Cookie", b"x=1"), (b"Cookie", b"llmproxy_session=abc")])
    assert cookies.read(plain) == "abc"


def test_the_cookie_is_for_the_dashboard_alone() -> None:
    """No script reads it, no other site sends it, and it goes with the browser."""
    told = cookies.setting(Fields([(b"Host", b"h:8000")]), "abc", secure=False).decode()
    name, *attributes = told.split("; ")
    assert name == "llmproxy_session_8000=abc"
    assert set(attributes) == {"HttpOnly", "SameSite=Strict", "Path=/ui/"}
    assert cookies.setting(Fields([]), "abc", secure=True).endswith(b"; Secure")
    assert b"Max-Age=0" in cookies.clearing(Fields([]))


@given(st.binary(max_size=60), st.binary(max_size=30))
def test_cookies_of_others_do_no_harm(cookie: bytes, host: bytes) -> None:
    """Whatever is sent, nothing is raised."""
    fields = Fields([(b"Cookie", cookie), (b"Host", host)])
    assert cookies.read(fields) is None or b"llmproxy_session" in cookie
    cookies.setting(fields, "t", secure=False)


def test_no_resource_outside_sees_the_cookie() -> None:
    """It gets the session's key instead of whatever was there, or just no cookie."""
    fields = Fields([(b"Cookie", b"a=b"), (b"X-Api-Key", b"other"), (b"accept", b"*/*")])
    inside = cookies.without_credentials(fields, b"key")
    assert inside.raw == [(b"accept", b"*/*"), (b"Authorization", b"Bearer key")]
    assert cookies.without_credentials(fields).raw == [(b"X-Api-Key", b"other"), (b"accept", b"*/*")]


# -- pages of others ------------------------------------------------------------------------------------

HOST = (b"Host", b"llm.example:8000")


@pytest.mark.parametrize(
    "said",
    [
        [],
        [(b"Sec-Fetch-Site", b"same-origin")],
        [(b"Sec-Fetch-Site", b"none")],
        [(b"Origin", b"http://LLM.example:8000")],
        [(b"Origin", b"https://llm.example:8000"), (b"Sec-Fetch-Site", b"same-origin")],
    ],
)
def test_programs_and_our_own_pages_may_change_things(said: list[tuple[bytes, bytes]]) -> None:
    """Nobody says that they come from elsewhere."""
    refuse_cross_site(b"POST", Fields([HOST, *said]))


@pytest.mark.parametrize(
    "said",
    [
        [(b"Sec-Fetch-Site", b"cross-site")],
        [(b"Sec-Fetch-Site", b"same-site")],
        [(b"Sec-Fetch-Site", b"")],
        [(b"Origin", b"null")],
        [(b"Origin", b"")],
        [(b"Origin", b"http://evil.example")],
        [(b"Origin", b"http://llm.example")],
        [(b"Origin", b"http://llm.example:8000.evil.example")],
        [(b"Origin", b"http://evil.example"), (b"Sec-Fetch-Site", b"same-origin")],
        [(b"Origin", b"http://llm.example:8000"), (b"Sec-Fetch-Site", b"cross-site")],
    ],
)
@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH", b"DELETE", b"CHANGE"])
def test_pages_of_others_may_not(said: list[tuple[bytes, bytes]], method: bytes) -> None:
    """By either field, whatever the other one says; looking is something else."""
    with pytest.raises(Refusal) as refused:
        refuse_cross_site(method, Fields([HOST, *said]))
    assert (refused.value.status, refused.value.code) == (403, "not_allowed")
    for safe in SAFE:
        refuse_cross_site(safe, Fields([HOST, *said]))


def test_without_a_host_no_page_is_ours() -> None:
    """An empty one matches nothing."""
    with pytest.raises(Refusal):
        refuse_cross_site(b"POST", Fields([(b"Origin", b"http://")]))
