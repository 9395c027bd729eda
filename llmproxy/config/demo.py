"""Three demo models in place of the real ones, for ``--demo``.  Pure."""

from __future__ import annotations

from llmproxy.config.layers import Layer, Setting

__all__ = ["demo_layer"]

_MODELS = {"coder": "coder3b", "chat": "sitechat", "qwen7b": "qwen7b-bnb4"}
"""Routes and models of docker-compose.yml, so that the same requests work with and without Docker."""

_START_SECONDS = "2"
"""Long enough to see a cold start, short enough to be waited for."""


def demo_layer(python: str) -> Layer:
    """Routes whose backends are child processes of the built-in demo server.

    :param python: the interpreter that llmproxy runs in.
    """
    layer = Layer()
    # Nobody wants demo models to be left behind.
    layer.top["stop_backends_on_exit"] = Setting(True, "demo")
    for route, model in _MODELS.items():
        command = (python, "-m", "llmproxy.demo", "--host", "127.0.0.1", "--port", "${port}")
        settings = {
            "runtime": "process",
            "command": (*command, "--model", model, "--start-delay", _START_SECONDS),
            "models": (model,),
        }
        layer.put(route, {name: Setting(value, "demo") for name, value in settings.items()})
    return layer
