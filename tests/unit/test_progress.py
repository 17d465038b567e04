"""Laws of what is shown of work that takes long."""

import io
from collections.abc import Callable

from pipelines.progress import Progress


class Clock:
    """Stands still until a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(
    work: Callable[[Progress, Clock], object], unit: str, total: int | None = None, *, seconds: float = 10.0
) -> list[str]:
    """What a log gets."""
    log, clock = io.StringIO(), Clock()
    with Progress("labels", unit, total, to=log, seconds=seconds, clock=clock) as progress:
        work(progress, clock)
    text = log.getvalue()
    assert text.endswith("\n")
    return text.splitlines()


def forty_steps(seconds: float) -> Callable[[Progress, Clock], None]:
    """Each after so many seconds."""

    def work(progress: Progress, clock: Clock) -> None:
        for done in range(1, 41):
            clock.now += seconds
            progress.show(done, f"loss {done}")

    return work


def test_however_often_something_moves_a_log_has_a_line_at_its_begin_and_at_its_end() -> None:
    first, last = lines(forty_steps(0.0), "step", 40)
    assert first == "labels: 0 of 40 steps, 0%, 00:00 so far"
    assert last == "labels: 40 of 40 steps, 100%, loss 40, 00:00 so far"


def test_a_log_has_a_line_whenever_so_many_seconds_have_passed_and_none_twice() -> None:
    told = lines(forty_steps(5.0), "step", 40)
    assert len(told) == 21
    assert len(set(told)) == 21


def test_a_line_draws_over_nothing_and_is_never_empty() -> None:
    for line in lines(forty_steps(5.0), "step", 40, seconds=0.0):
        assert "\r" not in line
        assert "\x1b" not in line
        assert line


def test_work_of_unknown_length_has_neither_a_share_nor_an_end() -> None:
    *_, last = lines(lambda progress, _: progress.advance(3), "file")
    assert last == "labels: 3 files, 00:00 so far"


def test_pairs_have_their_speed() -> None:
    *_, last = lines(forty_steps(0.5), "pair")
    assert "40 pairs, 2 pairs/s, " in last


def test_what_is_left_takes_as_long_as_what_was_done_since_the_beginning() -> None:
    def work(progress: Progress, clock: Clock) -> None:
        clock.now += 60.0
        progress.show(91, before=90)

    *_, last = lines(work, "video", 100)
    assert last == "labels: 91 of 100 videos, 91%, 01:00 so far, 09:00 left"


def test_what_is_begun_counts_in_the_share_alone() -> None:
    *_, last = lines(lambda progress, _: progress.show(1.25), "video", 2)
    assert last.startswith("labels: 1 of 2 videos, 62%")


def test_what_takes_hours_is_shown_in_hours() -> None:
    def work(progress: Progress, clock: Clock) -> None:
        clock.now += 3600.0
        progress.show(10)

    *_, last = lines(work, "video", 20)
    assert "1:00:00 so far, 1:00:00 left" in last


def test_a_terminal_gets_a_bar_with_the_words_of_a_log() -> None:
    terminal = Terminal()
    with Progress("labels", "video", 40, to=terminal) as progress:
        progress.show(40, "8 pairs")
        words = progress.words
    assert "40 of 40 videos, 100%, 8 pairs" in words
    assert words in terminal.getvalue()
    assert "━" in terminal.getvalue()
