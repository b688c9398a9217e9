"""A function is called by what its server's description says, and by nothing else."""

from collections.abc import Mapping
from typing import Any

import pytest

from tts_service.backends.binding import Binding, Parameter, bind
from tts_service.errors import BackendMisfit, InvalidRequest

Item = dict[str, Any]

TOP_P = {"type": "number", "description": "numeric value between 0 and 1"}
LANGUAGES = {"type": "string", "enum": ["ZH", "EN"]}


def item(name: str, component: str, label: str = "", **more: Any) -> Item:
    """A parameter as `GET /info` of a Gradio server has it."""
    has_default = "default" in more
    return {
        "parameter_name": name,
        "label": label,
        "component": component,
        "type": more.get("type", {}),
        "parameter_has_default": has_default,
        "parameter_default": more.get("default"),
    }


PROMPT = item("prompt", "Audio", "参考音频")
TEXT = item("text", "Textbox", "文本")
OPTIONS = [
    item("param_5", "Slider", "top_p", type=TOP_P, default=0.8),
    item("lang_choice", "Dropdown", "语言", type=LANGUAGES, default="ZH"),
    item("emo_random", "Checkbox", "Random", type={"type": "boolean"}, default=False),
    item("emo_ref_path", "Audio", "Emotion"),
    item("note", "Textbox", "Note", type={"type": "string"}),
]


def bound(
    *items: Item, values: Mapping[str, Any] | None = None, title: str = "", name: str = "/speak"
) -> Binding:
    """The binding of a function with these parameters."""
    return bind({"named_endpoints": {name: {"parameters": [*items]}}}, name, values or {}, title)


def parameter(**schema: Any) -> Parameter:
    return Parameter("top_k", "Top K", "Slider", schema, has_default=True, default=None)


def refusal(checked: Parameter, value: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        checked.check(value)
    return caught.value


# -- which parameter is which ----------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_a_known_name_counts_whatever_the_order_and_the_label(order: int) -> None:
    items = [item("emo_text", "Textbox", "Text"), item("ref", "Audio", "Prompt"), TEXT, PROMPT]
    binding = bound(*items[::order])
    assert (binding.text.name, binding.prompt.name) == ("text", "prompt")


def test_a_label_counts_where_no_name_is_known() -> None:
    binding = bound(
        item("param_0", "Textbox", "Style"),
        item("param_1", "Textbox", " Text "),
        item("param_2", "Audio", "Background"),
        item("param_3", "Audio", "Prompt"),
    )
    assert (binding.text.name, binding.prompt.name) == ("param_1", "param_3")


def test_the_only_one_of_its_kind_needs_no_known_name() -> None:
    binding = bound(item("wavefile", "Audio"), item("sentence", "Textbox"))
    assert (binding.text.name, binding.prompt.name) == ("sentence", "wavefile")


def test_a_known_name_of_another_kind_is_no_text() -> None:
    binding = bound(item("text", "Checkbox"), item("sentence", "Textbox"), PROMPT)
    assert binding.text.name == "sentence"


def test_a_parameter_without_a_name_gets_that_of_its_place() -> None:
    nameless = {"component": "Slider", "label": "", "type": {}, "parameter_has_default": True}
    assert [*bound(PROMPT, TEXT, nameless).parameters] == ["param_2"]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([PROMPT], "no text parameter; its parameters are: prompt (Audio)"),
        ([TEXT], "no audio parameter; its parameters are: text (Textbox)"),
        ([], "its parameters are: nothing"),
        (
            [PROMPT, item("a", "Textbox"), item("b", "Textbox")],
            "more than one possible text parameter; "
            "its parameters are: prompt (Audio), a (Textbox), b (Textbox)",
        ),
        (
            [TEXT, item("a", "Audio"), item("b", "File")],
            "more than one possible audio parameter",
        ),
    ],
)
def test_a_misfit_names_what_was_found(items: list[Item], said: str) -> None:
    with pytest.raises(BackendMisfit) as caught:
        bound(*items)
    assert said in caught.value.message
    assert "/speak" in caught.value.message


@pytest.mark.parametrize(
    ("description", "offered"),
    [
        ({"named_endpoints": {"/tts": {}, "/stt": {}}}, "/tts, /stt"),
        ({"named_endpoints": {}}, "nothing"),
        ({}, "nothing"),
    ],
)
def test_a_missing_function_is_a_misfit_that_names_the_others(
    description: Mapping[str, Any], offered: str
) -> None:
    with pytest.raises(BackendMisfit) as caught:
        bind(description, "/gen_single", {})
    assert "/gen_single (GRADIO_API_NAME)" in caught.value.message
    assert caught.value.message.endswith(f"it offers: {offered}")


