"""Voices over HTTP: added, heard and removed, on a real gunicorn with two workers."""

import io
import re
import socket
import threading
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import StartGateway, StartServers
from servers import Gateway, GradioApp, NginxServer, start_all, wait_until
from servers.machine import Server
from servers.sound import tone, write_mp3, write_wav

from tts_service.blueprints import client

VOICES = "/v1/audio/voices"
KEY = "sk-voices"
MAX_VOICE_BYTES = 2_000_000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, GradioApp]]:
    """Two workers behind one port, with small limits, and their backend."""
    folder = tmp_path_factory.mktemp("served")
    app = GradioApp("indextts-1.0")
    gateway = Gateway(
        folder,
        GRADIO_URL=app.url,
        WEB_CONCURRENCY=2,
        MAX_BODY_BYTES=20_000,
        MAX_VOICE_BYTES=MAX_VOICE_BYTES,
        MODEL_PROMPT_MAP='{"boss": "%s"}' % (folder / "boss.bin"),
        CORS_ORIGINS="http://page.example",
    )
    write_mp3(folder / "boss.bin", tone(440, 3))
    servers: list[Server] = [app, gateway]
    try:
        start_all(servers)
        yield gateway, app
    finally:
        gateway.stop()
        app.stop()


@pytest.fixture
def gw(served: tuple[Gateway, GradioApp]) -> Iterator[Gateway]:
    """The gateway, with no other voices than at first, and nothing left over afterwards."""
    gateway, app = served
    app.control(reset=True)
    yield gateway
    for path in folder_of(gateway).iterdir():
        assert path.suffix in (".wav", ".mp3"), f"{path.name} was left behind"
        if path.stem not in ("default", "chixiaotu6"):
            path.unlink()
    assert [path for path in gateway.temp.iterdir() if "metrics" not in path.name] == []


@pytest.fixture
def app(served: tuple[Gateway, GradioApp]) -> GradioApp:
    return served[1]


def folder_of(gateway: Gateway) -> Path:
    return gateway.temp.parent / "prompts"


def recording(tmp_path: Path, hertz: float = 300, seconds: float = 2.0) -> bytes:
    write_wav(tmp_path / "recording.wav", tone(hertz, seconds))
    return (tmp_path / "recording.wav").read_bytes()


@pytest.fixture
def sound(tmp_path: Path) -> bytes:
    return recording(tmp_path)


def add(gateway: Gateway, name: str, sound: bytes, **headers: str) -> httpx.Response:
    """On a connection of its own, so that any worker may get it."""
    return httpx.post(
        f"{gateway.url}{VOICES}",
        data={"name": name},
        files={"audio_sample": ("anything.mp3", sound)},
        headers=headers,
        timeout=60,
        verify=False,
    )


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-ID"]
    return dict(answer.json()["error"])


def asked_of_every_worker(gateway: Gateway, path: str) -> set[int]:
    """The statuses that all workers answer with."""
    statuses, marker = set[int](), f"every-{time.monotonic_ns()}"
    for number in range(400):
        headers = {"X-Request-ID": f"{marker}-{number}"}
        answer = httpx.get(f"{gateway.url}{path}", headers=headers, verify=False, timeout=60)
        statuses.add(answer.status_code)
        if len(set(re.findall(rf"\[(\d+) {marker}", gateway.log))) == len(gateway.workers()):
            return statuses
    raise AssertionError("400 requests have not reached every worker")


# -- adding ------------------------------------------------------------------------------------


