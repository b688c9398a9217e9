"""A backend's own parameters in a request, and turns among requests, on real parts."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import StartGateway, StartGradioApp
from servers import Gateway, GradioApp, wait_until


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, GradioApp]]:
    """A gateway in front of IndexTTS 2.5."""
    app = GradioApp("indextts-2.5")
    gateway = Gateway(tmp_path_factory.mktemp("served"), GRADIO_URL=app.url)
    for server in (app, gateway):
        server.launch()
    try:
        for server in (app, gateway):
            server.wait_ready()
        yield gateway, app
    finally:
        gateway.stop()
        app.stop()


@pytest.fixture
def gw(served: tuple[Gateway, GradioApp]) -> Gateway:
    return served[0]


@pytest.fixture
def app(served: tuple[Gateway, GradioApp]) -> GradioApp:
    served[1].control(reset=True)
    return served[1]


def arguments(app: GradioApp) -> dict[str, Any]:
    """Of the only call since the reset."""
    (call,) = app.calls
    return dict(call["arguments"])


@pytest.mark.parametrize(
    ("fields", "name", "received"),
    [
        ({"emo_weight": 0.3}, "emo_weight", 0.3),
        ({"emo_weight": "0.4"}, "emo_weight", 0.4),
        ({"lang_choice": "EN"}, "lang_choice", "EN"),
        ({"max_text_tokens_per_segment": 60}, "max_text_tokens_per_segment", 60),
        ({"emo_random": True}, "emo_random", True),
        ({"vec2": 0.5}, "emo_control_method", 2),
        ({"instructions": "Sadly."}, "emo_text", "Sadly."),
        ({"instructions": "Gladly."}, "emo_control_method", 3),
    ],
)
def test_a_parameter_of_the_backend_reaches_it(
    gw: Gateway, app: GradioApp, fields: dict[str, Any], name: str, received: object
) -> None:
    answer = gw.post({"input": f"With {name} as {received}.", **fields})
    assert answer.status_code == 200, answer.text
    assert arguments(app)[name] == received


def test_a_parameter_by_its_label_reaches_the_backend(gw: Gateway, app: GradioApp) -> None:
    assert gw.post({"input": "By its label.", "top_p": 0.5}).status_code == 200
    assert 0.5 in arguments(app).values()


@pytest.mark.parametrize(
    ("fields", "param", "allowed"),
    [
        ({"lang_choice": "KLINGON"}, "lang_choice", "'ZH'"),
        ({"emo_weight": "very"}, "emo_weight", "number"),
        ({"emo_random": "perhaps"}, "emo_random", "true or false"),
        ({"top_p": [1]}, "top_p", "number"),
        ({"top_p": 7}, "top_p", "at most 1"),
    ],
)
def test_a_wrong_value_is_400_and_told_what_is_allowed(
    gw: Gateway, app: GradioApp, fields: dict[str, Any], param: str, allowed: str
) -> None:
    answer = gw.post({"input": "Wrong.", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert allowed in answer.json()["error"]["message"]
    assert app.calls == []


def test_parameters_are_part_of_the_key_and_files_are_never_taken(
    gw: Gateway, app: GradioApp
) -> None:
    text = {"input": "Keyed by its parameters."}
    verdicts = [
        gw.post({**text, **fields}).headers["X-Cache"]
        for fields in ({}, {"emo_weight": 0.1}, {"emo_weight": "0.1"}, {"emo_weight": None})
    ]
    assert verdicts == ["MISS", "MISS", "HIT", "HIT"]
    assert gw.post({**text, "emo_ref_path": "/etc/passwd"}).headers["X-Cache"] == "HIT"
    assert [call["arguments"]["emo_ref_path"] for call in app.calls] == [None, None]


def test_speed_is_made_here_so_that_every_speed_shares_one_call(
    gw: Gateway, app: GradioApp
) -> None:
    for speed in (0.5, 1, 2):
        assert gw.post({"input": "At any speed.", "speed": speed}).status_code == 200
    assert arguments(app)["duration_factor"] == 1


def test_a_short_request_is_not_behind_a_long_ones_remaining_segments(
    gateway: StartGateway, gradio_app: StartGradioApp
) -> None:
    app = gradio_app("indextts-1.0", synth_ms=200)
    service = gateway(GRADIO_URL=app.url)
    long = " ".join(f"This is sentence number {i} of a long text." for i in range(20))
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(service.post, {"input": long})
        wait_until(lambda: app.state()["count"] >= 3)
        begun = len(app.calls)
        short = pool.submit(service.post, {"input": "A short one in between."})
        assert short.result().status_code == 200
        assert reading.result().status_code == 200
    spoken = [call["text"] for call in app.calls]
    # At most the one being spoken, and one that was handed over already, came before it.
    assert spoken.index("A short one in between.") <= begun + 1
    assert len(spoken) == 22  # the first sentence is cut early
