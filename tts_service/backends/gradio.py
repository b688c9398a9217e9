"""One Gradio server as a backend, called through gradio_client.

What the client needs to be fit for a server (each was measured):
one SSL context for all calls, or each one loads the CA bundle several times; a Client per
thread at a time, or it loses results; built after the fork, or it hangs; no downloads, or each
call leaves a folder behind; and an end to every wait, which it has not got by itself.

A server that was restarted may have another layout, and the client calls by index: before each
call `app_id`, which changes with each start of a server, is compared, and all that was learned
about the server's last launch is thrown away when it changed.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import logging
import os
import re
import ssl
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from tts_service.audio import Audio, UndecodableAudio, decode, wav
from tts_service.backends import emotion, wire
from tts_service.backends.base import BackendLost, BackendUnreachable, ModelChanged, Segment
from tts_service.backends.binding import Binding, bind
from tts_service.errors import (
    BackendError,
    BackendMisfit,
    BackendTimeout,
    PromptMissing,
    RecordingReplaced,
    SpeechError,
)
from tts_service.logs import without_credentials
from tts_service.voices import Voice

# Read at import, and by each client in spite of analytics_enabled=False.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio_client.client
from gradio_client import Client
from gradio_client.exceptions import AppError, AuthenticationError

# It calls httpx's functions, and offers no other way to bound what they take in.
gradio_client.client.httpx = wire.bounded_httpx()  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)

LONGEST_RECORDING = 16.0  # seconds; IndexTTS itself uses the first 15
LARGEST_RESULT = 32 * 1024 * 1024  # bytes
#: Calls that ran out of time and still keep the server, and threads of ours, busy: no more then.
MOST_OVERDUE = 8
_PING_SECONDS = 3.0
_ANSWER_SECONDS = 10.0
# The server sends a heartbeat every 15 s while a job waits or runs, so silence is a fault.
_STREAM_TIMEOUT = httpx.Timeout(_ANSWER_SECONDS, read=30)
#: For the end of an answered call's stream, which follows its result at once.
_STREAM_END_SECONDS = 1.0
#: Messages of a call before its result; the result is complete in itself.
_CHATTER = {"estimation", "process_starts", "process_generating", "progress", "log"}
_OLDEST_GRADIO = 4
_CREDENTIALS = re.compile(r"(?<=:)//[^/@\s]*@")  # in a URL; httpx shows them in some errors
# Uvicorn closes a connection that was idle for 5 s: one that old may break under a request.
_LIMITS = httpx.Limits(keepalive_expiry=3)


class GradioBackend:
    """A Gradio server at `url`; cheap to build, connects when it is first used."""

    def __init__(
        self,
        url: str,
        *,
        api_name: str = "/gen_single",
        params: Mapping[str, Any] | None = None,
        auth: tuple[str, str] | None = None,
        token: str | None = None,
    ) -> None:
        self.name = without_credentials(url)
        self._url = url
        self._api_name = "/" + api_name.lstrip("/")
        self._params = dict(params or {})
        self._auth = auth
        self._token = token
        self._launch: Launch | None = None
        self._connecting = threading.Lock()

    def describe(self) -> Binding:
        return self._current_launch(time.monotonic() + _ANSWER_SECONDS).binding

    def ping(self) -> None:
        launch = self._launch
        if launch is None:
            self.describe()
            return
        with self._reaching():
            launch.app_id_now()

    def synthesize(
        self, segment: Segment, timeout: float, arrived: Callable[[], None] = lambda: None
    ) -> Audio:
        deadline = time.monotonic() + timeout
        launch = self._current_launch(deadline)
        if launch.binding.identity != segment.identity:
            raise ModelChanged(f"The backend {self.name} serves another model now.")
        if launch.count_overdue() >= MOST_OVERDUE:
            raise BackendUnreachable(f"The backend {self.name} is stuck in earlier calls.")
        was_uploaded = launch.has_recording(segment.voice)
        with self._calling(launch, deadline):
            try:
                return self._call(launch, segment, deadline, arrived)
            except AppError:
                # Gradio does not notice that an upload was deleted: the engine fails over it.
                if not was_uploaded or launch.still_has(segment.voice):
                    raise
                logger.info("backend %s has lost a recording: uploading it again", self.name)
                launch.forget_recording(segment.voice)
                return self._call(launch, segment, deadline, arrived)

    def abandon(self) -> None:
        launch, self._launch = self._launch, None
        if launch is not None:
            launch.end()

    def close(self) -> None:
        self.abandon()

    def _call(
        self, launch: "Launch", segment: Segment, deadline: float, arrived: Callable[[], None]
    ) -> Audio:
        record = launch.recording(segment.voice, deadline)
        arguments = launch.binding.arguments(segment.text, record, segment.params)
        with launch.lend_client(lambda: self._new_client(deadline)) as client:
            if arguments.get(emotion.METHOD) == emotion.BY_TEXT:
                arguments[emotion.METHOD] = _emotion_by_text(client, launch, deadline)
            client.on_arrival = arrived
            job = client.submit(api_name=self._api_name, **arguments)
            result = launch.wait(job.future, deadline)
        return decode(launch.read(_result_path(result), deadline))

    def _current_launch(self, deadline: float) -> "Launch":
        """The launch of the server that answers now; connects if it is not known yet."""
        known = self._launch
        with self._reaching():
            if known is not None and known.is_current(deadline):
                return known
        with _held(self._connecting, deadline):
            launch = self._launch
            if launch is None or launch is known:
                self.abandon()
                launch = self._launch = self._connect(deadline)
            return launch

    def _connect(self, deadline: float) -> "Launch":
        with self._reaching():
            client = self._new_client(deadline)
            description = client.view_api(print_info=False, return_format="dict")
            title = str(client.config.get("title") or "")
            assert isinstance(description, dict)
            binding = bind(description, self._api_name, self._params, title)
            launch = Launch(client, binding, deadline)
            logger.info(
                "backend %s is connected: %s speaks %s with %s",
                self.name,
                binding.api_name,
                binding.text.name,
                binding.prompt.name,
            )
            return launch

    def _new_client(self, deadline: float) -> "EventDrivenClient":
        return EventDrivenClient(
            self._url,
            # None would send the token that the machine's user is logged in with to any server.
            token=self._token or False,
            auth=self._auth,
            verbose=False,
            analytics_enabled=False,
            download_files=False,
            ssl_verify=_shared_ssl_context(),
            httpx_kwargs={"timeout": _at_most(_ANSWER_SECONDS, deadline)},
        )

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """What the client raises while connecting, as ours."""
        try:
            yield
        except SpeechError:
            raise
        except AuthenticationError:
            raise BackendMisfit(
                f"The backend {self.name} refuses the login (GRADIO_AUTH)."
            ) from None
        except Exception as error:
            # Besides httpx's errors: ValueError for a page that is not Gradio's, KeyError and
            # the like for a proxy's half an answer while the server is coming up.
            raise BackendUnreachable(
                f"The backend {self.name} cannot be reached: {_said(error)}"
            ) from error

    @contextlib.contextmanager
    def _calling(self, launch: "Launch", deadline: float) -> Iterator[None]:
        """What the client raises during a call, as ours."""
        try:
            yield
        except SpeechError:
            raise
        except UndecodableAudio as error:
            raise BackendError(f"The backend's audio cannot be used: {error}") from None
        except AppError as error:
            raise BackendError(f"The backend failed: {_said(error)}") from None
        except concurrent.futures.CancelledError as error:
            raise BackendLost(
                f"The backend {self.name} was lost: its stream of events ended before the result."
            ) from error
        except httpx.TransportError as error:
            if isinstance(error, httpx.TimeoutException) and time.monotonic() >= deadline:
                raise BackendTimeout("The backend did not answer in time.") from error
            raise BackendLost(f"The backend {self.name} was lost: {_said(error)}") from error
        except Exception as error:
            if launch.lost.done():  # its connections were closed under the call
                raise BackendLost(f"The backend {self.name} was given up.") from error
            raise BackendError(f"The backend failed: {_said(error)}") from error


class Launch:
    """What is known of one run of a server, from its start to its end."""

    def __init__(self, client: "EventDrivenClient", binding: Binding, deadline: float) -> None:
        self.binding = binding
        #: Done when the calls under way are to be given up.
        self.lost: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._http = wire.Client(
            base_url=client.src_prefixed,
            headers=client.headers,
            cookies=client.cookies,
            verify=_shared_ssl_context(),
            timeout=_ANSWER_SECONDS,
            limits=_LIMITS,
        )
        self._idle = [client]
        self._overdue: set[concurrent.futures.Future[Any]] = set()
        self._recordings: dict[str, str] = {}
        self._uploading: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._app_id = self.app_id_now(_at_most(_PING_SECONDS, deadline))

    def app_id_now(self, timeout: float = _PING_SECONDS) -> Any:
        """The server's id, new with each of its starts; None where a server has none."""
        response = self._http.get("app_id", timeout=timeout)
        if response.status_code == 404:
            return None
        return response.raise_for_status().json()["app_id"]

    def is_current(self, deadline: float) -> bool:
        """Whether the server is still the one that was connected to."""
        if self.lost.done():
            return False
        return bool(self.app_id_now(_at_most(_PING_SECONDS, deadline)) == self._app_id)

    def wait(self, job: "concurrent.futures.Future[Any]", deadline: float) -> Any:
        """The job's result. Raises what the job raised, BackendLost, BackendTimeout."""
        try:
            return _wait(job, self.lost, deadline)
        except BackendTimeout:
            with self._lock:
                self._overdue.add(job)
            raise

    def count_overdue(self) -> int:
        """Calls that were given up for their time and that the server has not ended since."""
        with self._lock:
            self._overdue = {job for job in self._overdue if not job.done()}
            return len(self._overdue)

    def has_recording(self, voice: Voice) -> bool:
        return voice.fingerprint in self._recordings

    def still_has(self, voice: Voice) -> bool:
        """Whether the server still has the uploaded recording."""
        path = urllib.parse.quote(self._recordings.get(voice.fingerprint, ""))
        answer = self._http.head(f"file={path}", timeout=_PING_SECONDS)
        return answer.is_success

    def forget_recording(self, voice: Voice) -> None:
        self._recordings.pop(voice.fingerprint, None)

    def recording(self, voice: Voice, deadline: float) -> dict[str, Any]:
        """Gradio's file record of the voice's recording, which is uploaded at its first use.

        The name is stable, because IndexTTS keeps the last speaker's conditioning by path.
        """
        with self._lock:
            uploading = self._uploading.setdefault(voice.fingerprint, threading.Lock())
        with _held(uploading, deadline):
            path = self._recordings.get(voice.fingerprint)
            if path is None:
                path = self._recordings[voice.fingerprint] = self._upload(voice, deadline)
        # Gradio's client would take "path" for a local file and upload it, were it not for
        # EventDrivenClient.
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    @contextlib.contextmanager
    def lend_client(
        self, build: Callable[[], "EventDrivenClient"]
    ) -> Iterator["EventDrivenClient"]:
        """A client for this thread alone. One whose call broke off is not lent again: its threads
        may be in the middle of anything."""
        with self._lock:
            client = self._idle.pop() if self._idle else None
        client = client or build()
        is_sound = False
        try:
            yield client
            is_sound = True
        except AppError:  # the function failed; the client has done its work
            is_sound = True
            raise
        finally:
            with self._lock:
                # What is left over in its mailboxes came unasked, and would pile up.
                has_rest = bool(client.pending_messages_per_event)
                is_kept = is_sound and not has_rest and not self.lost.done()
                if is_kept:
                    self._idle.append(client)
            if not is_kept:
                _dismiss(client)

    def read(self, path: str, deadline: float) -> bytes:
        """A file of the server's. Raises BackendError (too large), or what httpx raises."""
        try:
            response = self._http.get(
                "file=" + urllib.parse.quote(path),
                timeout=_at_most(_ANSWER_SECONDS, deadline),
                extensions={wire.LARGEST: LARGEST_RESULT, wire.UNTIL: deadline},
            )
        except wire.TooMuch as error:
            raise BackendError(f"The backend's audio cannot be taken: {error}") from None
        return response.raise_for_status().content

    def end(self) -> None:
        """Give up the calls under way, and let connections and clients go."""
        with self._lock:
            if not self.lost.done():
                self.lost.set_result(None)
            idle, self._idle = self._idle, []
        for client in idle:
            _dismiss(client)
        self._http.close()

    def _upload(self, voice: Voice, deadline: float) -> str:
        try:
            content = voice.recording.read_bytes()
            recording = decode(content, longest=LONGEST_RECORDING)
        except (OSError, UndecodableAudio) as error:
            logger.error("the recording %s cannot be used: %s", voice.recording, error)
            raise PromptMissing(f"The recording of voice {voice.name!r} cannot be used.") from None
        if hashlib.sha256(content).hexdigest() != voice.fingerprint:
            # Its sound would be kept as the other one's, here and in the cache.
            raise RecordingReplaced(
                f"The recording of voice {voice.name!r} was just replaced.", retry_after=1
            )
        files = {"files": (f"{voice.fingerprint[:16]}.wav", wav(recording), "audio/wav")}
        timeout = _at_most(_ANSWER_SECONDS, deadline)
        response = self._http.post("upload", files=files, timeout=timeout)
        return str(response.raise_for_status().json()[0])