# -- what is sent ----------------------------------------------------------------------------


def test_nothing_is_sent_for_a_parameter_with_a_default_and_none_for_one_without() -> None:
    record = {"path": "/a.wav"}
    assert bound(PROMPT, TEXT, *OPTIONS).arguments("您好。", record, {}) == {
        "prompt": record,
        "text": "您好。",
        "emo_ref_path": None,
        "note": None,
    }


def test_several_files_are_sent_as_a_list() -> None:
    files = item("prompts", "File", type={"type": "array"})
    record = {"path": "/a.wav"}
    assert bound(files, TEXT).arguments("您好。", record, {})["prompts"] == [record]


def test_set_values_are_sent_by_name_and_give_way_to_a_segments_own() -> None:
    binding = bound(PROMPT, TEXT, *OPTIONS, values={"top_p": "0.5", "lang_choice": "EN"})
    assert binding.arguments("", None, {"param_5": 0.9}) == {
        "prompt": None,
        "text": "",
        "param_5": 0.9,
        "lang_choice": "EN",
        "emo_ref_path": None,
        "note": None,
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"top_q": 1}, ["top_q", "param_5", "lang_choice"]),
        ({"emo_ref_path": "/etc/passwd"}, ["emo_ref_path"]),
        ({"text": "always this"}, ["text"]),
        ({"top_p": "much"}, ["top_p", "expected a number"]),
        ({"param_5": 1.5}, ["param_5", "at least 0 and at most 1"]),
        ({"语言": "FR"}, ["语言", "'ZH', 'EN'"]),
        ({"emo_random": "maybe"}, ["emo_random", "true or false"]),
    ],
)
def test_set_values_that_do_not_fit_are_a_misfit(values: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(BackendMisfit) as caught:
        bound(PROMPT, TEXT, *OPTIONS, values=values)
    assert all(word in caught.value.message for word in ["GRADIO_PARAMS", *said])


# -- what a request may set ------------------------------------------------------------------


def test_fields_are_taken_by_name_and_by_label_and_given_by_name() -> None:
    fields = {"top_p": 0.5, "lang_choice": "EN", "Random": "true", "note": "soft"}
    assert bound(PROMPT, TEXT, *OPTIONS).pick(fields) == {
        "param_5": 0.5,
        "lang_choice": "EN",
        "emo_random": True,
        "note": "soft",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1, "model": "tts-1", "": 1},
        {"top_p": None, "lang_choice": None},
        {"emo_ref_path": "/etc/passwd", "Emotion": {"path": "/etc/passwd"}},
        {"prompt": {"path": "/etc/passwd"}, "text": "something else", "文本": "something else"},
    ],
    ids=["unknown", "null", "file", "text and recording"],
)
def test_a_field_that_is_no_parameter_is_left_out(fields: dict[str, Any]) -> None:
    assert bound(PROMPT, TEXT, *OPTIONS).pick(fields) == {}


@pytest.mark.parametrize("component", ["Audio", "File", "UploadButton", "Image", "Video"])
def test_a_file_is_never_taken_from_a_request(component: str) -> None:
    file = item("other", component, "Other")
    assert bound(PROMPT, TEXT, file).pick({"other": "/etc/passwd", "Other": "x"}) == {}


