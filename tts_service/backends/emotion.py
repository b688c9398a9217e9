"""IndexTTS 2's emotion: which of its ways to control it a request's parameters mean.

Its `emo_control_method` takes the label of a choice, in the server's language, so choices are
known by their place: 0 the speaker's own, 1 a recording's, 2 a vector's, 3 a text's. The last one
is hidden, and only works in a session in which `/on_experimental_change` was called.
"""

from collections.abc import Mapping
from typing import Any

METHOD = "emo_control_method"
TEXT = "emo_text"
SWITCH = "/on_experimental_change"
_VECTOR = frozenset(f"vec{i}" for i in range(1, 9))
_BY_VECTOR = 2
_BY_TEXT = 3

#: Stands for the hidden choice until a session has told its label.
BY_TEXT = "<emotion by text>"

#: What other models call a text that says how to speak.
INSTRUCTION_NAMES = (
    "instructions",
    "instruction",
    "instruct_text",
    "instruct",
    "control_instruction",
    "style_prompt",
)


def instructed(names: Mapping[str, Any], *, has_switch: bool) -> str | None:
    """The parameter among `names` that instructions go to, if there is one that works."""
    if TEXT in names and METHOD in names and has_switch:
        return TEXT
    return next((name for name in INSTRUCTION_NAMES if name in names), None)


def implied_method(
    picked: Mapping[str, Any], choices: tuple[Any, ...], *, has_switch: bool
) -> str | None:
    """The method that the `picked` parameters mean where none of them says it."""
    if METHOD in picked:
        return None
    if TEXT in picked and has_switch:
        return BY_TEXT
    if not _VECTOR.isdisjoint(picked) and len(choices) > _BY_VECTOR:
        return str(choices[_BY_VECTOR])
    return None


def text_choice(result: Any) -> str | None:
    """The label of the hidden choice in what the switch returned, if it is there.

    The switch updates the radio buttons: `{"choices": [[label, value], ...]}`, by itself or as
    the first of several updates.
    """
    match result:
        case {"choices": list() as choices} if len(choices) > _BY_TEXT:
            choice = choices[_BY_TEXT]
            return str(choice[1] if isinstance(choice, list | tuple) else choice)
        case [first, *_]:
            return text_choice(first)
    return None