class EventDrivenClient(Client):
    """A gradio_client that waits for messages, where the original looks every 50 ms, and that
    sends file records as they are, where the original uploads the file again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Called once, when the server has the next call in its queue.
        self.on_arrival: Callable[[], None] | None = None
        super().__init__(*args, **kwargs)
        # What was given is for connecting.
        self.httpx_kwargs = {**self.httpx_kwargs, "timeout": _STREAM_TIMEOUT}
        self.pending_messages_per_event = _Mailboxes()
        for endpoint in self.endpoints.values():
            endpoint.process_input_files = _unchanged  # type: ignore[method-assign]

    def send_data(self, *args: Any, **kwargs: Any) -> Any:
        """Put a call into the server's queue.

        Not before the stream of the call before has ended: the server says so after its result,
        and a call that comes in between counts on a stream that nobody reads any more.
        """
        if self.streaming_future is not None:
            concurrent.futures.wait([self.streaming_future], _STREAM_END_SECONDS)
        event_id = super().send_data(*args, **kwargs)  # type: ignore[no-untyped-call]
        on_arrival, self.on_arrival = self.on_arrival, None
        if on_arrival is not None:
            on_arrival()
        return event_id

    def _login(self, auth: tuple[str, str]) -> None:
        try:
            super()._login(auth)
        except ValueError as error:  # a wrong password is answered with 400
            raise AuthenticationError(str(error)) from None

    def _get_config(self) -> dict[str, Any]:
        """The server's description of itself, if it leads to nobody but that server."""
        config = super()._get_config()
        prefix = str(config.get("api_prefix", "")).lstrip("/")
        if _origin(urllib.parse.urljoin(self.src, prefix)) != _origin(self.src):
            raise BackendMisfit("The backend sends its clients to another host.")
        # The client would ask a service on the internet about it, and send the token along.
        if int(str(config.get("version", "2.0")).partition(".")[0]) < _OLDEST_GRADIO:
            raise BackendMisfit(f"The backend's Gradio is older than {_OLDEST_GRADIO}.")
        # The heartbeat, by which the server tells that a session has ended, would be one more
        # thread and connection for each client.
        return {**config, "connect_heartbeat": False}


