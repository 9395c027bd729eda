"""Downloads models where their server will look for them.  Runs in its container, or by its own Python.

It is handed to that Python as a text, and knows nothing but the standard library and huggingface_hub, in
whatever version is there.  Tells on standard output how far it is, a JSON object a line; fails as Python
fails, with what the hub says on standard error.  When its standard input ends, so does it: nobody waits for
it any more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
"""Forms of weights, the best first: vLLM takes the first that there is (``DefaultModelLoader``)."""
NOT_READ = (".msgpack", ".h5", ".ot", ".onnx", ".tflite", ".pth", ".mlmodel", ".nemo", ".ckpt")
FOLDERS = ("original/", "onnx/", "metal/", "coreml/", "openvino/", "runs/")
"""Of these repositories the same weights once more, for others."""
NO_VOLUME = "No volume"
NO_HUB = "There is no huggingface_hub"
STEP = 0.5
"""Seconds between two looks at how far it is."""


def say(event: str, **fields: Any) -> None:
    """Tell what is going on."""
    sys.stdout.write(json.dumps(dict(fields, event=event)) + "\n")
    sys.stdout.flush()


def choose(names: Sequence[str], part: str | None = None) -> list[str]:
    """Which of a repository's files the server reads.

    :param part: of GGUF files only those with this in their names.
    """
    names = [name for name in names if not name.startswith(FOLDERS) and not name.endswith(NOT_READ)]
    if part:
        return [name for name in names if not name.endswith(WEIGHTS) or is_part(name, part)]
    form = next((form for form in WEIGHTS if any(name.endswith(form) for name in names)), "")
    return [name for name in names if not name.endswith(WEIGHTS) or name.endswith(form)]


def is_part(name: str, part: str) -> bool:
    """Whether a GGUF file is of that quantisation: ``x-Q4_K_M.gguf``, ``Q4_K_M/x-00001-of-2.gguf``."""
    word = r"(^|[^A-Za-z0-9])" + re.escape(part) + r"($|[^A-Za-z0-9_])"
    return name.endswith(".gguf") and re.search(word, name, re.IGNORECASE) is not None


def is_inside(folder: str, mounts: str) -> bool:
    """Whether a folder goes away with the container: nothing is mounted at it or above it.

    :param mounts: the text of ``/proc/self/mountinfo``.
    """
    points = [line.split(" ")[4] for line in mounts.splitlines() if line.count(" ") > 4]
    inside = os.path.join(os.path.realpath(folder), "")
    found = [point for point in points if inside.startswith(os.path.join(point, ""))]
    return max(found, key=len, default="/") == "/"


def size_of(folder: str, ending: str = "") -> int:
    """Bytes of all files in it."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # It may just have been given its last name.
            with suppress(OSError):
                if name.endswith(ending):
                    total += os.lstat(os.path.join(place, name)).st_size
    return total


def watch(until: threading.Event, folder: str, total: int, had: int) -> None:
    """Tell how far it is, until it is over."""
    before = size_of(folder)
    while not until.wait(STEP):
        say("progress", bytes=min(had + max(size_of(folder) - before, 0), total))


def end_with_input() -> None:
    """End when nobody listens any more."""
    # Not by sys.stdin, whose lock would be held when Python ends.
    while os.read(0, 1024):
        pass
    os._exit(130)


def fetch(order: dict[str, Any], one: dict[str, Any]) -> None:
    """Download one repository."""
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache

    cache = order.get("cache") or constants.HF_HUB_CACHE
    os.makedirs(cache, exist_ok=True)
    if order.get("volume"):
        with open("/proc/self/mountinfo") as mounts:
            if is_inside(cache, mounts.read()):
                sys.exit(f"{NO_VOLUME}: {cache} is inside the container, and is lost with it.")
    repository, revision = one["repository"], one.get("revision")
    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
    names = choose(list(sizes), one.get("part"))
    there = [
        name
        for name in names
        if isinstance(try_to_load_from_cache(repository, name, cache_dir=cache, revision=info.sha), str)
    ]
    total, had = sum(sizes[name] for name in names), sum(sizes[name] for name in there)
    say("plan", repository=repository, files=len(names), bytes=total, had=had, cache=cache)
    # What an earlier try has left behind of a file is gone on with.
    free = shutil.disk_usage(cache).free
    folder = os.path.join(cache, "models--" + repository.replace("/", "--"))
    missing = total - had - size_of(folder, ".incomplete")
    if missing > free:
        sys.exit(f"Not enough free disk space: {missing} bytes are missing, and {free} are free at {cache}.")
    over = threading.Event()
    seen = (over, os.path.join(folder, "blobs"), total, had)
    teller = threading.Thread(target=watch, args=seen, daemon=True)
    teller.start()
    try:
        path = snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache,
            # They are patterns.
            allow_patterns=[re.sub(r"([\[*?])", r"[\1]", name) for name in names],
        )
    finally:
        over.set()
        teller.join()
    say("done", repository=repository, bytes=total, path=path)


def main() -> None:
    """Download what the first argument says."""
    order = json.loads(sys.argv[1])
    threading.Thread(target=end_with_input, daemon=True).start()
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="0")
    try:
        import huggingface_hub  # noqa: F401 -- only whether it is there
    except ImportError:
        sys.exit(f"{NO_HUB} for {sys.executable}.")
    for one in order["wanted"]:
        fetch(order, one)


if __name__ == "__main__":
    main()
