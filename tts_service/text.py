"""From an input to the segments that are spoken in one go.

Nothing here looks further than a sentence and its neighbours: an edit costs only its own segments,
the rest stays in the cache. That is why no sentence is ever packed together with another one.

`sentencex` knows abbreviations and initials, so it judges the marks of alphabetic scripts. Quotes
and brackets are hidden from it: it lets an open one reach over the rest of the line, in quadratic
time. Marks that end a sentence in any company, and what follows a quote, are judged here.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple
from unicodedata import category

from sentencex import segment  # type: ignore[attr-defined]  # from its compiled module

#: Characters the first segment may have unless told otherwise: two to eight seconds of speech.
EARLY = 40
#: A first segment, or what it leaves of its sentence, sounds broken off below this many characters.
SHORTEST = 8
#: How far back, in characters, an opening quote is looked for.
REACH = 80

_CJK = (
    r"\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
_SURE_CLOSERS = "”’」』）】》〉〕»›)\\]}"
_OPENER = dict(zip("”’」』）】》〉〕»›)]}\"'", "“‘「『（【《〈〔«‹([{\"'", strict=True))

# Line ends as str.splitlines knows them, with the blank lines and the indentation that follow.
_LINE = re.compile(
    r"[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]*+[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*"
    r"|[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+"
)
_SPACE = re.compile(r"\s*")
_VOICED = re.compile(r"[^\W_]")
# Enough to be spoken well by itself: three letters or digits, a CJK character counting as two.
_WHOLE_SENTENCE = re.compile(
    rf"[\W_]*+(?:[{_CJK}][\W_]*+[^\W_]|[^\W_][\W_]*+(?:[{_CJK}]|[^\W_][\W_]*+[^\W_]))"
)

# Marks that need no dictionary. The lookbehinds keep a run of marks from being tried at each of its
# characters; an ellipsis only counts where something new visibly begins.
_PLAIN_END = re.compile(
    r"[。！？｡؟।॥۔][。！？｡؟।॥۔!?…]*"
    rf"|(?<![!?])[!?]++(?=[{_CJK}])|(?<=[{_CJK}])[!?]++(?=[A-Z])"
    r"|(?<!…)…++(?=[”」』]|\s++[^\sa-z\d]|[“「『])"
)
# What sentencex need not be asked about, which is most of what stands between full-width marks.
_MARKLESS = re.compile(r"[\w\s，、：；“”]*+")
_STOP = re.compile(r"[.!?。！？｡…]")
_ENCLOSED = re.compile(r"([（(【\[])[^（）()【】\[\]]{1,60}[）)】\]]|[《〈][^《》〈〉]{1,60}[》〉]")
# Hidden from sentencex: pairs it would match across sentences, what it cannot encode, and marks
# inside a word (`?q=A`), which it would take for ends.
_HIDDEN = re.compile(r"""["'“”‘’„‟«»‹›「」『』（）()\[\]{}〝〞〟＂*_`\ud800-\udfff]""")
_INSIDE_WORD = re.compile(r"[!?](?=[^\W_])")
_CLOSERS = re.compile(rf"\s*[{_SURE_CLOSERS}]+")
_STRAIGHT = re.compile(r"([\"'*_`])\1*")

_MID_SENTENCE = frozenset("，、；：,;:·！？。｡!?…～—")
# What goes on after a quote: `…？”她问。`, `…?" Tom asked.`; not `他说：“…`, which opens another.
_CONTINUATION = re.compile(
    r"的(?!确)|と|って|など"
    r"|[^\W\d_]{0,8}?(?:[问問答喊嚷吼骂叹]|(?<![听据小])[说說]|(?<![知味街通])道|回应|解释|嘟囔)"
    r"[^\W\d_]{0,6}(?:[。，！？、…,!?]|\.(?!\S))"
)
_ATTRIBUTION = re.compile(r"(?:[^\W\d_]+ ){1,3}(?:said|says|asked|replied|answered|cried|added)\b")
# Before a quote that is a speech of its own, not a word within the sentence around it.
_INTRODUCTION = frozenset("：:，,；;。！？—…说說道问問答喊")

# Where a long sentence may be cut, best first; digits keep their `,`, `:` and `–`.
_CLAUSE_CUT = re.compile(
    rf"(?:[；，、。！？｡…～]|(?<!\d)：|：(?!\d)|[—–](?!\d)|[,;:!?](?=[\s{_SURE_CLOSERS}]|[^\x00-\x7f]))"
    rf"[{_SURE_CLOSERS}]*|[{_SURE_CLOSERS}](?=\s|[^\x00-\x7f])"
)
# What is left of `. ` inside a sentence is an abbreviation's.
_SPACE_CUT = re.compile(r"(?<![^\W\d_]\.)(?<=\S)(?=\s)")
_CJK_CUT = re.compile(f"(?<=[{_CJK}])(?=[{_CJK}A-Za-z])|(?<=[A-Za-z])(?=[{_CJK}])")
_OUTSIDE_ASCII_CUT = re.compile(r"(?<![!-~])|(?![!-~])")
_NEVER_FIRST = frozenset("，、；：。！？｡…～—–,.;:!?%”’」』）】》〉〕»›)]}")