def test_a_voice_is_added_told_heard_spoken_and_removed(
    gw: Gateway, app: GradioApp, sound: bytes
) -> None:
    added = add(gw, "小明", sound)
    assert added.status_code == 201, added.text
    voice = added.json()
    assert voice == {
        "id": "小明",
        "name": "小明",
        "object": "audio.voice",
        "type": "audio_sample",
        "created_at": voice["created_at"],
        "duration": 2.0,
        "removable": True,
    }
    assert abs(voice["created_at"] - time.time()) < 60
    assert gw.client.get(f"{VOICES}/小明").json() == voice
    assert voice in gw.client.get(VOICES).json()["voices"]
    assert gw.client.get(f"{VOICES}/小明/sample").content == sound
    assert gw.post({"voice": "小明", "input": "Now it is me."}).status_code == 200
    assert len(app.calls) == 1
    removed = gw.client.delete(f"{VOICES}/小明")
    assert removed.json() == {"id": "小明", "object": "audio.voice.deleted", "deleted": True}
    for gone in (
        gw.client.get(f"{VOICES}/小明"),
        gw.client.get(f"{VOICES}/小明/sample"),
        gw.client.delete(f"{VOICES}/小明"),
    ):
        assert (gone.status_code, error_of(gone)["code"]) == (404, "voice_not_found")
    assert gw.post({"voice": "小明", "input": "And me no more."}).status_code == 400


def test_every_worker_knows_at_once_of_a_voice_that_comes_or_goes(
    gw: Gateway, sound: bytes
) -> None:
    assert len(gw.workers()) == 2
    for _ in range(2):
        assert asked_of_every_worker(gw, f"{VOICES}/ann") == {404}
        assert add(gw, "ann", sound).status_code == 201
        assert asked_of_every_worker(gw, f"{VOICES}/ann") == {200}
        assert gw.client.delete(f"{VOICES}/ann").status_code == 200


def test_of_uploads_of_one_name_at_the_same_time_one_is_taken(gw: Gateway, tmp_path: Path) -> None:
    sounds = [recording(tmp_path, seconds=2 + number / 10) for number in range(8)]
    with ThreadPoolExecutor(len(sounds)) as pool:
        answers = [*pool.map(lambda sound: add(gw, "ann", sound), sounds)]
    assert sorted(answer.status_code for answer in answers) == [201] + 7 * [409]
    assert {error_of(a)["code"] for a in answers if a.status_code == 409} == {"voice_exists"}
    (winner,) = (number for number, a in enumerate(answers) if a.status_code == 201)
    assert (folder_of(gw) / "ann.wav").read_bytes() == sounds[winner]


def test_a_replaced_recording_is_never_answered_with_the_old_ones_speech(
    gw: Gateway, app: GradioApp, tmp_path: Path
) -> None:
    asked = {"voice": "ann", "input": "Whose voice is this?"}
    heard = []
    for hertz in (300, 500):
        assert add(gw, "ann", recording(tmp_path, hertz)).status_code == 201
        app.control(reset=True)
        heard.append(gw.post(asked))
        assert len(app.calls) == 1, "the backend was not asked"
        assert gw.client.delete(f"{VOICES}/ann").status_code == 200
    assert [answer.headers["X-Cache"] for answer in heard] == ["MISS", "MISS"]
    assert heard[0].content != heard[1].content
    # The first one again: its speech is still there, for it goes by content.
    app.control(reset=True)
    add(gw, "anna", recording(tmp_path, 300))
    while gw.post({**asked, "voice": "anna"}).headers["X-Cache"] != "HIT":
        assert len(app.calls) <= 2  # once for each worker
    assert gw.post({**asked, "voice": "anna"}).content == heard[0].content


def test_what_waits_while_its_voice_is_replaced_is_spoken_by_the_new_one(
    gateway: StartGateway, backend: GradioApp, tmp_path: Path
) -> None:
    service = gateway(GRADIO_URL=backend.url)
    asked = {"voice": "ann", "input": "Whose turn is it?"}
    assert add(service, "ann", recording(tmp_path, 300)).status_code == 201
    with ThreadPoolExecutor(2) as pool:
        backend.control(hold=True)
        first = pool.submit(service.post, {"input": "The first one."})
        wait_until(lambda: backend.state()["held"] == 1)
        waiting = pool.submit(service.post, asked)
        wait_until(lambda: service.health()["queue"]["segments"] == 1)
        assert service.client.delete(f"{VOICES}/ann").status_code == 200
        assert add(service, "ann", recording(tmp_path, 500)).status_code == 201
        backend.control(hold=False)
        assert first.result().status_code == 200
        assert waiting.result().status_code == 200
    again = service.post(asked)
    assert (again.headers["X-Cache"], again.content) == ("HIT", waiting.result().content)
    service.client.delete(f"{VOICES}/ann")
    add(service, "ann", recording(tmp_path, 300))
    assert service.post(asked).headers["X-Cache"] == "MISS"


