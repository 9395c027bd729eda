"""``llmproxy``: look at a running proxy and steer it.

Exit status: 0 done; 1 it could not be done (the message says why); 2 wrong usage or configuration.
"""

from __future__ import annotations

import click

from llmproxy import __version__
from llmproxy.cli.group import Later, LazyGroup

__all__ = ["cli", "main"]

_HELP = """Look at a running llmproxy and steer it.

The proxy is found by LLMPROXY_URL [http://127.0.0.1:8000] and asks for the key in LLMPROXY_ADMIN_KEY, or
VLLM_API_KEY; both are also read from ./.env. Every command takes --json, before or after its name.

\b
Examples:
  llmproxy status                    what runs, who waits, what comes next
  llmproxy start coder               start a model and wait until it is ready
  llmproxy why coder                 why it runs, waits, or has left
  llmproxy top                       all of it on one screen, as it changes

Exit status: 0 done; 1 it could not be done; 2 wrong usage or configuration.
"""

# What the list of commands says stands here, so that showing it imports none of them.
_SECTIONS = {
    "Look": {
        "status": Later(
            "llmproxy.cli.status_command",
            "Show all backends and leases, or all that is known of some backends",
        ),
        "top": Later(
            "llmproxy.cli.top.command", "Show backends, requests and GPUs on one screen, and steer them"
        ),
        "logs": Later("llmproxy.cli.following", "Show a backend's output; with --json one object to a line"),
        "events": Later("llmproxy.cli.following", "Show each change of state and each decision, and why"),
        "usage": Later(
            "llmproxy.cli.usage_command", "Show requests, tokens and GPU time by key, backend or day"
        ),
    },
    "Steer": {
        "start": Later("llmproxy.cli.steering", "Start backends, and wait until they are ready"),
        "stop": Later(
            "llmproxy.cli.steering", "Stop backends; requests that are being answered finish first"
        ),
        "restart": Later("llmproxy.cli.steering", "Stop backends and start them again"),
        "sleep": Later("llmproxy.cli.steering", "Put backends to sleep"),
        "wake": Later("llmproxy.cli.steering", "Wake sleeping backends, and wait until they are ready"),
    },
    "GPU memory": {
        "why": Later("llmproxy.cli.scheduling", "Tell why a backend runs, waits, or has left"),
        "plan": Later("llmproxy.cli.scheduling", "Tell what is to be done now, or what a request would do"),
        "gpus": Later("llmproxy.cli.scheduling", "Show who has the memory of each GPU"),
        "hosts": Later(
            "llmproxy.cli.scheduling", "Show the machines that backends run on, and which are away"
        ),
        "lease": Later(
            "llmproxy.cli.scheduling", "Lend GPU memory to something else: a game, ComfyUI, training"
        ),
        "leases": Later("llmproxy.cli.scheduling", "Show the GPU memory that is lent"),
        "release": Later("llmproxy.cli.scheduling", "Give lent GPU memory back to the models"),
        "advise": Later("llmproxy.cli.scheduling", "Tell which settings would have spared starts"),
    },
    "Set up": {
        "doctor": Later(
            "llmproxy.cli.doctor_command",
            "Look for what is wrong with this installation, and tell what to do about it",
        ),
        "config": Later("llmproxy.cli.config_command", "Show the settings in force and where each came from"),
        "keys": Later("llmproxy.cli.keys_given", "Show the API keys and what each may do"),
        "seed": Later(
            "llmproxy.cli.seed_command", "Download models into their caches before the first start"
        ),
        "import": Later(
            "llmproxy.cli.import_command",
            "Make llmproxy.yaml from another program's configuration",
            "import_group",
        ),
        "upgrade": Later(
            "llmproxy.cli.upgrade_command",
            "Have the proxy start anew, with the code and the settings that are there by now",
        ),
        "completion": Later(
            "llmproxy.cli.completion", "Print what makes a shell complete commands and backends"
        ),
    },
}


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--url", metavar="URL", help="Where the proxy answers [LLMPROXY_URL].")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.version_option(__version__, prog_name="llmproxy")
def cli(url: str | None, as_json: bool) -> None:
    """The options of all commands; each reads them from the root context."""


def main() -> None:
    """The ``llmproxy`` command."""
    cli(prog_name="llmproxy")
