"""A real Gradio app whose function records its calls and behaves as its journal says."""

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileDataDict, MediaStreamChunk

from servers.control import ControlServer
from servers.journal import Behaviour, Call, Fault, Journal
from servers.options import Options
from servers.signatures import SIGNATURES, Inputs, Signature
from servers.sound import (
    SPOILED,
    Sound,
    seconds_of,
    speech,
    write_aac,
    write_float_wav,
    write_mp3,
    write_wav,
)


@dataclass(frozen=True)
class Form:
    """How the audio comes back: what file is written and what the function returns for it."""

    answer: Callable[[Path, Sound], object]
    output: Callable[[], gr.components.Component] = gr.Audio
    write: Callable[[Path, Sound], None] = write_wav
    suffix: str = ".wav"
    #: Makes the outputs that follow the audio.
    beside: Callable[[], list[gr.components.Component]] = list


def _streamed_audio() -> gr.Audio:
    """Streams without the ffmpeg program that Gradio would start for the encoding."""

    async def stream_output(
        value: Any, output_id: str, first_chunk: bool
    ) -> tuple[MediaStreamChunk | None, FileDataDict]:
        record: FileDataDict = {
            "path": output_id,
            "is_stream": True,
            "meta": {"_type": "gradio.FileData"},
        }
        if value is None:  # the generator has ended
            return None, record
        path = Path(value["path"])
        seconds = seconds_of(path) or 0
        return {"data": path.read_bytes(), "duration": seconds, "extension": ".aac"}, record

    audio = gr.Audio(streaming=True)
    # Not a subclass: for each of those Gradio writes a .pyi file beside its module.
    audio.stream_output = stream_output  # type: ignore[method-assign]
    return audio


def _path(path: Path, _: Sound) -> str:
    return str(path)


FORMS: Mapping[str, Form] = {
    "update": Form(lambda path, _: gr.update(value=str(path), visible=True)),
    "path": Form(_path),
    "tuple": Form(_path, beside=lambda: [gr.Textbox()]),
    "list": Form(lambda path, _: [str(path)], lambda: gr.File(file_count="multiple")),
    "dict-file": Form(_path, gr.File),
    "numpy": Form(lambda _, sound: tuple(sound)),
    "mp3": Form(_path, write=write_mp3, suffix=".mp3"),
    "float-wav": Form(_path, write=write_float_wav),
    "stream": Form(_path, _streamed_audio, write=write_aac, suffix=".aac"),
}


class Engine:
    """The speaker behind an app's function."""

    def __init__(self, signature: Signature, form: Form, journal: Journal, folder: Path) -> None:
        self._signature = signature
        self._form = form
        self._journal = journal
        self._folder = folder

    def speak(self, arguments: Mapping[str, Any], recordings: set[str]) -> object:
        """What the function returns for the audio; `recordings` names the file arguments."""
        text = str(arguments.get(self._signature.text or "", ""))
        told = {
            name: _described(value) if name in recordings else value
            for name, value in arguments.items()
        }
        with self._journal.call(text, told) as call:
            self._journal.wait_for_release(call)
            behaviour = self._journal.behaviour
            self._journal.pass_time(call, behaviour.seconds(text))
            self._fail_if_told(call, behaviour)
            if behaviour.fail == "none":
                return None
            seconds = behaviour.ms_audio_per_char * len(text) / 1000
            sound = speech(text, self._prompt(arguments), seconds, self._signature.rate)
            return self._answer(call, sound, behaviour.fail)

    def _prompt(self, arguments: Mapping[str, Any]) -> bytes:
        """The recording's bytes; without one an engine fails with whatever error comes first."""
        if self._signature.prompt is None:
            return b""
        match arguments[self._signature.prompt]:
            case (int(), samples):
                return bytes(samples.tobytes())
            case [first, *_]:
                return Path(first).read_bytes()
            case recording:
                return Path(recording).read_bytes()

    def _fail_if_told(self, call: Call, behaviour: Behaviour) -> None:
        if call.number <= behaviour.fail_first or behaviour.fail == "error":
            raise gr.Error("injected failure")
        if behaviour.fail == "silent_error":
            raise RuntimeError("the engine broke")
        if behaviour.fail == "hang":
            self._journal.pass_time(call, None)
        if behaviour.fail == "exit":
            os._exit(1)

    def _answer(self, call: Call, sound: Sound, fault: Fault) -> object:
        path = self._folder / f"spk_{call.started}{self._form.suffix}"
        if fault != "badpath":
            self._form.write(path, sound)
        if fault in SPOILED:
            path.write_bytes(SPOILED[fault](path.read_bytes()))
        return self._form.answer(path, sound)


def _described(recording: Any) -> Any:
    """A file argument as JSON: path, SHA-256 of the content, size, decoded seconds."""
    match recording:
        case list():
            return [_described(each) for each in recording]
        case (int(rate), samples):
            return {"rate": rate, "seconds": len(samples) / rate}
        case str() if (path := Path(recording)).is_file():
            content = path.read_bytes()
            return {
                "path": recording,
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "seconds": seconds_of(path),
            }
        case _:
            return recording


def _function(
    engine: Engine, inputs: Inputs, unnamed: int, outputs: int, *, stream: bool
) -> Callable[..., Any]:
    """A function with the signature that Gradio is to describe."""
    names = list(inputs)
    recordings = {name for name, each in inputs.items() if isinstance(each, gr.Audio | gr.File)}

    def speak(*values: Any) -> Any:
        audio = engine.speak(dict(zip(names, values, strict=True)), recordings)
        return (audio, *[None] * (outputs - 1)) if outputs > 1 else audio

    def speak_in_pieces(*values: Any) -> Iterator[Any]:
        yield speak(*values)

    named = names[: len(names) - unnamed]
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in named
    ]
    if unnamed:
        parameters.append(inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL))
    function: Any = speak_in_pieces if stream else speak
    function.__signature__ = inspect.Signature(parameters)
    return function  # type: ignore[no-any-return]


def build(options: Options, journal: Journal) -> gr.Blocks:
    """The app, not yet launched."""
    signature = SIGNATURES[options.signature]
    form = FORMS[options.form or signature.form]
    engine = Engine(signature, form, journal, options.folder)
    app = gr.Blocks(analytics_enabled=False)
    with app:
        inputs = signature.inputs()
        signature.before(inputs)
        outputs = [form.output(), *form.beside(), *signature.beside()]
        function = _function(
            engine,
            inputs,
            signature.unnamed,
            len(outputs),
            stream=form is FORMS["stream"],
        )
        gr.Button().click(
            function,
            list(inputs.values()),
            outputs,
            api_name=signature.api_name,
            concurrency_limit=options.concurrency,
        )
    return app


def serve(options: Options) -> None:
    """Serve until the process is ended."""
    journal = Journal(options.behaviour)
    app = build(options, journal)
    if options.queue_size is not None:  # Gradio queues anyway, and this takes it 100 ms
        app.queue(max_size=options.queue_size)
    # Gradio's queue looks for work every millisecond, which takes 6 % of a core for each idle app.
    app._queue.sleep_when_free = 0.01
    app.launch(
        server_name="127.0.0.1",
        server_port=options.port,
        auth=options.auth,
        root_path=options.root_path,
        show_error=options.show_error,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
    )
    # Last, so that who reaches the control port knows that the app serves.
    ControlServer(options.control_port, journal).serve_forever()