class _Mailboxes(dict[str, Any]):
    """The client's queues of messages by event, each one a mailbox."""

    _MOST = 64  # one for each call under way; a server may invent others

    def __setitem__(self, event_id: str, messages: "deque[Any]") -> None:
        if len(self) >= self._MOST:
            raise wire.TooMuch("The server tells of events that nobody asked for.")
        super().__setitem__(event_id, _Mailbox(messages))

    def setdefault(self, event_id: str, default: Any = ()) -> Any:
        if event_id not in self:
            self[event_id] = default
        return self[event_id]


class _Mailbox(deque[Any]):
    """A queue whose length is asked for by whoever wants to read: the answer waits a while for
    the first message, and so saves the asker its sleep."""

    _PATIENCE = 1.0  # seconds, after which the client does what it would have done

    def __init__(self, messages: Any = ()) -> None:
        super().__init__(messages)
        self._arrival = threading.Condition()

    def append(self, message: Any) -> None:
        if message is not None and message["msg"] in _CHATTER:
            return  # nobody looks at it, and the client would keep it all
        with self._arrival:
            super().append(message)
            self._arrival.notify_all()

    def __len__(self) -> int:
        with self._arrival:
            self._arrival.wait_for(super().__len__, self._PATIENCE)
            return super().__len__()