def test_openais_sdk_adds_and_removes_a_voice(gw: Gateway, tmp_path: Path) -> None:
    sdk = openai.OpenAI(base_url=f"{gw.url}/v1", api_key="any", max_retries=2)
    path = tmp_path / "ann.wav"
    path.write_bytes(recording(tmp_path))
    voice = sdk.audio.voices.create(name="Zoë", audio_sample=path, consent="cons_1")
    assert (voice.id, voice.name, voice.object) == ("Zoë", "Zoë", "audio.voice")
    assert (voice.type, type(voice.created_at)) == ("audio_sample", int)
    spoken = sdk.audio.speech.create(model="tts-1", voice={"id": voice.id}, input="Hello, I am it.")
    with wave.open(io.BytesIO(spoken.content)) as file:
        assert file.getnframes() > 0
    began = len(gw.log)
    with pytest.raises(openai.ConflictError) as exists:
        sdk.audio.voices.create(name="Zoë", audio_sample=path, consent="cons_1")
    assert (exists.value.code, exists.value.param) == ("voice_exists", "name")
    wait_until(lambda: " status=409 " in gw.log[began:])
    assert gw.log[began:].count(" status=409 ") == 1, "the SDK has tried it again"
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.audio.voices.create(name="Wish", type="prompt", prompt="an old man, friendly")
    assert refused.value.param == "type"
    deleted = sdk.audio.voices.delete(voice.id)
    assert (deleted.id, deleted.deleted, deleted.object) == ("Zoë", True, "audio.voice.deleted")
    with pytest.raises(openai.NotFoundError):
        sdk.audio.voices.delete(voice.id)


# -- what is refused ---------------------------------------------------------------------------


def test_every_fault_of_a_form_is_told_with_its_field(gw: Gateway, sound: bytes) -> None:
    file = {"audio_sample": ("a.wav", sound)}
    name = {"name": "ann"}
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    faults: list[tuple[dict[str, Any], int, str | None, str | None]] = [
        ({"files": file}, 400, "name", None),
        ({"data": {"name": "../ann"}, "files": file}, 400, "name", None),
        ({"data": {"name": "x" * 65}, "files": file}, 400, "name", None),
        ({"data": {"name": "default"}, "files": file}, 409, "name", "voice_exists"),
        ({"data": {"name": "boss"}, "files": file}, 409, "name", "voice_exists"),
        ({"data": name, "files": {"other": sound}}, 400, "audio_sample", None),
        (
            {"data": {**name, "audio_sample": "a.wav"}, "files": {"other": b""}},
            *(400, "audio_sample", None),
        ),
        (
            {"data": name, "files": {"audio_sample": b"<html>"}},
            *(400, "audio_sample", "recording_not_audio"),
        ),
        (
            {"data": name, "files": {"audio_sample": b""}},
            *(400, "audio_sample", "recording_not_audio"),
        ),
        (
            {"data": name, "files": {"audio_sample": sound[:20_044]}},
            *(400, "audio_sample", "recording_not_audio"),
        ),
        ({"data": {**name, "type": "prompt"}, "files": file}, 400, "type", None),
        ({"json": name}, 415, None, None),
        ({"data": name}, 415, None, None),
        ({"content": b"--x\r\nnonsense", "headers": broken}, 400, None, None),
        ({"content": b"", "headers": broken}, 400, None, None),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, None, None),
    ]
    for request, status, param, code in faults:
        answer = gw.client.post(VOICES, **request)
        error = error_of(answer)
        assert (answer.status_code, error["param"], error["code"]) == (status, param, code), request
    assert gw.client.get(f"{VOICES}/ann").status_code == 404


def test_voices_that_the_settings_name_cannot_be_removed(gw: Gateway) -> None:
    told = {voice["id"]: voice["removable"] for voice in gw.client.get(VOICES).json()["voices"]}
    assert told == {"boss": False, "chixiaotu6": True, "default": False}
    for name in ("boss", "default"):
        refused = gw.client.delete(f"{VOICES}/{name}")
        assert (refused.status_code, error_of(refused)["code"]) == (409, "voice_not_removable")


