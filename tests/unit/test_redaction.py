"""What is taken for a secret, and where it is kept out of what is shown."""

from __future__ import annotations

import base64
import json
import time
from io import StringIO
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from llmproxy.config.compose import ComposeService
from llmproxy.config.describe import describe
from llmproxy.config.model import LogSettings
from llmproxy.config.resolve import Sources, read_sources
from llmproxy.engines.redaction import flagged_secrets, redact, redact_known, secret_values
from llmproxy.observe.log import LogObserver
from llmproxy.web.accesslog import AccessLog, Entry
from tests.front import FrontCase

S = "Xq7" + "SECRET" * 5
"""Has every sign of a secret but a known beginning."""

SHAPES = [
    f"Authorization: Basic {base64.b64encode(S.encode()).decode()}",
    f"cookie: session={S}; other={S}",
    f"'Set-Cookie': '{S}; Path=/'",
    f"x-api-key: {S}",
    f'"x-api-key": "{S}"',
    f"pulling from https://me:{S}@registry.example/v2/",
    f"proxy http://{S}:{S}@10.0.0.1:3128",
    f"remote https://{S}@github.example/x.git",
    f"https://cdn.example/model?Expires=1&Signature={S}&Key-Pair-Id=K",
    f"https://s3.example/x?X-Amz-Signature={S}&X-Amz-Credential={S}",
    f"GET /v1/models?api_key={S} HTTP/1.1",
    f"llmp_{S}",
    f"ghp_{S}",
    f"github_pat_{S}",
    f"glpat-{S}",
    f"xoxb-{S}",
    f"dckr_pat_{S}",
    f"nvapi-{S}",
    "AKIAIOSFODNN7SECRETX",
    f"AIzaSy{S}",
    f"eyJhbGciOiJIUzI1{S}.eyJzdWIiOiIx{S}.{S}",
    f"password={S}",
    f"password: '{S}'",
    f'{{"auths": {{"r": {{"auth": "{S}"}}}}}}',
    f"X-Registry-Auth: {S}",
    f"identitytoken={S}",
    f"access_token: {S}",
    f"AWS_ACCESS_KEY={S}",
    f"MY_TOKEN = {S}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n{S}\n-----END RSA PRIVATE KEY-----",
    f"-----BEGIN PRIVATE KEY-----\n{S}",
]

HARMLESS = [
    "basic authentication failed for user",
    "non-default args: max_tokens=16, stop_token_ids=[], eos_token='</s>', bos_token_id: 1",
    "password authentication failed",
    "tcp://docker@build:2375 does not answer",
    "GET /v1/models?limit=5&after=abc",
    "the cookie jar is empty; a token of 5 characters; keys: 3",
    "author: somebody, authority=x",
    "tokenizer='Qwen/Qwen2.5', revision=None, TOKENIZERS_PARALLELISM=false",
    "http://user@host/path",
]


@pytest.mark.parametrize("text", SHAPES)
def test_a_secrets_shape_is_enough(text: str) -> None:
    """What nobody has told the proxy is found by how it looks, or by what stands before it."""
    shown = redact(text, ())
    assert "SECRET" not in shown
    assert base64.b64encode(S.encode()).decode()[:12] not in shown
    assert "***" in shown


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_words_stay(text: str) -> None:
    """What is said of tokens, keys and passwords without giving one is left as it is."""
    assert redact(text, ()) == text


@given(st.text(min_size=4).filter(lambda secret: secret not in "***"))
def test_known_secrets_are_found_in_every_form(secret: str) -> None:
    """As they are, in a URL, in JSON, and in base64."""
    forms = [secret, quote(secret, safe=""), json.dumps(secret), base64.b64encode(secret.encode()).decode()]
    for form in forms:
        shown = redact_known(f"<{form}>", [secret])
        assert "***" in shown
        assert len(form) < 6 or form not in shown


def test_long_lines_take_no_time() -> None:
    """However often a secret seems to begin."""
    began = time.process_time()
    for piece in (
        "https://a:",
        "Basic A",
        "password=",
        "cookie: ",
        "A_KEY",
        "eyJ",
        "-----BEGIN PRIVATE KEY-----",
        "?key=",
    ):
        redact(piece * 5_000, ("x" * 20,))
    assert time.process_time() - began < 5