_EXTENDS = re.compile("[\u200c\u200d\u1160-\u11ff\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")


class _Sentence(NamedTuple):
    text: str
    voiced: bool
    whole: bool
    opens_line: bool
    closes_line: bool


def segments(text: str, longest: int = 120, first: int | None = None) -> list[str]:
    """Split `text` into pieces to be spoken in one go, one for each sentence.

    Joined, the pieces are `text`, whitespace included; none is empty, and stripped none has more
    than `longest` characters. Longer sentences are cut, the first one already where it passes
    `first` characters (`EARLY` unless given) and has a pause or a space, for an early start.
    Raises ValueError where `longest` or `first` is below 1.
    """
    early = EARLY if first is None else first
    if longest < 1 or early < 1:
        raise ValueError("a segment has at least one character")
    pieces: list[str] = []
    for sentence in _joined(_sentences(text)):
        start = 0 if pieces else _early_cut(sentence, min(early, longest), longest)
        pieces += [sentence[:start]] if start else []
        pieces += _cut(sentence[start:], longest)
    return pieces


def is_speakable(text: str) -> bool:
    """Whether there is anything to say: a letter or a number of any script."""
    return _VOICED.search(text) is not None


# Sentences


def _sentences(text: str) -> Iterator[_Sentence]:
    for line in _LINE.finditer(text):
        sentences = _split_line(line[0])
        last = len(sentences) - 1
        for i, sentence in enumerate(sentences):
            whole = _WHOLE_SENTENCE.match(sentence) is not None
            voiced = whole or is_speakable(sentence)
            yield _Sentence(sentence, voiced, whole, i == 0, i == last)


def _joined(sentences: Iterator[_Sentence]) -> Iterator[str]:
    """The sentences, those too short to be spoken well in one string with a neighbour."""
    piece: list[str] = []
    voiced = False
    for sentence, following in pairwise((*sentences, None)):
        assert sentence is not None
        piece.append(sentence.text)
        voiced = voiced or sentence.voiced
        if following is None or (voiced and not _belong_together(sentence, following)):
            yield "".join(piece)
            piece = []


def _belong_together(sentence: _Sentence, following: _Sentence) -> bool:
    """Whether one of the two is a fragment that goes with the other.

    Decided by the two alone, so that a run of fragments is not paired off from its far end.
    """
    if not following.voiced and (following.closes_line or not following.opens_line):
        return True
    if sentence.closes_line:
        return False
    if not sentence.voiced:
        return sentence.opens_line
    return not sentence.whole or (following.closes_line and not following.whole)


def _split_line(line: str) -> list[str]:
    sentences = []
    start = 0
    # Without its end: sentencex takes quadratic time over many line feeds.
    for mark in _marks(line.rstrip()):
        if mark <= start:
            continue
        closed = _after_closers(line, start, mark)
        end = _after_space(line, closed)
        if end < len(line) and not _goes_on(line, start, mark, closed, end):
            sentences.append(line[start:end])
            start = end
    sentences.append(line[start:])
    return sentences


def _marks(line: str) -> Iterator[int]:
    """Positions, in order, right after a mark that may end a sentence."""
    calm = _ENCLOSED.sub(_calmed, line)
    start = 0
    for end in _PLAIN_END.finditer(calm):
        yield from _alphabetic_marks(calm, start, end.start())
        yield end.end()
        start = end.end()
    yield from _alphabetic_marks(calm, start, len(calm))


def _calmed(enclosed: re.Match[str]) -> str:
    """The same length without the marks inside; a title's last one is part of its name as well."""
    kept = 2 if enclosed[1] else 0
    inside = len(enclosed[0]) - kept
    return _STOP.sub(" ", enclosed[0][:inside]) + enclosed[0][inside:]


def _alphabetic_marks(line: str, start: int, stop: int) -> Iterator[int]:
    # The language is always English: what sentencex knows of Chinese are the full-width marks.
    if _MARKLESS.fullmatch(line, start, stop):
        return
    at = start
    shown = _INSIDE_WORD.sub("x", _HIDDEN.sub(" ", line[start:stop]))
    for sentence in segment("en", shown)[:-1]:
        at += len(sentence)
        yield at - len(sentence) + len(sentence.rstrip())


def _after_space(line: str, at: int) -> int:
    space = _SPACE.match(line, at)
    return space.end() if space else at


def _after_closers(line: str, start: int, mark: int) -> int:
    """Where the quotes, brackets and emphasis end that close what ended at `mark`."""
    while True:
        if sure := _CLOSERS.match(line, mark):
            mark = sure.end()
        elif (straight := _STRAIGHT.match(line, mark)) and _closes(line, start, straight):
            mark = straight.end()
        else:
            return mark