def test_a_key_is_wanted_of_whoever_changes_something_and_of_nobody_else(
    gateway: StartGateway, backend: GradioApp, sound: bytes, tmp_path: Path
) -> None:
    service = gateway(GRADIO_URL=backend.url, API_KEYS=KEY)
    right, wrong = f"Bearer {KEY}", "Bearer sk-wrong"
    large = recording(tmp_path, seconds=40)  # 2 MB, which nobody reads
    assert add(service, "ann", large).status_code == 401
    assert add(service, "ann", large, Authorization=wrong).status_code == 401
    assert add(service, "ann", sound, Authorization=right).status_code == 201
    for path in (VOICES, f"{VOICES}/ann", f"{VOICES}/ann/sample"):
        assert service.client.get(path).status_code == 200
    for headers, status in (({}, 401), ({"Authorization": wrong}, 401)):
        assert service.client.delete(f"{VOICES}/ann", headers=headers).status_code == status
    removed = service.client.delete(f"{VOICES}/ann", headers={"Authorization": right})
    assert removed.status_code == 200


def test_a_folder_that_cannot_be_written_to_is_told(
    gateway: StartGateway, backend: GradioApp, sound: bytes, tmp_path: Path
) -> None:
    (tmp_path / "no-folder").write_text("a file")
    service = gateway(GRADIO_URL=backend.url, PROMPTS_DIR=tmp_path / "no-folder")
    answer = add(service, "ann", sound)
    assert (answer.status_code, error_of(answer)["type"]) == (500, "server_error")
    assert answer.headers["x-should-retry"] == "false"
    assert str(tmp_path) not in answer.text
    assert "no-folder" in service.log
    assert "Traceback" not in service.log


def test_a_page_of_an_allowed_origin_may_change_voices(gw: Gateway, sound: bytes) -> None:
    asked = {
        "Origin": "http://page.example",
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "authorization",
    }
    allowed = gw.client.options(f"{VOICES}/ann", headers=asked)
    assert allowed.is_success
    assert "DELETE" in allowed.headers["Access-Control-Allow-Methods"]
    added = add(gw, "ann", sound, Origin="http://page.example")
    assert added.headers["Access-Control-Allow-Origin"] == "http://page.example"


# -- bodies that are too large, endless, slow, or cut short ------------------------------------


def test_only_this_route_takes_large_bodies(gw: Gateway, tmp_path: Path) -> None:
    nearly = recording(tmp_path, seconds=40)
    assert 20_000 < len(nearly) < MAX_VOICE_BYTES
    assert add(gw, "ann", nearly).status_code == 201
    assert gw.post({"input": "Hi.", "filler": "x" * 100_000}).status_code == 413


@pytest.mark.parametrize("size", [MAX_VOICE_BYTES + 1, 12_000_000])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["with-length", "chunked"])
def test_a_file_too_large_is_told_so_when_it_is_sent(
    gw: Gateway, size: int, is_chunked: bool
) -> None:
    """The client sends all of it before it looks for an answer, as most do."""
    body = form_head("ann") + bytes(size) + b"\r\n--x--\r\n"
    length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(body)
    if is_chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with connected(gw) as connection:
        connection.sendall(request_head(length) + body)
        told = answer_on(connection)
        assert told.startswith(b"HTTP/1.1 413 ")
        assert b'"recording_too_large"' in told
        assert str(MAX_VOICE_BYTES).encode() in told
        # The connection is as good as before.
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert answer_on(connection).startswith(b"HTTP/1.1 200 ")


def test_an_endless_body_is_answered_and_cut_off(gw: Gateway) -> None:
    head = request_head(b"Transfer-Encoding: chunked") + chunk(form_head("ann"))
    piece = chunk(bytes(1_000_000))
    memory = memory_of(gw)
    with connected(gw) as connection:
        connection.sendall(head)
        assert sent_until_cut_off(connection, piece) < 200_000_000
    assert memory_of(gw) - memory < 20_000_000
    assert gw.client.get("/health/live").status_code == 200
    wait_until(lambda: " status=413 " in gw.log)


