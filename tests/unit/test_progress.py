"""Laws of progress in a log."""

import io

from pipelines.progress import bar


def lines(*, seconds: float, updates: int) -> list[str]:
    log = io.StringIO()
    with bar("labels", "video", 40, log=log, seconds=seconds) as drawn:
        for _ in range(updates):
            drawn.n += 1
            drawn.set_postfix(pairs=drawn.n)
    text = log.getvalue()
    assert text.endswith("\n")
    return text.splitlines()


def test_however_often_something_moves_a_log_has_a_line_at_its_begin_and_at_its_end() -> None:
    first, last = lines(seconds=3600, updates=40)
    assert first.startswith("labels: 0 of 40 videos, 0%")
    assert last.startswith("labels: 40 of 40 videos, 100% in 00:00")
    assert last.endswith("pairs=40")


def test_a_log_has_a_line_whenever_so_many_seconds_have_passed_and_none_twice() -> None:
    assert len(lines(seconds=0, updates=40)) == 41


def test_a_line_draws_over_nothing_and_is_never_empty() -> None:
    for line in lines(seconds=0, updates=3):
        assert "\r" not in line
        assert "\x1b" not in line
        assert line


def test_work_of_unknown_length_has_no_share() -> None:
    log = io.StringIO()
    with bar("predict", "pair", log=log) as drawn:
        drawn.update(3)
    assert log.getvalue().splitlines()[-1].startswith("predict: 3 pairs in ")


def test_what_is_left_takes_as_long_as_what_was_done_since_the_beginning() -> None:
    log = io.StringIO()
    with bar("labels", "video", 100, log=log) as drawn:
        drawn.start_t -= 60
        drawn.initial, drawn.n = 90, 91
    assert log.getvalue().endswith("labels: 91 of 100 videos, 91% in 01:00 (09:00 left)\n")
