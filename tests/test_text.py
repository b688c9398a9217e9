"""Where an input is split into segments, and where it never is."""

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tts_service.text import EARLY, SHORTEST, is_speakable, segments

# Each sample is the list of segments expected of its parts, joined.
CHINESE = [
    ["今天天气很好。", "我们去公园吧！", "你觉得呢？"],
    ["今天气温是3.5度。", "明天呢？"],
    ["什么？！", "真的。"],
    ["ok。hello。", "再见了。"],
    ["《你好，李焕英！》是一部电影。", "很好看。"],
    ["（见第3页。）", "然后我们走。"],
    ["他走了（真的吗？）然后回来。", "好吧。"],
    ["「本当？」と彼は言った。", "そうですか。"],
]
ENGLISH = [
    ["It works. ", "Is that so? ", "Yes!"],
    ["Dr. Smith paid $3.14, e.g. in cash. ", "He left."],
    ["Mr. A. B. Jones met Mrs. Lee. ", "They spoke."],
    ["The U.S. team won. ", "Good."],
    ["Version v1.2.3 is out. ", "Get it from ASP.NET or Node.Js now."],
    ["Look at https://a.example/b.C?d=x!Y. ", "Done."],
    ["Write to ann.b@mail.example.com. ", "Thanks."],
    ["He paid 1,000 dollars. ", "Why?"],
    ["He left (finally!) and slept. ", "(It works.) ", "Then he came."],
]
MIXED = [
    ["我在用Python 3.11.2版。", "It works. ", "然后呢？"],
    ["你好!", "我是Tom.", "你呢?"],
    ["真的吗?", "Yes, it is."],
    ["请看 https://a.example/?q=1。", "谢谢你。"],
]
DIALOGUE = [
    ["“真的吗？”她问。", "然后走了。"],
    ['"真的吗？"她问。', "好的呀。", '"你呢？"她说。'],
    ["“你好。”", "他说：“我叫小明。”"],
    ["他说：“走吧！”", "于是大家都走了。"],
    ["他喊了声“好！”就走了。", "再见。"],
    ["“真的吗？”", "“真的。”"],
    ["“今天很好。", "我们走吧。”他说。"],
    ['"Really?" Tom asked. ', '"Yes!" he said.'],
    ['He said "Hi." ', "Then left. ", "“I don’t know.” ", "She left."],
]
ELLIPSES = [
    ["他想了想……还是走了。", "再见。"],
    ["我走了…… ", "你呢？"],
    ["我不知道……你说呢？"],
    ["“不是……”", "他走了。"],
    ["Wait... what? ", "Yes."],
]
FRAGMENTS = [
    ["1. First item. ", "2. Second item."],
    ["10. 你好世界。\n", "11. 再见世界。"],
    ["好！真的吗？", "是的。"],
    ["你好。😀"],
    ["😀！你好呀。"],
    ["真的吗？ ！！ ", "是的。"],
]
MARKDOWN = [
    ["# 标题\n\n", "第一句。", "第二句。\n", "- 第一项\n", "- second item\n"],
    ["**注意！**", "下一句话。", "**Hello.** ", "Next one."],
    ["| a | b |\n|---|---|\n", "| 1 | 2 |\n"],
    ["Run this:\n```\n", "foo.Bar(x)\n```\n"],
    ["---\nTitle here\n---\n\n", "Text here."],
]
LINES = [
    ["no full stop\n", "Another line\r\n\r\n    ", "indented"],
    ["  leading. ", "space.  \n"],
    ["one two\u2028", "three four"],
]
SAMPLES = CHINESE + ENGLISH + MIXED + DIALOGUE + ELLIPSES + FRAGMENTS + MARKDOWN + LINES

AWKWARD = st.text(
    st.one_of(
        st.characters(),
        st.characters(categories=["Cs", "Cc", "Cf", "Mn"]),
        st.sampled_from(
            "  \n\r\t\x00.。！？!?…，,：“”\"'《》（）()*1a字가\u200d\u0301\ufe0f👩🇨🇳🏽"
        ),
    ),
    max_size=150,
)
SENTENCES = [
    "今天天气很好，我们去公园散步。",
    "The quick brown fox jumps over the lazy dog. ",
    "他问：“真的吗？”她点了点头。",
    "Dr. Smith paid $3.14 for it. ",
    "他想了想……还是走了。",
    "Is that so? ",
    "看（图三）就明白了！",
    "（见第三页。）",
    "It’s v1.2.3, e.g. the new one. ",
]
EDITS = [
    *SENTENCES,
    "“没有结束的话。",
    "没有开头”的话。",
    "（括号没关。",
    "(an open one. ",
    'It is 5" wide. ',
    "Don't 'do it. ",
    "《书名没完。",
    "好。",
    "1. ",
    "……",
    "第一行\n第二行。",
    "\n\n",
    "",
]


