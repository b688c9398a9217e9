"""Binding a speech segment to a Gradio function, by the names in the API's own description.

Positions, defaults and even the number of parameters differ between versions and forks of
IndexTTS, and between it and other models; names and labels are what stays (`GET /info` of a
Gradio server describes them). Nothing here depends on an order.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tts_service.backends import emotion
from tts_service.errors import BackendMisfit, InvalidRequest

#: What models call the text to speak and the recording to imitate; the first match is taken.
TEXT_NAMES = ("text", "gen_text_input", "tts_text", "text_input", "gen_text", "input_text", "input")
PROMPT_NAMES = (
    "prompt",
    "prompts",
    "ref_audio_input",
    "prompt_wav_upload",
    "audio_prompt_path",
    "audio_prompt_input",
    "ref_wav",
    "reference_audio",
    "ref_audio",
    "prompt_audio",
)
_TEXT_COMPONENTS = frozenset({"Textbox", "TextArea", "MultimodalTextbox"})
_FILE_COMPONENTS = frozenset({"Audio", "File", "Files", "UploadButton"})
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_BETWEEN = re.compile(f"numeric value between {_NUMBER} and {_NUMBER}$")
_OTHER_FILE_COMPONENTS = frozenset({"Image", "Video", "Gallery", "ImageEditor", "Model3D"})


@dataclass(frozen=True, slots=True)
class Parameter:
    """One input of a Gradio function, as the server describes it."""

    name: str
    label: str
    component: str
    schema: Mapping[str, Any]  # JSON Schema
    has_default: bool
    default: Any

    @classmethod
    def from_description(cls, item: Mapping[str, Any], index: int) -> "Parameter":
        schema = item.get("type")
        return cls(
            name=str(item.get("parameter_name") or f"param_{index}"),
            label=str(item.get("label") or ""),
            component=str(item.get("component") or ""),
            schema=schema if isinstance(schema, dict) else {},
            has_default=bool(item.get("parameter_has_default")),
            default=item.get("parameter_default"),
        )

    @property
    def takes_file(self) -> bool:
        return self.component in _FILE_COMPONENTS | _OTHER_FILE_COMPONENTS

    @property
    def takes_list(self) -> bool:
        """Whether it wants a list of files (`file_count="multiple"`)."""
        return self.schema.get("type") == "array"

    @property
    def choices(self) -> tuple[Any, ...]:
        items = self.schema.get("items")
        nested = items.get("enum") if isinstance(items, dict) else None
        found = self.schema.get("enum") or nested
        return tuple(found) if isinstance(found, list) else ()

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The least and the greatest value; Gradio tells a slider's only in its description."""
        told = _BETWEEN.match(str(self.schema.get("description")))
        low, high = map(float, told.groups()) if told else (None, None)
        return _bound(self.schema.get("minimum", low)), _bound(self.schema.get("maximum", high))

    def check(self, value: Any, asked_as: str | None = None) -> Any:
        """`value` in the described type; numbers and booleans may come as strings.

        Raises InvalidRequest, which says what is allowed, and names the field as it was asked.
        """
        try:
            checked = self._choice(value) if self.choices else _coerce(value, self._type)
            self._check_range(checked)
        except ValueError as error:
            name = asked_as or self.name
            raise InvalidRequest(f"Invalid '{name}': {error}.", param=name) from None
        return checked

    @property
    def _type(self) -> Any:
        return self.schema.get("type")

    def _choice(self, value: Any) -> Any:
        """The choice, or list of choices, that `value` means; Gradio calls all of them strings."""
        if self.takes_list:
            return [self._one_choice(item) for item in _coerce(value, "array")]
        return self._one_choice(value)

    def _one_choice(self, value: Any) -> Any:
        if value in self.choices:
            return self.choices[self.choices.index(value)]
        by_text = {str(choice).lower(): choice for choice in self.choices}
        if (text := str(value).lower()) in by_text:
            return by_text[text]
        allowed = ", ".join(repr(choice) for choice in self.choices)
        raise ValueError(f"{value!r} is not among {allowed}")

    def _check_range(self, value: Any) -> None:
        low, high = self.bounds
        if not isinstance(value, int | float) or isinstance(value, bool):
            return
        if (low is not None and value < low) or (high is not None and value > high):
            least = [] if low is None else [f"at least {low:g}"]
            most = [] if high is None else [f"at most {high:g}"]
            raise ValueError(f"expected {' and '.join(least + most)}, not {value}")


