"""The demo server's options, and vLLM's own that it understands.

It takes a command line written for vLLM (``vllm serve MODEL --served-model-name coder3b --port 8001
--gpu-memory-utilization 0.8``): flags that it does not know are told in its log and otherwise ignored.  So an
image of it can stand where vLLM's image stands.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from llmproxy.demo.faults import SLEEP_FAULTS, Armed
from llmproxy.demo.ledger import Part, size
from llmproxy.demo.memory import KEEPS, WEIGHTS, Plan
from llmproxy.demo.shapes import BadRequest

__all__ = ["Settings", "parse"]


@frozen
class Settings:
    """How the demo server behaves.  All times are seconds.

    :ivar start_delay: from the process's start until it listens.
    :ivar token_delay: before each token.
    :ivar health_mode: ``ok``; ``503``: /health says so; ``hang``: it never answers; ``never``: never listens.
    :ivar exit_after: from the process's start until it exits with ``exit_code``.
    :ivar oom_after: from the process's start until it takes memory without end.
    :ivar ignore_term: so many TERM signals are swallowed first; -1 means all.
    :ivar term_in_flight: what a TERM does to running answers: ``error`` breaks them off as vLLM does when all
        goes well, ``hang`` leaves them silent and the process alive until its clients have gone, as vLLM does
        half of the time.
    :ivar keep_alive: idle connections are closed after this; vLLM's (uvicorn's) is 5.
    :ivar log_lines: printed while starting.
    :ivar gpu: a folder that stands for the GPUs, see :mod:`llmproxy.demo.gpus`; ``None``: they are its own.
    :ivar gpu_total: bytes of each of them; ``None``: as the folder says, or 24 GiB.
    :ivar gpu_count: so many are taken.
    :ivar visible: ``CUDA_VISIBLE_DEVICES``.
    :ivar plan: how much is taken of each.
    :ivar dev_mode: sleep mode's paths are there.
    :ivar enable_sleep_mode: a sleep frees memory.
    :ivar sleep_seconds: until a server sleeps, after its last request has ended.
    :ivar wake_seconds: until it is awake; its memory is taken at once.
    :ivar sleep_faults: see :mod:`llmproxy.demo.faults`.
    :ivar unknown: arguments that were not understood.
    """

    models: tuple[str, ...] = ("demo",)
    host: str = "0.0.0.0"
    port: int = 8000
    api_key: str | None = None
    start_delay: float = 0.0
    token_delay: float = 0.0
    health_mode: str = "ok"
    exit_after: float | None = None
    exit_code: int = 1
    oom_after: float | None = None
    ignore_term: int = 0
    term_in_flight: str = "error"
    keep_alive: float = 5.0
    log_lines: tuple[str, ...] = ()
    gpu: str | None = None
    gpu_total: int | None = None
    gpu_count: int = 1
    visible: str | None = None
    plan: Plan = field(factory=Plan)
    dev_mode: bool = False
    enable_sleep_mode: bool = False
    sleep_seconds: float = 0.05
    wake_seconds: float = 0.05
    sleep_faults: str = ""
    unknown: tuple[str, ...] = ()


def _sleep_faults(text: str) -> str:
    try:
        Armed.parse(text)
    except BadRequest as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llmproxy.demo",
        description="A tiny OpenAI-compatible server that behaves like vLLM. Unknown flags are ignored.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--host", default="0.0.0.0", help="address to listen on [%(default)s]")
    add("--port", type=int, default=8000, help="port to listen on [%(default)s]")
    add("--model", action="append", default=[], metavar="NAME", help="model served; may be repeated [demo]")
    add("--served-model-name", nargs="+", default=[], metavar="NAME", help="as in vLLM: names instead")
    add("--api-key", help="key required under /v1 [VLLM_API_KEY]")
    add("--start-delay", type=float, default=None, metavar="S", help="seconds until it is ready [0]")
    add("--token-delay", type=float, default=None, metavar="S", help="seconds before each token [0]")
    add("--health-mode", choices=("ok", "hang", "503", "never"), default="ok", help="[%(default)s]")
    add("--exit-after", type=float, metavar="S", help="exit so many seconds after the start")
    add("--exit-code", type=int, default=1, metavar="N", help="status of --exit-after [%(default)s]")
    add("--oom-after", type=float, metavar="S", help="take memory without end after so many seconds")
    add("--ignore-term", type=int, default=0, metavar="N", help="swallow N TERM signals, -1 for all [0]")
    add("--term-in-flight", choices=("error", "hang"), default="error", help="[%(default)s]")
    add("--keep-alive", type=float, default=5.0, metavar="S", help="idle connections close after S [5]")
    add("--log-line", action="append", default=[], metavar="TEXT", help="printed while starting")

    # vLLM's, with both spellings that it takes.
    add("--gpu-memory-utilization", "--gpu_memory_utilization", type=float, default=0.92, metavar="X")
    add("--tensor-parallel-size", "--tensor_parallel_size", "-tp", type=int, default=1, metavar="N")
    switch = argparse.BooleanOptionalAction
    add(
        "--enable-sleep-mode",
        "--enable_sleep_mode",
        action=switch,
        default=False,
        help="a sleep frees memory",
    )

    add(
        "--gpu",
        metavar="DIR",
        help="a folder that stands for the GPUs, shared with others [a GPU of its own]",
    )
    add("--gpu-total", type=size, metavar="SIZE", help="memory of each GPU [as the folder says, or 24GiB]")
    add(
        "--gpu-weights",
        type=Part.parse,
        default=WEIGHTS,
        metavar="PART",
        help="size or part of its share [0.5]",
    )
    add("--sleep-keeps", type=Part.parse, default=KEEPS, metavar="PART", help="of its share, asleep [0.05]")
    add("--sleep-seconds", type=float, default=0.05, metavar="S", help="seconds to fall asleep [%(default)s]")
    add("--wake-seconds", type=float, default=0.05, metavar="S", help="seconds to wake [%(default)s]")
    add(
        "--sleep-fault",
        type=_sleep_faults,
        action="append",
        default=[],
        metavar="FAULT[=TIMES]",
        help=", ".join(SLEEP_FAULTS),
    )
    return parser


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the command line.

    ``VLLM_API_KEY``, ``LLMPROXY_DEMO_START_DELAY``, ``LLMPROXY_DEMO_TOKEN_DELAY``, ``LLMPROXY_DEMO_GPU_DIR``
    and ``LLMPROXY_DEMO_GPU_TOTAL`` stand in for options that are not given.  ``VLLM_SERVER_DEV_MODE`` and
    ``CUDA_VISIBLE_DEVICES`` mean what they mean to vLLM.

    :raises SystemExit: status 2, after argparse told what is wrong.
    """
    arguments = list(arguments)
    if arguments[:1] == ["serve"]:  # ``vllm serve MODEL ...``
        arguments = arguments[1:]
        if arguments and not arguments[0].startswith("-"):
            arguments = ["--model", *arguments]
    given, unknown = _parser().parse_known_args(arguments)
    start = given.start_delay
    if start is None:
        start = float(environment.get("LLMPROXY_DEMO_START_DELAY") or 0)
    token = given.token_delay
    if token is None:
        token = float(environment.get("LLMPROXY_DEMO_TOKEN_DELAY") or 0)
    total = given.gpu_total
    if total is None and environment.get("LLMPROXY_DEMO_GPU_TOTAL"):
        total = size(environment["LLMPROXY_DEMO_GPU_TOTAL"])
    count = max(1, given.tensor_parallel_size)
    plan = Plan(
        gpus=tuple(str(number) for number in range(count)),
        utilization=given.gpu_memory_utilization,
        weights=given.gpu_weights,
        keeps=given.sleep_keeps,
    )
    return Settings(
        models=tuple(given.served_model_name or given.model or ("demo",)),
        host=given.host,
        port=given.port,
        api_key=given.api_key or environment.get("VLLM_API_KEY") or None,
        start_delay=start,
        token_delay=token,
        health_mode=given.health_mode,
        exit_after=given.exit_after,
        exit_code=given.exit_code,
        oom_after=given.oom_after,
        ignore_term=given.ignore_term,
        term_in_flight=given.term_in_flight,
        keep_alive=given.keep_alive,
        log_lines=tuple(given.log_line),
        gpu=given.gpu or environment.get("LLMPROXY_DEMO_GPU_DIR") or None,
        gpu_total=total,
        gpu_count=count,
        visible=environment.get("CUDA_VISIBLE_DEVICES"),
        plan=plan,
        dev_mode=environment.get("VLLM_SERVER_DEV_MODE", "0").strip() not in ("", "0"),
        enable_sleep_mode=given.enable_sleep_mode,
        sleep_seconds=given.sleep_seconds,
        wake_seconds=given.wake_seconds,
        sleep_faults=",".join(given.sleep_fault),
        unknown=tuple(unknown),
    )