def _dismiss(client: Client) -> None:
    """Let a client's threads end, as soon as they have nothing to do. Left to the garbage
    collector, they would wait for it: a failed call's traceback refers to the client."""
    for pool in (client.executor, client.helper_executor, client.stream_executor):
        pool.shutdown(wait=False)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _unchanged(*data: Any) -> tuple[Any, ...]:
    return data


@functools.cache
def _shared_ssl_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _at_most(seconds: float, deadline: float) -> float:
    """A timeout of `seconds`, or as long as there is until `deadline`."""
    return max(0.001, min(seconds, deadline - time.monotonic()))


@contextlib.contextmanager
def _held(lock: threading.Lock, deadline: float) -> Iterator[None]:
    """Hold the lock. Raises BackendTimeout if others hold it until `deadline`."""
    if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
        raise BackendTimeout("The backend did not answer in time.")
    try:
        yield
    finally:
        lock.release()


def _wait(
    job: "concurrent.futures.Future[Any]",
    lost: "concurrent.futures.Future[None]",
    deadline: float,
) -> Any:
    """The job's result. Raises what the job raised, BackendLost, BackendTimeout."""
    timeout = max(0.0, deadline - time.monotonic())
    first = concurrent.futures.FIRST_COMPLETED
    done = concurrent.futures.wait({job, lost}, timeout, return_when=first).done
    if job in done:
        return job.result()
    if lost in done:
        raise BackendLost("The backend stopped answering while it was speaking.")
    raise BackendTimeout("The backend did not speak in time.")