def test_values_of_variables() -> None:
    """Their names say which of them are secrets; numbers, words and places are none."""
    environment = {
        "HF_TOKEN": "abcde",
        "my_api_key": "lower",
        "APIKEY": "other",
        "DB_PASSWORD": "p4ss",
        "TOKENIZERS_PARALLELISM": "false",
        "MAX_TOKENS": "8192",
        "API_KEY_FILE": "/run/secrets/key",
        "USE_TOKEN": "true",
        "TOKEN": "abc",
        "HTTPS_PROXY": "http://me:hunter22@proxy:3128",
        "KEYBOARD": "german",
    }
    assert set(secret_values(environment)) == {"abcde", "lower", "other", "p4ss", "hunter22"}


def test_flags_of_command_lines() -> None:
    """With the value behind an equals sign or in the next word."""
    words = ["serve", "--api-key", "first", "--hf-token=second", "--port", "8000", "--token"]
    assert flagged_secrets(words) == ("first", "second")
    assert flagged_secrets(()) == flagged_secrets(["--api-key", "--port"]) == ()


# -- the log ----------------------------------------------------------------------------------------------


def written(form: str, **event: object) -> str:
    """What the log has of an event."""
    file = StringIO()
    settings = LogSettings(format=form)  # type: ignore[arg-type]
    observer = LogObserver(file, lambda: settings, lambda: ("known-secret", 'with"quote'))
    observer({"log_level": LogLevel.error, "log_namespace": "x", "log_time": 1.0, **event})
    return file.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_event_brings_a_secret_into_the_log(form: str) -> None:
    """Neither what it says, nor its fields, nor the traceback of what went wrong."""
    try:
        raise ValueError(f"no such key: known-secret, Bearer {S}")
    except ValueError:
        failure = Failure()
    text = written(
        form,
        log_format="it failed: {why} of {whom}",
        why=f'api_key: "{S}"',
        whom=["known-secret", 'with"quote'],
        log_failure=failure,
    )
    assert "ValueError" in text
    assert "known-secret" not in text
    assert "SECRET" not in text
    assert 'with\\"quote' not in text
    assert 'with"quote' not in text
    if form == "json":
        assert json.loads(text)["whom"] == ["***", "***"]


def test_paths_and_ids_of_requests_are_told_without_keys() -> None:
    """A client may have put its key there; the books and the log get the same entries."""
    told: list[Entry] = []
    log = AccessLog(Clock(), told.extend, lambda: ("known-secret",))
    log.write(Entry("id-known-secret", "1.2.3.4", "GET", "/coder/known-secret/x"))
    log.flush()
    assert [(entry.path, entry.request_id) for entry in told] == [("/coder/***/x", "id-***")]


# -- the settings -----------------------------------------------------------------------------------------


def test_the_settings_know_their_secrets() -> None:
    """Those of the environment, of each backend and of Compose's services, and show none of them."""
    file = f"""
        keys: [{{name: a, secret: {S}}}]
        backends:
          a:
            runtime: process
            command: [serve, --api-key, flagged-secret, plain-secret]
            environment: {{MY_PASSWORD: plain-secret}}
            health: /health?of=flagged-secret
            request_defaults: {{user: {S}}}
        """
    service = ComposeService(
        "x", args=("--api-key=of-compose",), environment={"A_TOKEN": "variable-of-compose"}
    )
    config = read_sources(Sources({"HF_TOKEN": "of-environment"}, file, compose=[service]))
    secrets = {S, "flagged-secret", "plain-secret", "of-compose", "variable-of-compose", "of-environment"}
    assert set(config.secrets) == secrets
    assert not any(secret in repr(config) for secret in secrets - {"flagged-secret"})
    shown = str(describe(config))
    assert not any(secret in shown for secret in secrets)


class StartTests(FrontCase):
    """What a start that fails tells."""

    def test_a_registrys_complaint_is_told_without_its_credentials(self) -> None:
        """Message and hint, to the client and to the administrator."""
        said = f'image x cannot be pulled: Get "https://me:{S}@r.example/v2/": denied for own'
        self.world.refuse_next_start("coder", said, f"docker login -u me --password={S}")
        client = self.client().get(b"/coder/v1/x", b"Authorization: Bearer client\r\n")
        self.clock.advance(1)
        status, error, _ = client.error()
        self.assertEqual(status, 503)
        self.assertIn("cannot be pulled", error["message"])
        self.assertIn("docker login", error["hint"])
        self.assertNotIn("SECRET", str(error))
        failure = self.backend("coder").last_failure
        assert failure is not None
        self.assertNotIn("SECRET", str(failure))
