"""What any of OpenAI's SDKs must get from the service: mix `SdkContract` into a test class that has
the fixture `sdk`.
"""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from sdk_process import KEY, Sdk
from servers import Gateway, GradioApp, start_all, wait_until
from servers.machine import Server

from tts_service.audio import FORMATS

NAMED = {"model": "tts-1", "voice": "chixiaotu6"}
SENTENCES = "The first sentence is here. The second one follows it. And then there is a third."

WRONG_FIELDS = [
    ({"voice": "nobody"}, "voice", "voice_not_found", "chixiaotu6"),
    ({"input": ""}, "input", None, "nothing to speak"),
    ({"speed": 9}, "speed", None, "4"),
    ({"response_format": "midi"}, "response_format", None, "opus"),
]


@dataclass(frozen=True)
class Served:
    """One backend behind two gateways; the `narrow` one has a queue of one request.

    The default recording is missing in both, so that every voice but `chixiaotu6` is a 500.
    """

    app: GradioApp
    open_door: Gateway
    narrow: Gateway

    @property
    def url(self) -> str:
        return self.open_door.url


class SdkContract:
    """`ways`: how the SDK's script can take the sound, besides as events."""

    ways: ClassVar[tuple[str, ...]] = ("whole", "chunks", "file")

    @pytest.fixture(scope="class")
    @classmethod
    def sdk(cls) -> Sdk:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def _started(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
        app = GradioApp("indextts-1.0")
        folder = tmp_path_factory.mktemp("served")
        common: dict[str, Any] = {
            "GRADIO_URL": app.url,
            "API_KEYS": KEY,
            "DEFAULT_PROMPT_AUDIO_PATH": folder / "nothing.wav",
        }
        open_door = Gateway(folder, **common, GRADIO_CALL_ATTEMPTS=1, SYNTH_TIMEOUT=3)
        narrow = Gateway(folder, **common, MAX_PENDING=1)
        servers: list[Server] = [app, open_door, narrow]
        try:
            start_all(servers)
            yield Served(app, open_door, narrow)
        finally:
            for server in reversed(servers):
                server.stop()

    @pytest.fixture
    def served(self, _started: Served) -> Served:
        _started.app.control(reset=True)
        return _started

    # -- speech ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", FORMATS)
    def test_every_format_arrives_whole_in_every_way(
        self, sdk: Sdk, served: Served, name: str
    ) -> None:
        fields = {**NAMED, "input": f"{SENTENCES} In {name}.", "response_format": name}
        got = [sdk.speak(served.url, how, fields=fields) for how in self.ways]
        sound = served.open_door.post(fields, Authorization=f"Bearer {KEY}").content
        assert {facts["sha256"] for facts in got} == {hashlib.sha256(sound).hexdigest()}
        assert {facts["type"] for facts in got} == {FORMATS[name].content_type}

    def test_a_stream_begins_before_the_last_sentence_is_spoken(
        self, sdk: Sdk, served: Served
    ) -> None:
        served.app.control(synth_ms=500)
        text = "".join(f"Sentence {i} for version {sdk.version} only. " for i in range(3))
        fields = {**NAMED, "input": text, "stream_format": "audio", "response_format": "pcm"}
        facts = sdk.speak(served.url, "chunks", fields=fields)
        assert facts["chunks"] > 1
        assert facts["first"] < max(call["ended"] for call in served.app.calls)

    def test_events_carry_the_sound_and_end_with_done(self, sdk: Sdk, served: Served) -> None:
        fields = {**NAMED, "input": f"{SENTENCES} As events.", "response_format": "pcm"}
        facts = sdk.speak(served.url, "events", fields={**fields, "stream_format": "sse"})
        assert facts["type"].startswith("text/event-stream")
        assert set(facts["events"][:-1]) == {"speech.audio.delta"}
        assert facts["last"]["type"] == "speech.audio.done"
        assert facts["last"]["usage"]["total_tokens"] > 0
        whole = sdk.speak(served.url, fields=fields)
        assert facts["sha256"] == whole["sha256"]

    # -- models ------------------------------------------------------------------------------------

    def test_models_are_listed_and_retrieved(self, sdk: Sdk, served: Served) -> None:
        assert {"chixiaotu6", "tts-1"} <= set(sdk.ask(served.url, do="models")["ids"])
        facts = sdk.ask(served.url, do="model", id="chixiaotu6")
        assert (facts["object"], facts["owned_by"]) == ("model", "tts-service")

    def test_an_unknown_model_is_not_found(self, sdk: Sdk, served: Served) -> None:
        error = sdk.ask(served.url, do="model", id="nobody/knows")["error"]
        assert "NotFoundError" in error["names"]
        assert (error["status"], error["code"]) == (404, "model_not_found")
        assert "nobody/knows" in error["message"]

    # -- failures ----------------------------------------------------------------------------------

    @pytest.mark.parametrize(("wrong", "param", "code", "told"), WRONG_FIELDS)
    def test_a_wrong_field_is_a_bad_request_that_says_what_is_wrong(
        self,
        sdk: Sdk,
        served: Served,
        wrong: dict[str, Any],
        param: str,
        code: str | None,
        told: str,
    ) -> None:
        fields = {**NAMED, "input": "Hello.", **wrong}
        error = sdk.speak(served.url, fields=fields, request_id="wrong-field")["error"]
        assert "BadRequestError" in error["names"]
        assert error["type"] == "invalid_request_error"
        assert (error["status"], error["param"], error["code"]) == (400, param, code)
        assert error["request_id"] == "wrong-field"
        assert told in error["message"]

    def test_a_wrong_key_is_an_authentication_error(self, sdk: Sdk, served: Served) -> None:
        fields = {**NAMED, "input": "Hello."}
        error = sdk.speak(served.url, fields=fields, key="sk-wrong", retries=2)["error"]
        assert "AuthenticationError" in error["names"]
        assert (error["status"], error["code"]) == (401, "invalid_api_key")
        assert "Incorrect API key" in error["message"]

    def test_a_failing_backend_is_an_internal_server_error(self, sdk: Sdk, served: Served) -> None:
        served.app.control(fail="silent_error")
        error = sdk.speak(served.url, fields={**NAMED, "input": f"To fail {sdk.version}."})["error"]
        assert "InternalServerError" in error["names"]
        assert (error["status"], error["code"]) == (502, "backend_error")

    def test_a_hanging_backend_is_a_status_error_too(self, sdk: Sdk, served: Served) -> None:
        served.app.control(hold=True)
        error = sdk.speak(served.url, fields={**NAMED, "input": f"To hang {sdk.version}."})["error"]
        assert "InternalServerError" in error["names"]
        assert (error["status"], error["code"]) == (504, "backend_timeout")

    # -- retries -----------------------------------------------------------------------------------

    def test_an_overloaded_service_is_asked_again_when_it_says_so(
        self, sdk: Sdk, served: Served
    ) -> None:
        served.app.control(hold=True)
        with ThreadPoolExecutor(1) as pool:
            narrow = served.narrow
            held = pool.submit(
                narrow.post,
                {**NAMED, "input": f"Held by {sdk.version}."},
                Authorization=f"Bearer {KEY}",
            )
            wait_until(lambda: served.app.state()["held"] == 1)
            told = narrow.post({**NAMED, "input": "Not now."}, Authorization=f"Bearer {KEY}")
            assert (told.status_code, told.json()["error"]["code"]) == (503, "overloaded")
            request_id = f"retried-{time.monotonic_ns()}"
            facts = sdk.speak(
                narrow.url,
                fields={**NAMED, "input": f"Not for {sdk.version}."},
                retries=2,
                request_id=request_id,
            )
            served.app.control(hold=False)
            assert held.result().status_code == 200
        assert "InternalServerError" in facts["error"]["names"]
        assert facts["error"]["code"] == "overloaded"
        assert requests(narrow, request_id, 3) == 3
        # Left to themselves the SDKs wait 0.5 s and 1 s at most.
        assert 2 * int(told.headers["Retry-After"]) <= facts["took"] < 30

    def test_what_cannot_get_better_is_not_asked_again(self, sdk: Sdk, served: Served) -> None:
        request_id = f"hopeless-{time.monotonic_ns()}"
        fields = {"model": "tts-1", "voice": "alloy", "input": "By the default."}
        facts = sdk.speak(served.url, fields=fields, retries=2, request_id=request_id)
        assert "InternalServerError" in facts["error"]["names"]
        assert facts["error"]["status"] == 500
        assert "default recording" in facts["error"]["message"]
        assert requests(served.open_door, request_id, 1) == 1


def requests(service: Gateway, request_id: str, due: int) -> int:
    """How many requests of this id the service has answered. A line may come after its answer: as
    many as are due are waited for."""

    def count() -> int:
        lines = [line for line in service.log.splitlines() if request_id in line]
        return sum("POST /v1/audio/speech" in line for line in lines)

    wait_until(lambda: count() >= due)
    return count()