def spoken_lengths(pieces: list[str]) -> list[int]:
    return [len(piece.strip()) for piece in pieces]


@pytest.mark.parametrize("expected", SAMPLES, ids="".join)
def test_a_sentence_is_a_segment(expected: list[str]) -> None:
    assert segments("".join(expected), first=120) == expected


@given(AWKWARD, st.integers(1, 60), st.none() | st.integers(1, 60))
@settings(max_examples=600, deadline=None)
@example("\ud83d\ude00\ud83d.", 1, None)
@example(" " * 200 + "a" + " " * 200 + "b", 10, 1)
@example("“" * 200, 7, 7)
@example("🇨🇳" * 100, 5, 3)
def test_joined_segments_are_the_text_and_none_is_too_long(
    text: str, longest: int, first: int | None
) -> None:
    pieces = segments(text, longest, first)
    assert "".join(pieces) == text
    assert all(pieces)
    assert all(length <= longest for length in spoken_lengths(pieces))
    assert pieces == segments(text, longest, first)


@given(AWKWARD)
@settings(max_examples=200, deadline=None)
def test_only_the_first_segment_begins_with_space(text: str) -> None:
    assert not any(piece[0].isspace() for piece in segments(text)[1:])


@given(AWKWARD)
@settings(max_examples=200, deadline=None)
def test_a_text_with_something_to_say_has_no_silent_first_segment(text: str) -> None:
    pieces = segments(text, longest=len(text) + 1, first=len(text) + 1)
    assert [is_speakable(piece) for piece in pieces[:1]] in ([], [is_speakable(text)])


@given(
    st.lists(st.sampled_from(SENTENCES), min_size=20, max_size=20),
    st.sampled_from(EDITS),
)
@settings(max_examples=400, deadline=None)
def test_an_edit_changes_only_its_own_and_a_neighbouring_segment(
    sentences: list[str], edit: str
) -> None:
    before, after = "".join(sentences[:9]), "".join(sentences[12:])
    edited = "".join([*sentences[:10], edit, *sentences[11:]])
    original = segments("".join(sentences))
    changed = segments(edited)
    assert "".join(changed) == edited
    assert _prefix(changed, len(before)) == _prefix(original, len(before))
    assert _prefix(changed[::-1], len(after)) == _prefix(original[::-1], len(after))


def _prefix(pieces: list[str], length: int) -> list[str]:
    """The pieces that make up the first `length` characters, which must end with one of them."""
    kept: list[str] = []
    for piece in pieces:
        if sum(map(len, kept)) >= length:
            break
        kept.append(piece)
    assert sum(map(len, kept)) == length
    return kept


def test_an_edit_of_a_plain_sentence_leaves_all_others_alone() -> None:
    sentences = [f"这是第{i}个完整的句子。" for i in range(20)]
    edited = [*sentences[:10], "中间的句子换了，而且长了一些！", *sentences[11:]]
    assert segments("".join(sentences)) == sentences
    assert segments("".join(edited)) == edited


@pytest.mark.parametrize("unit", ["字", "a", "ก", "é", "😀", "“", "."])
def test_text_without_a_place_to_cut_is_cut_at_the_bound(unit: str) -> None:
    pieces = segments(unit * 2000)
    assert "".join(pieces) == unit * 2000
    assert set(spoken_lengths(pieces[:-2])) == {120}
    assert min(spoken_lengths(pieces)) >= 20


def test_a_long_sentence_is_cut_after_its_clauses() -> None:
    clauses = ["我们走过了一条很长很长的路，", "看见了许多从来没有看见过的东西；"] * 8
    pieces = segments("".join(clauses) + "最后回到了家。", longest=50)
    assert len(pieces) > 4
    assert all(piece[-1] in "，；。" for piece in pieces)


def test_a_long_sentence_without_clauses_is_cut_at_spaces() -> None:
    text = " ".join(["word"] * 200) + "."
    pieces = segments(text)
    assert {word for piece in pieces for word in piece.split()} == {"word", "word."}
    assert max(spoken_lengths(pieces)) > 100


@pytest.mark.parametrize("length", range(121, 150))
def test_a_cut_leaves_no_tiny_tail(length: int) -> None:
    text = ("那么我们" * 40)[: length - 5] + "，去看看。"
    assert min(spoken_lengths(segments(text))) >= 10


@pytest.mark.parametrize(
    "whole",
    [
        "3.14",
        "1,000,000",
        "12:30",
        "v1.2.3",
        "https://a.example/b,c;d?e=f:g",
        "ann.b@mail.example.com",
        "e.g. this",
        "Dr. Smith",
        "1990–2000",
    ],
)
@pytest.mark.parametrize("fill", ["word ", "字"])
def test_a_cut_never_splits_what_belongs_together(whole: str, fill: str) -> None:
    for shift in range(60):
        text = (fill * 40)[:shift] + f" {whole} " + fill * 20
        pieces = segments(text, longest=60, first=60)
        assert sum(whole in piece for piece in pieces) == 1, pieces


