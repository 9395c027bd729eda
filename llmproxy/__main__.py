"""``python -m llmproxy``: the operator's command."""

from llmproxy.cli.main import main

main()