def test_a_client_that_leaves_in_the_middle_leaves_nothing(gw: Gateway, sound: bytes) -> None:
    body = form_head("ann") + sound
    began = len(gw.log)
    for part in (100, len(body) - 10, len(body)):
        with connected(gw) as connection:
            connection.sendall(request_head(b"Content-Length: %d" % (len(body) + 9)) + body[:part])
    wait_until(lambda: gw.log[began:].count("POST /v1/audio/voices status=400") == 3)
    assert gw.client.get(f"{VOICES}/ann").status_code == 404
    assert "Traceback" not in gw.log


def test_no_file_stays_open_whatever_becomes_of_an_upload(gw: Gateway, sound: bytes) -> None:
    add(gw, "bob", sound)
    large = sound + bytes(1_500_000)  # which goes to the disk while it comes in

    def upload_in_vain() -> None:
        assert add(gw, "bob", large).status_code == 409
        assert add(gw, "a/b", large).status_code == 400
        assert add(gw, "ann", large + large).status_code == 413
        assert add(gw, "ann", bytes(1_500_000)).status_code == 400

    for _ in range(3):  # so that both workers have opened what they keep
        upload_in_vain()
    before = gw.open_files()
    for _ in range(10):
        upload_in_vain()
    wait_until(lambda: gw.open_files() <= before + 2)


def test_a_body_that_takes_too_long_ends() -> None:
    """However often a byte of it comes."""
    ours, theirs = socket.socketpair()
    is_done = threading.Event()

    def trickle() -> None:
        while not is_done.wait(0.01):
            theirs.send(b"x")

    with ours, theirs:
        sender = threading.Thread(target=trickle)
        sender.start()
        with client.time_limit({"gunicorn.socket": ours}, 0.3) as is_over:
            assert not is_over()
            while ours.recv(1):
                pass
            assert is_over()
            ours.sendall(b"an answer still goes out")
        is_done.set()
        sender.join()
        assert theirs.recv(100) == b"an answer still goes out"


def test_a_body_that_comes_in_time_is_left_alone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with client.time_limit({"gunicorn.socket": ours}, 60) as is_over:
            theirs.send(b"x")
            assert ours.recv(1) == b"x"
            assert not is_over()
        wait_until(lambda: not [t for t in threading.enumerate() if type(t) is threading.Timer])
        theirs.send(b"y")
        assert ours.recv(1) == b"y"