@dataclass(frozen=True, slots=True)
class Binding:
    """How one function of a server is called."""

    api_name: str
    text: Parameter
    prompt: Parameter
    #: The other parameters that a value can be given to, by name; files are never among them.
    parameters: Mapping[str, Parameter]
    #: What is sent for parameters that nobody gives a value.
    fixed: Mapping[str, Any]
    #: Tells models apart: replicas of one model describe themselves alike.
    identity: str
    #: Whether the server can be asked for IndexTTS 2's emotion by text.
    has_emotion_switch: bool = False

    def arguments(self, text: str, recording: Any, params: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one call by parameter name; `recording` is Gradio's file record."""
        prompt = [recording] if self.prompt.takes_list else recording
        return {**self.fixed, **params, self.text.name: text, self.prompt.name: prompt}

    def effective(self, fields: Mapping[str, Any], instructions: str | None) -> dict[str, Any]:
        """The parameters that a request's `fields` and `instructions` come down to.

        Raises InvalidRequest.
        """
        picked = self.pick(fields)
        instructed = emotion.instructed(self.parameters, has_switch=self.has_emotion_switch)
        if instructions and instructed:
            picked.setdefault(instructed, instructions)
        method = self.parameters.get(emotion.METHOD)
        if method is not None and emotion.METHOD not in self.fixed:
            implied = emotion.implied_method(
                picked, method.choices, has_switch=self.has_emotion_switch
            )
            picked |= {emotion.METHOD: implied} if implied else {}
        return picked

    def pick(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `fields` that are parameters by name or label, checked, by name.

        Fields that the function does not have are left out; null means absent.
        Raises InvalidRequest.
        """
        by_label = {p.label: p for p in self.parameters.values() if p.label}
        picked = {}
        for key, value in fields.items():
            parameter = self.parameters.get(key) or by_label.get(key)
            if parameter is not None and value is not None:
                picked[parameter.name] = parameter.check(value, key)
        return picked


def bind(
    description: Mapping[str, Any], api_name: str, values: Mapping[str, Any], title: str = ""
) -> Binding:
    """The binding for `api_name` in a server's API description, with `values` for some of its
    parameters by name or label.

    `description` is Gradio's: `{"named_endpoints": {name: {"parameters": [...]}}}`.
    Raises BackendMisfit where the function, its text or its recording cannot be made out.
    """
    functions = description.get("named_endpoints") or {}
    if api_name not in functions:
        raise BackendMisfit(
            f"the backend has no function {api_name} (GRADIO_API_NAME); it offers: "
            f"{_listed(functions)}"
        )
    items = functions[api_name].get("parameters") or []
    parameters = [Parameter.from_description(item, index) for index, item in enumerate(items)]
    prompt = _only(parameters, PROMPT_NAMES, _FILE_COMPONENTS, "audio parameter", api_name)
    text = _only(parameters, TEXT_NAMES, _TEXT_COMPONENTS, "text parameter", api_name)
    rest = [p for p in parameters if p not in (prompt, text)]
    open_ones = {p.name: p for p in rest if not p.takes_file}
    # Gradio refuses a call that leaves out a parameter without a default, and engines take None.
    required = {p.name: None for p in rest if not p.has_default}
    identity = _identity(title, api_name, items, values)
    has_switch = emotion.SWITCH in functions
    binding = Binding(api_name, text, prompt, open_ones, required, identity, has_switch)
    return _with_values(binding, values)


def _with_values(binding: Binding, values: Mapping[str, Any]) -> Binding:
    labels = {p.label for p in binding.parameters.values()}
    unknown = [key for key in values if key not in binding.parameters and key not in labels]
    if unknown:
        raise BackendMisfit(
            f"GRADIO_PARAMS names {', '.join(unknown)}, but {binding.api_name} has: "
            f"{_listed(binding.parameters)}"
        )
    try:
        picked = binding.pick(values)
    except InvalidRequest as error:
        raise BackendMisfit(f"GRADIO_PARAMS: {error.message}") from None
    return dataclasses.replace(binding, fixed={**binding.fixed, **picked})


def _only(
    parameters: list[Parameter],
    names: Iterable[str],
    components: frozenset[str],
    what: str,
    api_name: str,
) -> Parameter:
    """The parameter meant by one of `names`, else by its label, else the only one of its kind."""
    fitting = [p for p in parameters if p.component in components]
    by_name = {p.name: p for p in fitting}
    by_label = {p.label.strip().lower(): p for p in fitting}
    for known in (by_name, by_label):
        for name in names:
            if name in known:
                return known[name]
    if len(fitting) == 1:
        return fitting[0]
    found = _listed(f"{p.name} ({p.component or 'unknown'})" for p in parameters)
    problem = "no" if not fitting else "more than one possible"
    raise BackendMisfit(f"{api_name} has {problem} {what}; its parameters are: {found}")


def _identity(
    title: str, api_name: str, parameters: Iterable[Mapping[str, Any]], values: Mapping[str, Any]
) -> str:
    """A short hash of what tells one model from another in a server's description, and of the
    `values` that are set for it."""
    told = [
        [item.get(key) for key in ("parameter_name", "label", "component", "parameter_default")]
        + [item.get("type", {}).get("enum") if isinstance(item.get("type"), dict) else None]
        for item in parameters
    ]
    text = json.dumps([title, api_name, told, values], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _coerce(value: Any, kind: Any) -> Any:
    """`value` as JSON Schema's `kind`. Raises ValueError that says what is expected."""
    match kind:
        case "boolean":
            return _boolean(value)
        case "integer":
            number = _number(value)
            if not isinstance(number, int):
                raise ValueError("expected an integer")
            return number
        case "number":
            return _number(value)
        case "string":
            if not isinstance(value, str):
                raise ValueError("expected a string")
            return value
        case "array":
            if not isinstance(value, list):
                raise ValueError("expected a list")
            return value
        case _:
            return value


def _bound(value: Any) -> float | None:
    """A bound that numbers can be held against; a server may describe anything."""
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _number(value: Any) -> float:
    """A whole number as int, as a browser would send it: engines count beams with it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("expected a number") from None
    if not math.isfinite(number):  # NaN and the infinities have no place in JSON
        raise ValueError("expected a finite number")
    if isinstance(value, int):
        return value  # a float would round a long seed
    return int(number) if number.is_integer() else number