def _closes(line: str, start: int, straight: re.Match[str]) -> bool:
    """Whether a quote that looks the same at both ends is a closing one."""
    at, end = straight.span()
    if end == len(line) or line[end].isspace():
        return True
    before = line.count(straight[1], max(start, at - REACH), at)
    return before // (end - at) % 2 == 1


def _goes_on(line: str, start: int, mark: int, closed: int, end: int) -> bool:
    """Whether the sentence from `start` goes on at `end`, after a mark, its closers and space."""
    if line[end] in _MID_SENTENCE:
        return True
    if mark == end:
        return line[mark - 1] == "." and line[mark].isascii() and line[mark].isalnum()
    if mark == closed:
        return False
    if _CONTINUATION.match(line, end):
        return True
    if closed < end:
        return line[end].islower() or _ATTRIBUTION.match(line, end) is not None
    return _is_embedded(line, start, mark, closed)


def _is_embedded(line: str, start: int, mark: int, closed: int) -> bool:
    """Whether the quote closed here is part of a sentence around it, as in `喊了声“好！”就走了`."""
    opener = _OPENER.get(line[closed - 1], "\n")
    opened = line.rfind(opener, max(start, mark - REACH), mark)
    before = line[max(start, mark - REACH) : max(start, opened)].rstrip()
    return is_speakable(before) and before[-1] not in _INTRODUCTION


# Cuts


def _early_cut(sentence: str, early: int, longest: int) -> int:
    """Where a long first sentence is cut for an early start, or 0."""
    start = _after_space(sentence, 0)
    stop = len(sentence.rstrip())
    if stop - start <= early:
        return 0
    latest = stop - SHORTEST
    for pattern in (_CLAUSE_CUT, _SPACE_CUT):
        limit = min(start + early, latest)
        for end in _cuts(pattern, sentence, start, start + SHORTEST, limit):
            return end
    limit = min(start + longest, latest)
    return min(
        (
            end
            for pattern in (_CLAUSE_CUT, _SPACE_CUT)
            for end in _cuts(pattern, sentence, start, start + max(early, SHORTEST), limit)
        ),
        default=0,
    )


def _cut(sentence: str, longest: int) -> Iterator[str]:
    """Pieces of a sentence, each of at most `longest` characters when stripped."""
    if len(sentence) <= longest:
        yield sentence
        return
    start, spoken = 0, _after_space(sentence, 0)
    stop = len(sentence.rstrip())
    while stop - spoken > longest:
        # A few words are left for the last piece, rather than its last syllable.
        limit = min(spoken + longest, stop - longest // 6)
        end = _best_cut(sentence, spoken, spoken + max(1, longest // 4), limit)
        yield sentence[start:end]
        start = spoken = end
    if start < len(sentence):
        yield sentence[start:]


def _best_cut(sentence: str, start: int, low: int, limit: int) -> int:
    """The latest cut of the best kind from `low`, failing that after `start`, to `limit`."""
    for pattern, lowest in (
        (_CLAUSE_CUT, low),
        (_SPACE_CUT, low),
        (_CJK_CUT, low),
        (_CLAUSE_CUT, start + 1),
        (_SPACE_CUT, start + 1),
        (_OUTSIDE_ASCII_CUT, start + 1),
    ):
        for end in _cuts(pattern, sentence, start, lowest, limit):
            return end
    for at in range(limit, start, -1):
        if not _splits_grapheme(sentence, start, at):
            return _after_space(sentence, at)
    return limit


def _cuts(
    pattern: re.Pattern[str], sentence: str, start: int, lowest: int, limit: int
) -> Iterator[int]:
    """Where a piece from `start` can end, the last place first.

    Without its trailing space, that is between `lowest` and `limit`.
    """
    # One character more, for what looks ahead.
    found = [cut.end() for cut in pattern.finditer(sentence, max(0, lowest - 1), limit + 1)]
    for at in reversed(found):
        if lowest <= at <= limit and not _splits_grapheme(sentence, start, at):
            end = _after_space(sentence, at)
            if sentence[end] not in _NEVER_FIRST:
                yield end


def _splits_grapheme(text: str, start: int, at: int) -> bool:
    """Whether a cut at `at` parts what is one character to a reader; `start` is a safe place."""
    before, after = text[at - 1], text[at]
    if after.isascii():
        return False
    if _is_flag_half(after):
        return _flag_halves(text, start, at) % 2 == 1
    return (
        before == "\u200d"
        or category(after).startswith("M")
        or _EXTENDS.match(after) is not None
        or ("\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff")
    )


def _is_flag_half(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _flag_halves(text: str, start: int, at: int) -> int:
    """How many regional indicators stand right before `at`."""
    halves = at
    while halves > start and _is_flag_half(text[halves - 1]):
        halves -= 1
    return at - halves