@pytest.mark.parametrize("asked_as", ["param_5", "top_p"])
def test_a_refusal_names_the_field_as_it_was_asked(asked_as: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        bound(PROMPT, TEXT, *OPTIONS).pick({asked_as: 2})
    assert caught.value.param == asked_as
    assert caught.value.message == (
        f"Invalid '{asked_as}': expected at least 0 and at most 1, not 2."
    )


# -- one value -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "checked"),
    [
        ("number", 0.5, 0.5),
        ("number", "0.5", 0.5),
        ("number", " -1e-3 ", -0.001),
        ("number", 3, 3),
        ("number", "3", 3),
        ("number", 3.0, 3),
        ("integer", "12", 12),
        ("integer", 12.0, 12),
        ("integer", 2**53 + 1, 2**53 + 1),
        ("boolean", True, True),
        ("boolean", "True", True),
        ("boolean", "false", False),
        ("boolean", "1", True),
        ("boolean", "0", False),
        ("string", "", ""),
        ("string", "12", "12"),
        ("array", ["a"], ["a"]),
        (None, {"any": "thing"}, {"any": "thing"}),
    ],
)
def test_a_value_is_passed_on_in_the_described_type(
    kind: str | None, value: Any, checked: Any
) -> None:
    found = parameter(type=kind).check(value)
    assert found == checked
    assert type(found) is type(checked)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("number", "much", "a number"),
        ("number", "", "a number"),
        ("number", True, "a number"),
        ("number", [1], "a number"),
        ("number", 10**400, "a number"),
        ("number", float("nan"), "a finite number"),
        ("number", "NaN", "a finite number"),
        ("number", "-inf", "a finite number"),
        ("number", "1e999", "a finite number"),
        ("integer", 1.5, "an integer"),
        ("integer", "1.5", "an integer"),
        ("integer", "Infinity", "a finite number"),
        ("boolean", 1, "true or false"),
        ("boolean", "yes", "true or false"),
        ("string", 12, "a string"),
        ("string", ["a"], "a string"),
        ("array", "a", "a list"),
    ],
)
def test_a_value_of_another_type_is_refused(kind: str, value: Any, expected: str) -> None:
    error = refusal(parameter(type=kind), value)
    assert error.message == f"Invalid 'top_k': expected {expected}."
    assert error.param == "top_k"


@pytest.mark.parametrize(
    ("schema", "good", "bad", "expected"),
    [
        ({"minimum": 0.5, "maximum": 2}, [0.5, "2"], [0.49, 2.1], "at least 0.5 and at most 2"),
        ({"minimum": 0}, [0, 10**9], [-1], "at least 0"),
        ({"maximum": 20}, [-5, 20], ["20.5"], "at most 20"),
        (
            {"description": "numeric value between -1.5 and 600"},
            [-1.5, "600"],
            [-2, 601],
            "at least -1.5 and at most 600",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(
    schema: dict[str, Any], good: list[Any], bad: list[Any], expected: str
) -> None:
    ranged = parameter(type="number", **schema)
    for value in good:
        assert ranged.check(value) == float(value)
    for value in bad:
        assert f"expected {expected}, not {value}." in refusal(ranged, value).message


def test_a_value_that_is_no_choice_is_refused_with_the_choices() -> None:
    error = refusal(parameter(type="string", enum=["普通推理", "批次推理"]), "快速推理")
    assert error.message == "Invalid 'top_k': '快速推理' is not among '普通推理', '批次推理'."


@pytest.mark.parametrize(
    ("choices", "value", "chosen"),
    [
        (["ZH", "EN"], "EN", "EN"),
        (["ZH", "EN"], "en", "EN"),
        ([False, True], "true", True),  # Gradio says "string" of any choice's type
        ([False, True], False, False),
        ([16000, 24000], "24000", 24000),
        ([16000, 24000], 16000, 16000),
    ],
)
def test_a_choice_is_passed_on_as_it_was_described(
    choices: list[Any], value: Any, chosen: Any
) -> None:
    found = parameter(type="string", enum=choices).check(value)
    assert found == chosen
    assert type(found) is type(chosen)


def test_several_choices_are_each_checked() -> None:
    several = parameter(type="array", items={"type": "string", "enum": ["a", "b"]})
    assert several.check(["b", "a"]) == ["b", "a"]
    assert "'c' is not among 'a', 'b'" in refusal(several, ["a", "c"]).message
    assert "expected a list" in refusal(several, "a").message


# -- which model it is -----------------------------------------------------------------------


def test_one_model_has_one_identity() -> None:
    assert bound(PROMPT, TEXT, *OPTIONS).identity == bound(PROMPT, TEXT, *OPTIONS).identity


def test_whatever_tells_models_apart_changes_the_identity() -> None:
    identities = [
        bound(PROMPT, TEXT, *OPTIONS).identity,
        bound(PROMPT, TEXT).identity,
        bound(PROMPT, TEXT, *OPTIONS, title="IndexTTS").identity,
        bound(PROMPT, TEXT, *OPTIONS, name="/gen_single").identity,
        bound(PROMPT, TEXT, *OPTIONS, values={"top_p": 0.5}).identity,
        bound(PROMPT, TEXT, *OPTIONS, values={"top_p": 0.6}).identity,
        bound(TEXT, PROMPT, *OPTIONS).identity,
        bound(PROMPT, TEXT, OPTIONS[0] | {"parameter_default": 0.7}, *OPTIONS[1:]).identity,
        bound(PROMPT, TEXT, OPTIONS[0], OPTIONS[1] | {"type": {"enum": ["ZH"]}}).identity,
    ]
    assert len(set(identities)) == len(identities)
