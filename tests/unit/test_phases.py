"""How far a start is, read from lines of vLLM's log as it writes them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.engines.phases import ORDER, Phase, read_phase

ENGINE = "(EngineCore_DP0 pid=191) INFO 03-18 13:41:09 [backends.py:643] "
OLD = "INFO 08-14 12:59:46 model_runner.py:1535] "


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("model-00001-of-00002.safetensors:  45%|####5     | 2.25G/4.98G", Phase("downloading")),
        ("model.safetensors:  45%|████▌     | 2.25G/4.98G [00:30<00:36, 75MB/s]", Phase("downloading", 0.45)),
        ("Fetching 4 files:  25%|##5       | 1/4 [00:01<00:03]", Phase("downloading", 0.25)),
        (
            f"{ENGINE}Time spent downloading weights for org/m: 12.250000 seconds",
            Phase("downloading", 1.0, 12.25),
        ),
        (
            "\rLoading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]\n",
            Phase("loading weights", 0.0),
        ),
        (
            "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:01<00:01, 1.5it/s]\r",
            Phase("loading weights", 0.5),
        ),
        (
            "Loading pt checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 3.2it/s]",
            Phase("loading weights", 1.0),
        ),
        ("Loading safetensors using Runai Model Streamer:  45% Completed", Phase("loading weights", 0.45)),
        ("Multi-thread loading shards:  50% Completed | 1/2", Phase("loading weights", 0.5)),
        (f"{ENGINE}Loading weights took 3.21 seconds", Phase("loading weights", 1.0, 3.21)),
        (f"{ENGINE}Model loading took 5.2 GiB memory and 4.01 seconds", Phase("loading weights", 1.0)),
        (f"{OLD}Loading model weights took 6.1138 GB", Phase("loading weights", 1.0)),
        (f"{ENGINE}Using cache directory: /root/x for vLLM's torch.compile", Phase("compiling")),
        (f"{ENGINE}Dynamo bytecode transform time: 5.73 s", Phase("compiling")),
        (f"{ENGINE}Cache the graph of compile range (1, 2048) for later use", Phase("compiling")),
        (f"{ENGINE}Compiling a graph for compile range (1, 2048) takes 12.3 s", Phase("compiling")),
        (
            f"{ENGINE}Directly load the compiled graph(s) for compile range (1, 8) from the cache, took 2 s",
            Phase("compiling"),
        ),
        (f"{ENGINE}Directly load the 3-th graph for shape None", Phase("compiling")),
        (f"{ENGINE}torch.compile took 21.0 s in total", Phase("compiling", 1.0, 21.0)),
        (f"{ENGINE}torch.compile takes 8.11 s in total", Phase("compiling", 1.0, 8.11)),
        (f"{OLD}Memory profiling takes 34.26 seconds", Phase("profiling", 1.0, 34.26)),
        (f"{ENGINE}Available KV cache memory: 11.2 GiB", Phase("profiling")),
        (f"{OLD}# GPU blocks: 10039, # CPU blocks: 2048", Phase("profiling")),
        (f"{ENGINE}GPU KV cache size: 91,000 tokens", Phase("profiling", 1.0)),
        (
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):   4%|\r"
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  40%|####      | 4/11",
            Phase("capturing graphs", 0.4),
        ),
        ("Capturing CUDA graph shapes: 100%|##########| 35/35", Phase("capturing graphs", 1.0)),
        (f"{OLD}Capturing cudagraphs for decoding. This may lead to", Phase("capturing graphs")),
        (f"{ENGINE}Graph capturing finished in 14 secs, took 0.52 GiB", Phase("capturing graphs", 1.0, 14.0)),
    ],
)
def test_lines_of_a_start(line: str, phase: Phase) -> None:
    """Each tells its phase, with the part that is done or the seconds that it took where it says so."""
    assert read_phase(line) == phase


@pytest.mark.parametrize(
    "line",
    [
        "",
        "INFO 11-23 09:15:10 [gpu_model_runner.py:1] Starting to load model org/m...",
        "config.json: 100%|##########| 661/661 [00:00<00:00, 4.5MB/s]",
        "tokenizer_config.json: 100%|##########| 7.30k/7.30k",
        "Application startup complete.",
        'INFO: 127.0.0.1:1 - "POST /v1/chat/completions HTTP/1.1" 200 OK',
        "Engine 000: Avg prompt throughput: 5.2 tokens/s, GPU KV cache usage: 0.1%",
        "non-default args: {'load_format': 'safetensors', 'compilation_config': 3}",
    ],
)
def test_other_lines_tell_nothing(line: str) -> None:
    """What is written beside it, or while it serves, is no phase; nor is the name of the model."""
    assert read_phase(line) is None


PIECES = st.sampled_from(
    [
        "Loading safetensors checkpoint shards: ",
        "Capturing CUDA graphs",
        "Graph capturing finished in ",
        "torch.compile took ",
        "Time spent downloading weights for ",
        " s in total",
        "%|",
        "% Completed",
        "\r",
        "9" * 30,
        ".safetensors: ",
        "٣",
    ]
)


@given(st.lists(PIECES | st.text(max_size=20), max_size=12).map("".join))
def test_no_line_is_too_strange(line: str) -> None:
    """Whatever a line holds, it is one of the phases with a part between 0 and 1, or nothing."""
    phase = read_phase(line)
    if phase is not None:
        assert phase.name in ORDER
        assert phase.progress is None or 0 <= phase.progress <= 1
        assert phase.took is None or 0 <= phase.took < 1e8


@pytest.mark.parametrize("piece", ["Loading ", "Capturing CUDA graphs ", "shards: 9", ".bin: ", "load\r"])
def test_a_long_line_costs_no_more_than_a_short_one(piece: str) -> None:
    """A line without an end is looked at where it ends."""
    line = piece * (1_000_000 // len(piece))
    began = time.process_time()
    for _ in range(10):
        read_phase(line)
    assert time.process_time() - began < 1.0
