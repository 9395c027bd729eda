"""``/api``: what the operator's command talks to."""

from llmproxy.web.api.answers import answer_json
from llmproxy.web.api.resource import ApiResource

__all__ = ["ApiResource", "answer_json"]
