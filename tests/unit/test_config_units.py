"""Durations, sizes and fractions."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    duration,
    format_duration,
    format_size,
    fraction_or_size,
    size,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (90, 90.0),
        (0, 0.0),
        (1.5, 1.5),
        ("90", 90.0),
        ("90s", 90.0),
        (" 10m ", 600.0),
        ("1h", 3600.0),
        ("500ms", 0.5),
        ("300ms", 0.3),
        ("2 d", 172800.0),
        (".5s", 0.5),
    ],
)
def test_durations(written: object, seconds: float) -> None:
    """A duration is seconds, or a number with its unit."""
    assert duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    [-1, "-1", "", "s", "10 minutes", "1e3", True, None, [1], float("nan"), float("inf"), 10**400, "9" * 400],
)
def test_bad_durations(written: object) -> None:
    """What is no duration is refused in words that say what is one."""
    with pytest.raises(ValueError, match="as in 90s"):
        duration(written)


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [
        (0, 0),
        (4096, 4096),
        (4096.0, 4096),
        ("4096", 4096),
        ("14GiB", 14 * 1024**3),
        ("64 MiB", 64 * 1024**2),
        ("64MB", 64_000_000),
        ("1kb", 1000),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("12B", 12),
        ("1tib", 1024**4),
    ],
)
def test_sizes(written: object, bytes_: int) -> None:
    """A size is bytes, or a number with a binary or decimal unit."""
    assert size(written) == bytes_


@pytest.mark.parametrize(
    "written", [-1, "-1MiB", "", "14G", "14 gigs", 1.5, "1.5", True, None, 2**70, "9" * 99]
)
def test_bad_sizes(written: object) -> None:
    """What is no size is refused in words that say what is one."""
    with pytest.raises(ValueError, match="as in 14GiB"):
        size(written)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (0.9, 0.9),
        ("0.9", 0.9),
        (".45", 0.45),
        (1, 1.0),
        ("1.0", 1.0),
        (0, 0),
        ("0", 0),
        ("14GiB", 14 * 1024**3),
        (2_000_000, 2_000_000),
        ("2000000", 2_000_000),
    ],
)
def test_gpu_memory(written: object, wanted: float | int) -> None:
    """GPU memory is a fraction (float) or bytes (int)."""
    found = fraction_or_size(written)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    "written", [14, "14", 1.5, "1.5", -0.1, "90%", "14G", True, None, 2_000_000.5, float("nan")]
)
def test_bad_gpu_memory(written: object) -> None:
    """A bare 14 could mean bytes or GiB, and is refused like anything else that is not clear."""
    with pytest.raises(ValueError, match="a fraction of a GPU"):
        fraction_or_size(written)


@given(st.floats(0, 1e9, allow_nan=False).map(lambda x: round(x, 3)))
def test_formatted_durations_read_back(seconds: float) -> None:
    """A formatted duration reads back as the same number."""
    assert duration(format_duration(seconds)) == seconds


@given(st.integers(0, 2**60))
def test_formatted_sizes_read_back(bytes_: int) -> None:
    """A formatted size reads back as the same number."""
    assert size(format_size(bytes_)) == bytes_


@given(st.one_of(st.text(), st.from_regex(DURATION_PATTERN), st.from_regex(SIZE_PATTERN)))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Any text is either a non-negative value or a ValueError."""
    for reader in (duration, size, fraction_or_size):
        with suppress(ValueError):
            assert reader(text) >= 0
