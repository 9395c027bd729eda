"""The settings and the key.  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from llmproxy.config.model import Key, digest_of
from llmproxy.doctor.facts import Facts
from llmproxy.doctor.findings import Finding, fail, ok, skipped, warn

__all__ = ["check_key", "check_settings"]

MINT = "mint one (openssl rand -hex 32), put it into .env, and bring the launcher up again"
SHORT = 16
"""Characters: fewer can be tried out by whoever reaches the port, at thousands a second."""
SOON = 7 * 86400.0
GUESSED = frozenset(
    [
        "changeme",
        "change-me",
        "change_me",
        "secret",
        "test",
        "key",
        "apikey",
        "api-key",
        "password",
        "token",
        "vllm",
        "llmproxy",
        "dummy",
        "none",
        "empty",
        "sk-1234",
        "1234",
        "your-key-here",
        "token-abc123",
    ]
)
"""What stands in examples, vLLM's among them."""


def check_settings(facts: Facts) -> Iterator[Finding]:
    """Whether the proxy would start with them."""
    settings = facts.settings
    if settings.config is None:
        yield fail(
            "settings.config",
            settings.error or "The settings cannot be read.",
            "Correct that place; llmproxy config --check says whether all is right.",
        )
    else:
        routes = ", ".join(f"/{route}" for route in settings.config.backends)
        if routes:
            yield ok("settings.config", f"The configuration is right. Routes: {routes}.")
        else:
            yield warn(
                "settings.config",
                "The configuration is right, and has no routes.",
                "Run it where docker-compose.yml is, name its file in COMPOSE_FILE, or write llmproxy.yaml"
                " (llmproxy.example.yaml shows how).",
            )
        for note in settings.config.notes:
            if not note.startswith(("key ", "no key ")):
                yield warn("settings.note", f"{note[:1].upper()}{note[1:]}.", "Correct that setting.")
    for name in settings.differing:
        yield warn(
            "settings.environment",
            f"{name} is another one in this shell than in ./.env; the shell's counts.",
            f"unset {name}, or open a new shell.",
        )


def check_key(facts: Facts) -> Iterator[Finding]:
    """The keys; none of them is shown."""
    config = facts.settings.config
    if config is None:
        yield skipped("settings.key", "The keys are not known, as the settings cannot be read.")
        return
    if not config.keys:
        yield warn(
            "settings.key",
            "No key is configured, so the proxy listens for this machine only.",
            "make env writes .env with one; or mint one (openssl rand -hex 32) and set VLLM_API_KEY there.",
        )
        return
    ill = [found for key in config.keys for found in _judge(key, facts.clock.now)]
    yield from ill
    if not any(key.admin for key in config.keys):
        yield warn(
            "settings.key",
            "No key is an administrator's: llmproxy status and its like are closed to everybody.",
            "Set LLMPROXY_ADMIN_KEY, or admin: true for a key in llmproxy.yaml.",
        )
    elif not ill:
        count = len(config.keys)
        yield ok("settings.key", f"{count} {'key is' if count == 1 else 'keys are'} set, and hard to guess.")


def _is_guessed(key: Key) -> bool:
    """Where only digests are known, those of the words are compared."""
    digests = {*(former.digest for former in key.former), *([key.hashed] if key.hashed is not None else [])}
    if digests & {digest_of(word) for word in GUESSED}:
        return True
    return key.hashed is None and (key.secret.strip().lower() in GUESSED or len(set(key.secret)) < 4)


def _judge(key: Key, now: float) -> Iterator[Finding]:
    if _is_guessed(key):
        text = f"Key {key.name}: its secret is one that everybody tries."
        yield fail("settings.key", text, f"{MINT[:1].upper()}{MINT[1:]}.")
    elif key.hashed is None and len(key.secret) < SHORT:
        text = f"Key {key.name}: its secret is shorter than {SHORT} characters."
        yield warn("settings.key", text, f"{MINT[:1].upper()}{MINT[1:]}.")
    if key.expires is not None and key.expires - now < SOON:
        over = key.expires <= now
        days = (key.expires - now) / 86400
        text = f"Key {key.name} {'has expired' if over else f'expires in {days:.0f} days'}."
        yield warn("settings.key", text, "Give its owner a new one, and move its expiry in llmproxy.yaml.")
