"""Stage times in a header: what is written is read, what is wrong is named."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.wire.stages import StageTimesError, read_times, write_times

NAMES = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=20)
TIMES = st.dictionaries(NAMES, st.integers(1, (1 << 53) - 1), min_size=1, max_size=12)


def test_the_first_time_is_written_in_full_and_the_others_as_distances() -> None:
    written = write_times({"seen": 1_790_000_000_000_000, "sent": 1_790_000_000_000_215, "delivered": 1})
    assert written == "seen=1790000000000000,sent=+215,delivered=-1789999999999999"


@given(TIMES)
def test_what_is_written_is_read(times: dict[str, int]) -> None:
    assert read_times(write_times(times)) == times


def test_no_header_is_no_times() -> None:
    assert read_times("") == {}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("seen", id="no time"),
        pytest.param("seen=+5", id="a first time that is a distance"),
        pytest.param("seen=5,sent=6", id="a later one that is none"),
        pytest.param("seen=5,sent=+1,", id="nothing after a comma"),
        pytest.param("seen=5,seen=+1", id="a stage twice"),
        pytest.param("seen=5,sent=-6", id="before 1970"),
        pytest.param("seen=99999999999999999", id="too many digits"),
        pytest.param("seen=9999999999999999", id="beyond what JSON numbers say exactly"),
        pytest.param("SEEN=5", id="a name in capitals"),
        pytest.param("seen=\N{ARABIC-INDIC DIGIT FIVE}", id="digits of another script"),
        pytest.param("seen=5" + ",a=+1" * 400, id="far too long"),
    ],
)
def test_a_malformed_header_is_named(text: str) -> None:
    with pytest.raises(StageTimesError, match="Dra-Times"):
        read_times(text)


@given(st.text(max_size=60))
def test_nothing_else_is_raised(text: str) -> None:
    with suppress(StageTimesError):
        read_times(text)