def _emotion_by_text(client: Client, launch: Launch, deadline: float) -> str:
    """Switch the hidden choice on in this client's session, and give its label."""
    shown = launch.binding.parameters[emotion.METHOD].choices[0]
    job = client.submit(True, shown, api_name=emotion.SWITCH)
    choice = emotion.text_choice(launch.wait(job.future, deadline))
    if choice is None:
        raise BackendError("The backend does not offer emotion by text.")
    return choice


def _result_path(result: Any) -> str:
    """The server's path of the audio in a function's result, whatever its form.

    A path, a file record, an update (`gr.update`) holding one, or a sequence of several outputs
    with the audio first. Raises BackendError.
    """
    match result:
        case {"is_stream": True}:
            raise BackendError(
                "The backend answers with a streaming playlist (HLS); only functions that return "
                "a whole file are supported."
            )
        case {"path": str() as path} if path:
            return path
        case {"value": value}:
            return _result_path(value)
        case str() as path if path:
            return path
        case [first, *_]:
            return _result_path(first)
    raise BackendError(f"The backend returned no audio but {_shortened(repr(result))}.")


def _said(error: BaseException) -> str:
    """What an error says in one line, or at least what it is."""
    told = _CREDENTIALS.sub("//", " ".join(str(error).split()))
    return _shortened(told) or type(error).__name__


def _shortened(text: str, longest: int = 200) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