@pytest.mark.parametrize(
    "grapheme",
    [
        "e\u0301\u0323",
        "👩\u200d👩\u200d👧",
        "🇨🇳",
        "👍🏽",
        "❤\ufe0f",
        "1\ufe0f\u20e3",
        "\ud83d\ude00",
        "각",
    ],
)
def test_a_cut_never_splits_a_grapheme(grapheme: str) -> None:
    for longest in range(10, 24):
        pieces = segments("x" + grapheme * 60, longest)
        assert all(re.fullmatch(f"x?(?:{grapheme})+", piece) for piece in pieces)


def test_a_grapheme_longer_than_the_bound_is_split_after_all() -> None:
    assert spoken_lengths(segments("e" + "\u0301" * 99, longest=10)) == [10] * 10


@pytest.mark.parametrize("mark", "，；：、")
def test_a_long_first_sentence_is_cut_early_at_a_clause(mark: str) -> None:
    head = f"今天的天气真的是非常好{mark}"
    tail = "我们一起去公园里散散步看看花然后再去吃一顿好吃的午饭最后回家睡觉。"
    assert segments(head + tail + tail) == [head, tail, tail]


def test_a_long_first_sentence_without_an_early_clause_is_cut_at_a_space() -> None:
    text = "The quick brown fox jumps over the lazy dog and then runs away."
    first, rest = segments(text)
    assert SHORTEST <= len(first.strip()) <= EARLY
    assert first.endswith(" ")
    assert first + rest == text


def test_a_first_sentence_without_any_pause_is_not_cut_early() -> None:
    assert segments("字" * 100 + "。") == ["字" * 100 + "。"]


def test_the_early_cut_waits_for_a_pause_past_its_length() -> None:
    assert segments("字" * 60 + "，" + "字" * 30) == ["字" * 60 + "，", "字" * 30]


@given(st.lists(st.sampled_from(["好", "我们", "word ", "，", ", "]), min_size=30, max_size=60))
@settings(max_examples=200, deadline=None)
def test_an_early_cut_leaves_nothing_that_sounds_broken_off(parts: list[str]) -> None:
    text = "".join(["Begin", *parts, "the end"])
    pieces = segments(text, longest=len(text), first=20)
    assert min(spoken_lengths(pieces)) >= SHORTEST - 1
    assert len(pieces) <= 2


def test_only_the_first_sentence_is_cut_early() -> None:
    long = "今天的天气真的是非常好，" * 4 + "真的。"
    assert segments("你好。" + long) == ["你好。", long]


def test_a_given_first_length_replaces_the_default() -> None:
    text = "今天的天气真好，我们去公园，然后回家。"
    assert segments(text) == [text]
    assert segments(text, first=10) == ["今天的天气真好，", "我们去公园，然后回家。"]


@pytest.mark.parametrize(("longest", "first"), [(0, None), (120, 0), (-1, 5)])
def test_a_length_below_one_is_refused(longest: int, first: int | None) -> None:
    with pytest.raises(ValueError, match="at least one"):
        segments("text", longest, first)


def test_an_empty_text_has_no_segments() -> None:
    assert segments("") == []


@pytest.mark.parametrize("text", [" ", "\n\n", "...", "😀", "…！？", "--- \n***"])
def test_a_text_with_nothing_to_say_is_one_segment(text: str) -> None:
    assert segments(text) == [text]


@pytest.mark.parametrize(
    ("text", "speakable"),
    [
        ("a", True),
        ("字", True),
        ("7", True),
        ("½", True),
        ("①", True),
        ("สวัสดี", True),
        ("“好”", True),
        ("😀 a", True),
        ("", False),
        (" \n", False),
        (".", False),
        ("……！？", False),
        ("😀👍🏽❤\ufe0f", False),
        ("_*#-~`", False),
        ("\x00\u200b\ud83d", False),
    ],
)
def test_letters_and_numbers_of_any_script_are_speakable(text: str, speakable: bool) -> None:
    assert is_speakable(text) is speakable


@pytest.mark.parametrize(
    "unit",
    ["字", "a", "\n", " ", "“", '"', "'", "(", "。", "…", "，", "你好?", "Foo.Bar", "Ok؟Ok",
     "《a。", "“a！”x", "1. ", "🇨🇳", "e\u0301", "a\n", "---\n", "Да. "],
)  # fmt: skip
def test_time_grows_no_faster_than_the_text(unit: str) -> None:
    short, long = ("Hi." + unit * (length // len(unit)) for length in (10_000, 40_000))
    # Four times as much when linear, sixteen times when quadratic.
    assert _seconds(lambda: segments(long)) < 9 * _seconds(lambda: segments(short)) + 0.05


def _seconds(work: Callable[[], object]) -> float:
    """CPU time of the quicker of two runs."""
    times = []
    for _ in range(2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)
