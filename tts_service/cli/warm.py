"""`warm`: phrases that will be asked for, spoken before anybody waits for them."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

import click
from flask import current_app
from flask.cli import with_appcontext

from tts_service.cli.commands import Failed, one_line
from tts_service.cli.crew import Crew
from tts_service.cli.options import fields, service_options, speech_options, target, text_at
from tts_service.cli.progress import progress
from tts_service.cli.service import Refused, Service, Unreachable
from tts_service.cli.session import service

_SHOWN: Final = 40  # characters of a phrase that failed


@click.command()
@click.argument("phrases", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@speech_options
@click.option("--encoding", help="Of the file. Default: UTF-8, UTF-16 by its mark, or GB18030.")
@click.option("--jobs", "-j", type=click.IntRange(1, 64), help="Phrases at a time.")
@service_options
@with_appcontext
def warm(
    phrases: str,
    voice: str | None,
    form: str | None,
    speed: float,
    instructions: str | None,
    params: Mapping[str, str],
    encoding: str | None,
    jobs: int | None,
    url: str | None,
    key: str | None,
) -> None:
    """Fill the cache with the phrases in PHRASES, one on each line (- for standard input).

    Ask as your clients will: by the same voice, in the same format, at the same speed. The cache
    is that of a running service (--url), or Redis (REDIS_URL).
    """
    wanted = target(url, key)
    if wanted.url is None and not current_app.config["REDIS_URL"]:
        raise click.UsageError(
            "Without --url or REDIS_URL there is no cache that outlives this command."
        )
    lines = _lines(text_at(phrases, encoding))
    asked = {**fields(voice, instructions, params), "speed": speed}
    if form is not None:
        asked["response_format"] = form
    with service(wanted) as found:
        warming = _Warming(found, asked, lines)
        try:
            warming.run(jobs or found.slots() + 1)
        finally:
            warming.report()
    if warming.failures:
        raise click.exceptions.Exit(1)


def _lines(text: str) -> dict[str, int]:
    """Each phrase once, with the number of its first line."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            lines.setdefault(line.strip(), number)
    return lines


class _Warming:
    """One run over `lines`, and what came of each phrase."""

    def __init__(self, service: Service, asked: Mapping[str, object], lines: Mapping[str, int]):
        self._service = service
        self._asked = asked
        self._lines = lines
        self._began = time.monotonic()
        self._verdicts: Counter[bool] = Counter()  # whether it was there before
        self.failures: list[tuple[str, Exception]] = []

    def run(self, jobs: int) -> None:
        """Ask for all of them. Raises what would make every further one fail as well."""
        crew = Crew(self._ask, self._lines, jobs)
        try:
            with progress(sum(map(len, self._lines))) as bar:
                while (outcome := crew.next()) is not None:
                    self._note(outcome.job, outcome.result)
                    bar.made(len(outcome.job))
        finally:
            crew.stop()
            self._service.give_up()

    def report(self) -> None:
        """What was done, how fast, and what failed, in the order of the file."""
        for phrase, error in sorted(self.failures, key=lambda failed: self._lines[failed[0]]):
            shown = one_line(phrase)[:_SHOWN]
            click.echo(f"line {self._lines[phrase]}, {shown!r}: {one_line(error)}", err=True)
        spoken, there = self._verdicts[False], self._verdicts[True]
        rate = (spoken + there) / max(0.001, time.monotonic() - self._began)
        click.echo(
            f"{len(self._lines)} phrases: {spoken} spoken, {there} there before, "
            f"{len(self.failures)} failed; {rate:.1f} a second.",
            err=True,
        )

    def _ask(self, phrase: str) -> bool:
        return self._service.speak({**self._asked, "input": phrase}).verdict == "HIT"

    def _note(self, phrase: str, result: bool | Exception) -> None:
        if isinstance(result, bool):
            self._verdicts[result] += 1
            return
        if not isinstance(result, Failed):
            raise result
        self.failures.append((phrase, result))
        if isinstance(result, Unreachable) or _is_for_all(result):
            raise result


def _is_for_all(error: Failed) -> bool:
    """Whether it is not this phrase that is refused, but whatever would be asked like it."""
    if not isinstance(error, Refused):
        return False
    return error.status == 503 or (error.status < 500 and error.param != "input")
