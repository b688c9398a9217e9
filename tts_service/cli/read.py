"""`read`: a book in, hours of sound out, whatever stops it on the way."""

import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from flask import current_app
from flask.cli import with_appcontext

from tts_service.audio import FORMATS, Audio, Format, UndecodableAudio, decode
from tts_service.cli.commands import Failed, Stopped
from tts_service.cli.crew import Crew
from tts_service.cli.files import complete_or_not, write_complete
from tts_service.cli.narration import Narration
from tts_service.cli.options import (
    STDIO,
    fields,
    format_of,
    require_no_terminal,
    service_options,
    speech_options,
    target,
    text_at,
)
from tts_service.cli.progress import Progress, duration, progress
from tts_service.cli.service import Fields, Refused, Service
from tts_service.cli.session import service
from tts_service.cli.takes import Takes
from tts_service.cues import Cue, sub_rip, web_vtt
from tts_service.text import is_speakable, segments

#: Sentences that fail one after the other before it is no use to go on.
_MOST_FAILURES: Final = 3


@click.command()
@click.argument("book", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--output", "-o", required=True, help="The file; - for standard output.")
@speech_options
@click.option("--encoding", help="Of the text. Default: UTF-8, UTF-16 by its mark, or GB18030.")
@click.option(
    "--subtitles/--no-subtitles", default=True, help="An .srt and a .vtt file beside the output."
)
@click.option("--jobs", "-j", type=click.IntRange(1, 64), help="Sentences at a time.")
@click.option("--restart", is_flag=True, help="Throw away what was spoken before.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@service_options
@with_appcontext
def read(
    book: str,
    output: str,
    voice: str | None,
    form: str | None,
    speed: float,
    instructions: str | None,
    params: Mapping[str, str],
    encoding: str | None,
    subtitles: bool,
    jobs: int | None,
    restart: bool,
    force: bool,
    url: str | None,
    key: str | None,
) -> None:
    """Speak the text file BOOK (- for standard input), however long it is.

    What is spoken is kept beside the output, in a file that ends in .takes, until all of it is
    done: the same command goes on where the last one was stopped.
    """
    wanted = target(url, key)
    require_no_terminal(output)
    chosen = format_of(output, form) or FORMATS["wav"]
    if not force:
        _require_none(output, with_subtitles=subtitles)
    texts = _texts(text_at(book, encoding))
    with service(wanted) as found:
        reading = _Reading(found, texts, fields(voice, instructions, params), jobs)
        with _takes(output, reading.terms(), restart=restart) as takes:
            try:
                narrated = reading.run(takes, output, chosen, speed)
            except KeyboardInterrupt:
                raise Stopped(_how_to_go_on(texts, takes, output)) from None
    if subtitles and output != STDIO:
        _write_subtitles(Path(output), narrated.cues)
    if output != STDIO:
        _takes_path(output).unlink(missing_ok=True)
    click.echo(narrated.told, err=True)


def _require_none(output: str, *, with_subtitles: bool) -> None:
    """Raises UsageError if a file would be replaced that somebody may want to keep."""
    path = Path(output)
    beside = _subtitle_paths(path) if with_subtitles else ()
    there = [each for each in (path, *beside) if output != STDIO and each.is_file()]
    if there:
        names = ", ".join(map(str, there))
        raise click.UsageError(f"There already: {names}. --force replaces it.")


def _texts(book: str) -> list[str]:
    """The sentences to be spoken, in order. Raises Failed."""
    longest = min(current_app.config["SEGMENT_CHARS"], current_app.config["MAX_INPUT_CHARS"])
    texts = [piece.strip() for piece in segments(book, longest, longest) if is_speakable(piece)]
    if not texts:
        raise Failed("There is nothing to read in this text.")
    return texts


def _takes_path(output: str) -> Path:
    path = Path(output)
    return path.with_name(f"{path.name}.takes")


@contextmanager
def _takes(output: str, terms: Mapping[str, Any], *, restart: bool) -> Generator[Takes]:
    """What was spoken before, and is from now on. Raises Failed, OSError."""
    if output == STDIO:
        with tempfile.TemporaryFile() as file:
            yield Takes(file, "the temporary file", terms)
        return
    path = _takes_path(output)
    if restart:
        path.unlink(missing_ok=True)
    with closing(Takes.at(path, terms)) as takes:
        yield takes


def _how_to_go_on(texts: Sequence[str], takes: Takes, output: str) -> str:
    if output == STDIO:
        return "Stopped."
    there = sum(text in takes for text in texts)
    return (
        f"Stopped: {there} of {len(texts)} sentences are in {_takes_path(output).name}. "
        "The same command goes on from there."
    )


def _write_subtitles(output: Path, cues: Sequence[Cue]) -> None:
    srt, vtt = _subtitle_paths(output)
    write_complete(srt, sub_rip(cues))
    write_complete(vtt, web_vtt(cues))


def _subtitle_paths(output: Path) -> tuple[Path, Path]:
    return output.with_suffix(".srt"), output.with_suffix(".vtt")


@dataclass(frozen=True, slots=True)
class _Narrated:
    """What came of it: when each sentence is heard, and a line for people."""

    cues: Sequence[Cue]
    told: str


class _Reading:
    """One run over `texts`."""

    def __init__(
        self, service: Service, texts: Sequence[str], fields: Fields, jobs: int | None
    ) -> None:
        self._service = service
        self._texts = texts
        # Speed, pauses and format are made here: a take serves any of them.
        self._fields = {**fields, "response_format": "wav", "early_start": False}
        self._asked = dict(fields)
        self._jobs = jobs
        self._failures: list[tuple[str, Exception]] = []
        self._in_a_row = 0

    def terms(self) -> dict[str, Any]:
        """By whom and how it is spoken: what must be the same in all runs of one book."""
        self._service.require_ready()
        backends = self._service.get("/health").get("backends", [])
        models = [each["identity"] for each in backends if each.get("identity")]
        return {**self._asked, "recording": self._recording(), "model": models[0] if models else ""}

    def _recording(self) -> dict[str, Any] | None:
        """What the service tells about the voice's recording: another one is another voice."""
        voices = self._service.get("/v1/audio/voices").get("voices", [])
        name = self._asked.get("voice")
        return next((voice for voice in voices if voice.get("id") == name), None)

    def run(self, takes: Takes, output: str, form: Format, speed: float) -> _Narrated:
        """Speak what is not there yet, and write all of it. Raises Failed, Stopped, OSError."""
        missing = list(dict.fromkeys(text for text in self._texts if text not in takes))
        pause = current_app.config["SEGMENT_PAUSE_MS"] / 1000
        with ExitStack() as stack:
            total = sum(map(len, dict.fromkeys(self._texts)))
            bar = stack.enter_context(progress(total, total - sum(map(len, missing))))
            file = stack.enter_context(complete_or_not(output))
            narration = stack.enter_context(
                closing(Narration(self._texts, takes, file, form=form, speed=speed, pause=pause))
            )
            self._speak(missing, takes, narration, bar)
            self._require_all()
            narration.finish()
            told = duration(narration.seconds)
        return _Narrated(
            narration.cues,
            f"{output}: {told} of sound, {len(self._texts)} sentences, {len(missing)} spoken now.",
        )

    def _speak(
        self, missing: Sequence[str], takes: Takes, narration: Narration, bar: Progress
    ) -> None:
        crew = Crew(self._ask, missing, self._jobs or self._service.slots() + 1)
        try:
            while not (narration.is_complete or (crew.is_done and not narration.can_go_on)):
                outcome = crew.next(wait=not narration.can_go_on)
                if outcome is not None:
                    self._take(outcome.job, outcome.result, takes, bar)
                if narration.can_go_on:
                    narration.go_on()
        except KeyboardInterrupt:
            self._stop(crew, takes, bar)
            raise
        finally:
            crew.stop()
            self._service.give_up()

    def _ask(self, text: str) -> Audio:
        answer = self._service.speak({**self._fields, "input": text})
        try:
            return decode(answer.body)
        except UndecodableAudio as error:
            raise Failed(f"The service's answer cannot be used: {error}") from None

    def _take(self, text: str, result: Audio | Exception, takes: Takes, bar: Progress) -> None:
        if isinstance(result, Audio):
            self._in_a_row = 0
            takes.add(text, result)
            bar.made(len(text))
            return
        self._failures.append((text, result))
        self._in_a_row += 1
        is_ours = isinstance(result, Refused) and result.status < 500 and result.param != "input"
        if is_ours or self._in_a_row >= _MOST_FAILURES or not isinstance(result, Failed):
            raise result

    def _stop(self, crew: Crew[str, Audio], takes: Takes, bar: Progress) -> None:
        """Keep what is being spoken, unless Ctrl-C comes again."""
        click.echo(
            "\nStopping when the sentences under way are spoken; Ctrl-C again: at once.", err=True
        )
        crew.stop()
        self._service.give_up()
        while (outcome := crew.next()) is not None:
            if isinstance(outcome.result, Audio):
                self._take(outcome.job, outcome.result, takes, bar)

    def _require_all(self) -> None:
        if self._failures:
            text, error = self._failures[0]
            raise Failed(
                f"{len(self._failures)} sentences failed, the first one {text[:40]!r}: {error} "
                "The same command tries them again."
            )
