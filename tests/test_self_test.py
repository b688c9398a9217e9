"""The self-test: asks twice, and whatever goes wrong is its result."""

import logging
from collections.abc import Callable

import pytest

from tts_service.self_test import Reply, SelfTest

MISS = Reply(200, "MISS", 1000)
HIT = Reply(200, "HIT", 1000)


def make(*, is_enabled: bool = True, expects_hit: bool = True) -> SelfTest:
    return SelfTest(
        model="chixiaotu6", text="您好。", is_enabled=is_enabled, expects_hit=expects_hit
    )


def answering(*replies: Reply) -> Callable[[dict[str, str]], Reply]:
    left = iter(replies)
    return lambda fields: next(left)


def test_before_it_ran_it_is_pending() -> None:
    report = make().report()
    assert report.pop("state") == "pending"
    assert set(report.values()) == {None}


def test_it_asks_twice_for_the_same_and_passes_on_a_hit() -> None:
    asked = []
    states = []
    test = make()
    answer = answering(MISS, HIT)

    def post(fields: dict[str, str]) -> Reply:
        asked.append(fields)
        states.append(test.report()["state"])
        return answer(fields)

    test.run(post)
    report = test.report()
    assert asked == [{"model": "chixiaotu6", "input": "您好。"}] * 2
    assert states == ["running", "running"]
    assert report["state"] == "passed"
    assert report["second_from_cache"] is True
    assert report["error"] is None
    assert 0 <= report["second_seconds"] < 1
    assert 0 <= report["first_seconds"] < 1


@pytest.mark.parametrize("verdict", ["MISS", "PARTIAL", "COALESCED", None])
def test_a_second_answer_that_is_no_hit_fails(verdict: str | None) -> None:
    test = make()
    test.run(answering(MISS, Reply(200, verdict, 1000)))
    report = test.report()
    assert report["state"] == "failed"
    assert report["second_from_cache"] is False
    assert "cache" in report["error"]


def test_without_a_cache_no_hit_is_expected() -> None:
    test = make(expects_hit=False)
    test.run(answering(MISS, MISS))
    assert test.report()["state"] == "passed"
    assert test.report()["second_from_cache"] is False


def test_a_first_answer_that_fails_is_told_and_no_second_is_asked_for() -> None:
    test = make()
    test.run(answering(Reply(503, None, 90, "No backend answers.")))
    report = test.report()
    assert report["state"] == "failed"
    assert report["error"] == "503: No backend answers."
    assert report["first_seconds"] is not None
    assert report["second_seconds"] is None


@pytest.mark.parametrize("second", [Reply(200, "HIT", 999), Reply(500, None, 1000, "Internal.")])
def test_a_second_answer_that_differs_fails(second: Reply) -> None:
    test = make()
    test.run(answering(MISS, second))
    assert test.report()["state"] == "failed"
    assert str(second.status) in test.report()["error"]


@pytest.mark.parametrize("error", [RuntimeError("no app"), ConnectionError("refused"), KeyError(1)])
def test_it_never_raises(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def post(fields: dict[str, str]) -> Reply:
        raise error

    test = make()
    test.run(post)
    assert test.report()["state"] == "failed"
    assert test.report()["error"] == f"{type(error).__name__}: {error}"
    assert any(record.exc_info for record in caplog.records), "a fault of ours has its traceback"


def test_switched_off_it_asks_nothing_and_says_so() -> None:
    test = make(is_enabled=False)
    test.run(answering())
    assert test.report()["state"] == "off"


@pytest.mark.parametrize(
    ("replies", "level", "words"),
    [
        ([MISS, HIT], logging.INFO, "passed"),
        ([MISS, MISS], logging.WARNING, "failed"),
        ([Reply(502, None, 9, "It refused.")], logging.WARNING, "It refused."),
    ],
)
def test_the_result_is_logged_in_one_line(
    replies: list[Reply], level: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tts_service.self_test")
    make().run(answering(*replies))
    [line] = caplog.records
    assert line.levelno == level
    assert words in line.getMessage()
