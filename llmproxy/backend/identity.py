"""What a backend is, as far as it can be read from it: its models, its key, its secrets.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from llmproxy.config.model import BackendSpec
from llmproxy.engines.needs import Needs, read_needs
from llmproxy.engines.redaction import redact, secret_values
from llmproxy.engines.vllm import VllmFlags, read_flags
from llmproxy.runtimes.interface import Facts

__all__ = ["Identity"]


@define
class Identity:
    """What is known of one backend beside what the operator said.

    :ivar models: names that it serves; those of the settings when they name any.
    :ivar needs: what it needs of the machine.
    :ivar known: something was read from the backend itself.
    :ivar context_length: tokens of a prompt and its answer together; None: not known.
    :ivar fingerprint: tells its configuration from another one behind the same route.
    """

    models: tuple[str, ...] = ()
    needs: Needs = field(factory=Needs)
    known: bool = False
    fingerprint: str = ""
    context_length: int | None = None
    _flags: VllmFlags | None = None
    _secrets: tuple[str, ...] = field(default=(), repr=False)

    def learn(self, spec: BackendSpec, facts: Facts) -> None:
        """Take what was read from the backend itself."""
        if facts.fingerprint != self.fingerprint:
            self.context_length = None
        self.needs, self.fingerprint = read_needs(spec, facts), facts.fingerprint
        self.known = True
        self._secrets = secret_values(facts.environment)
        if spec.engine != "vllm":
            return
        self._flags = read_flags(facts.args, facts.environment)
        if self._flags.api_key:
            self._secrets += (self._flags.api_key,)
        self.context_length = self._flags.max_model_len or self.context_length
        if spec.models is None:
            self.models = self._flags.served_model_names

    def authorization(self, fallback: str | None) -> bytes | None:
        """``Authorization`` with the backend's own key.

        :param fallback: the key to use when its own is not known.
        """
        key = (self._flags.api_key if self._flags else None) or fallback
        return None if key is None else b"Bearer " + key.encode("utf-8")

    def redacted(self, text: str, secrets: Sequence[str]) -> str:
        """``text`` without its secrets and those of the proxy."""
        return redact(text, (*secrets, *self._secrets))