@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["endless", "slow"])
def test_who_goes_on_sending_after_the_answer_is_cut_off(
    pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_LONGEST_TAKING_IN", 0.5 if pause else 60.0)
    monkeypatch.setattr(client, "_MOST_TAKEN_IN", 2**40 if pause else 2**20)
    ours, theirs = socket.socketpair()

    def send_for_ever() -> None:
        try:
            while True:
                theirs.sendall(bytes(1024))
                time.sleep(pause)
        except OSError:
            pass

    with ours, theirs, ours.makefile("rb") as body:
        sender = threading.Thread(target=send_for_ever)
        sender.start()
        client.take_in(
            {
                "CONTENT_LENGTH": str(2**40),
                "wsgi.input": body,
                "wsgi.input_terminated": True,
                "gunicorn.socket": ours,
            }
        )
        sender.join(30)
        assert not sender.is_alive()


def connected(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=60)


def sent_until_cut_off(connection: socket.socket, piece: bytes) -> int:
    """How many bytes of an endless body were taken, in the client's own buffers and elsewhere."""
    for count in range(1000):
        try:
            connection.sendall(piece)
        except OSError:
            return count * len(piece)
    raise AssertionError("nobody has cut this off")


def request_head(length: bytes) -> bytes:
    return (
        b"POST /v1/audio/voices HTTP/1.1\r\nHost: gateway\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n%b\r\n\r\n"
    ) % length


def form_head(name: str) -> bytes:
    """A form up to the bytes of its file."""
    return (
        b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n%b\r\n'
        b'--x\r\nContent-Disposition: form-data; name="audio_sample"; filename="a.wav"\r\n\r\n'
    ) % name.encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer_on(connection: socket.socket) -> bytes:
    """One whole answer with a Content-Length."""
    with connection.makefile("rb") as file:
        head = b"".join(iter(file.readline, b"\r\n"))
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None, head
        return head + file.read(int(length[1]))


def memory_of(gateway: Gateway) -> int:
    """What all workers have in memory, at most so far, in bytes."""
    peaks = [Path(f"/proc/{pid}/status").read_text() for pid in gateway.workers()]
    return sum(1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", peak)[0]) for peak in peaks)


# -- hearing -----------------------------------------------------------------------------------


def test_a_recording_is_heard_as_it_is(gw: Gateway, sound: bytes) -> None:
    add(gw, "ann", sound)
    whole = gw.client.get(f"{VOICES}/ann/sample")
    assert (whole.status_code, whole.content) == (200, sound)
    assert whole.headers["Content-Type"] == "audio/wav"
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["Cache-Control"] == "no-cache"
    head = gw.client.head(f"{VOICES}/ann/sample")
    assert (head.content, head.headers["Content-Length"]) == (b"", str(len(sound)))
    mapped = gw.client.get(f"{VOICES}/boss/sample")
    assert (mapped.status_code, mapped.headers["Content-Type"]) == (200, "audio/mpeg")


def test_parts_of_a_recording_can_be_asked_for(gw: Gateway, sound: bytes) -> None:
    add(gw, "ann", sound)

    def part(**headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return gw.client.get(f"{VOICES}/ann/sample", headers=named)

    first = part(Range="bytes=0-43")
    assert (first.status_code, first.content) == (206, sound[:44])
    assert first.headers["Content-Range"] == f"bytes 0-43/{len(sound)}"
    assert part(Range="bytes=-10").content == sound[-10:]
    outside = part(Range=f"bytes={len(sound)}-")
    assert outside.status_code == 416
    etag = first.headers["ETag"]
    known = part(If_None_Match=etag)
    assert (known.status_code, known.content) == (304, b"")
    gw.client.delete(f"{VOICES}/ann")
    add(gw, "ann", sound[:-2000].replace(sound[40:44], (len(sound) - 2044).to_bytes(4, "little")))
    anew = part(If_None_Match=etag)
    assert (anew.status_code, len(anew.content)) == (200, len(sound) - 2000)


def test_paths_are_understood_in_every_spelling(gw: Gateway, sound: bytes) -> None:
    add(gw, "Zoë", sound)
    for path in (f"{VOICES}/Zo%C3%AB", "/audio//voices/Zoë/", f"{VOICES}/Zoe%CC%88"):
        assert gw.client.get(path).json()["id"] == "Zoë"
    for trick in ("..%2Fdefault", "%2e%2e", ".", "default.wav", "%00", "x" * 1000, "%ff"):
        assert gw.client.get(f"{VOICES}/{trick}/sample").status_code == 404


# -- behind nginx ------------------------------------------------------------------------------


def test_uploads_pass_through_nginx_within_their_own_bound(
    gateway: StartGateway, backend: GradioApp, start_servers: StartServers, tmp_path: Path
) -> None:
    service = gateway(GRADIO_URL=backend.url)
    front: NginxServer = start_servers(NginxServer(tmp_path, service.url))[0]
    large = recording(tmp_path, seconds=50)
    assert len(large) > 2_000_000

    def send(sound: bytes) -> httpx.Response:
        return front.client.post(
            "/v1/audio/voices", data={"name": "ann"}, files={"audio_sample": ("a.wav", sound)}
        )

    assert send(large).status_code == 201
    exists = send(large)
    assert (exists.status_code, exists.json()["error"]["code"]) == (409, "voice_exists")
    too_large = send(bytes(12_000_000))
    assert (too_large.status_code, too_large.json()["error"]["param"]) == (413, None)
    part = front.client.get(f"{VOICES}/ann/sample", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"RIFF")
    assert front.client.delete(f"{VOICES}/ann").status_code == 200
