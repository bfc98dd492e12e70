"""Equations as docstrings write them, ``A[t] = δ[t] + γ[t] · A[t+1]``, as MathML.

A docstring stays what one reads in an editor; here its plain text becomes what a book shows: an index in brackets, an
underscore or a caret is set below or above, and a quotient of parts in parentheses as a fraction. What is no equation,
such as code and shapes, is None.
"""

from __future__ import annotations

import re
from html import escape

SIGNS = set("Σ√‖∂∇±½∞⊙≥≤≠·←−²³ᵗᵀᵏ∈") | set("γλσπρδΔμαβετψθφηκωΨ")
TOKEN = re.compile(
    r"(?P<number>\d+(\.\d+)?(e-?\d+)?)|(?P<name>[A-Za-z]+(_[A-Za-z]{2,})*\d*[′']*|(?!Σ)[Α-ωϵ′]′?)"
    r"|(?P<above>[²³ᵗᵀᵏ]+)|(?P<space>\s+)|(?P<sign>\.\.\.|[-−+·*/=<>≤≥≠≈∈⊙‖|,;:→←∇×∂Σ√±½∞…⋯^_(){}\[\]!.~∝∼])"
)
ABOVE = {"²": "<mn>2</mn>", "³": "<mn>3</mn>", "ᵏ": "<mi>k</mi>", "ᵗ": "<mi>t</mi>", "ᵀ": "<mi>T</mi>"}
CLOSES = {"(": ")", "[": "]", "{": "}"}
SUBSCRIPTED = {"eps", "mean", "std", "max", "min", "sum", "median", "KL"}
WORDS = {"z_score"}
CODE = re.compile(
    r"^\W*\[[^(]*$|[\"'`]\w|\w\._|=…|→ (?!∞|0|$)"  # shapes, strings, attributes, signatures
    r"|^[a-z]+(_[a-z0-9]+)+\(.*\)$|^(?!exp|log)[a-z]{3,}\([^ ]*\)$|^\w\w+ = \S+$"  # calls, arguments
)


def mathml(text: str) -> str | None:
    """The equation of a docstring as MathML, or None for what is none."""
    if CODE.search(text) or not SIGNS & set(text):
        return None
    tokens = _tokens(text)
    if tokens is None:
        return None
    reader = Reader(tokens)
    try:
        inner = reader.row(end=None)
    except ValueError:
        return None
    return f'<math displaystyle="true"><mrow>{inner}</mrow></math>'


def _tokens(text: str) -> list[tuple[str, str]] | None:
    tokens = []
    place = 0
    while place < len(text):
        found = TOKEN.match(text, place)
        if not found:
            return None
        tokens.append((str(found.lastgroup), found[0]))
        place = found.end()
    return tokens


class Reader:
    """Reads tokens from left to right into MathML."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens = tokens
        self.place = 0

    def peek(self) -> tuple[str, str]:
        """The next token."""
        return self.tokens[self.place] if self.place < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        """The next token, and go on behind it."""
        token = self.peek()
        self.place += 1
        return token

    def row(self, end: str | None) -> str:
        """Atoms and signs up to a closing sign, which is taken."""
        parts: list[tuple[str, str, str]] = []  # kind, MathML, MathML without its parentheses
        while True:
            kind, text = self.peek()
            if kind == "end" and end is not None:
                raise ValueError(f"no {end}")
            if kind == "end" or text == end:
                self.take()
                return _joined(_with_fractions(parts))
            first = not parts or parts[-1][0] == "sign"
            parts.append(self.part(first))

    def part(self, first: bool) -> tuple[str, str, str]:
        """A space, a sign (the first one of a row is its own), or an atom with what stands below and above it."""
        kind, text = self.peek()
        if kind == "space":
            self.take()
            return "space", "", ""
        if kind == "sign" and text not in "([{Σ√∇½∞|":
            self.take()
            alone = _sign(text).replace("<mo", '<mo form="prefix" lspace="0" rspace="0"')
            return "sign", alone if first else _sign(text), ""
        if kind == "sign" and text in "|":
            self.take()
            return "bar", '<mo stretchy="false" lspace="0" rspace="0">|</mo>', ""
        return self.atom()

    def atom(self) -> tuple[str, str, str]:
        """A number, a name, a call or a group, with its scripts."""
        kind, text = self.take()
        if text in CLOSES:
            inner = self.row(CLOSES[text])
            shown = _group(text, inner)
            scripted = self.scripts(shown)
            return "group", scripted, inner if scripted == shown and text == "(" else ""
        if text == "√":
            return "atom", f"<msqrt>{self.bare()}</msqrt>", ""
        base, below = _letter(kind, text)
        shown = self.scripts(base, below, index=kind == "name")
        if kind == "name" and self.peek()[1] == "(":
            self.take()
            shown += self.scripts(_group("(", self.row(")")))
        return ("operator" if text in "Σ∇" else "atom"), shown, ""

    def scripts(self, base: str, below: str = "", index: bool = False) -> str:
        """The base with what is below and above it."""
        above = ""
        while True:
            kind, text = self.peek()
            if text == "_" or (text == "^" and not above):
                self.take()
                script = self.bare()
                below, above = (below + script, above) if text == "_" else (below, script)
            elif kind == "above":
                self.take()
                above += "".join(ABOVE[sign] for sign in text)
            elif text == "[" and index:
                self.take()
                below += self.row("]")
            else:
                return _scripted(base, below, above)

    def bare(self) -> str:
        """One thing without its parentheses: what a root, an index or an exponent holds."""
        kind, text = self.take()
        if text in CLOSES and text != "[":
            return self.row(CLOSES[text])
        base, below = _letter(kind, text)
        return _scripted(base, below, "")


def _letter(kind: str, text: str) -> tuple[str, str]:
    """A token as MathML, and what stands below it by its own spelling."""
    if kind == "number":
        return f"<mn>{text}</mn>", ""
    if kind != "name":
        return _sign(text), ""
    if text[-1] in "′'":
        return f"<mrow><mi>{text[:-1]}</mi><mo>′</mo></mrow>", ""
    first, _, rest = text.partition("_")
    if rest and "_" not in rest and text not in WORDS and (len(first) == 1 or first in SUBSCRIPTED):
        return f"<mi>{_greek(first)}</mi>", f"<mi>{escape(rest)}</mi>"
    numbered = re.fullmatch(r"([A-Za-z])(\d+)", text)
    if numbered:
        return f"<mi>{numbered[1]}</mi>", f"<mn>{numbered[2]}</mn>"
    return (f"<mtext>{text}</mtext>", "") if rest else (f"<mi>{_greek(text)}</mi>", "")


def _greek(name: str) -> str:
    return "ε" if name == "eps" else escape(name)


def _sign(text: str) -> str:
    if text == "½":
        return '<mstyle displaystyle="false"><mfrac><mn>1</mn><mn>2</mn></mfrac></mstyle>'
    if text == "∞":
        return "<mi>∞</mi>"
    if text == "Σ":
        return '<mo largeop="true" movablelimits="true">∑</mo>'
    if text == "‖":
        return '<mo stretchy="false" lspace="0.1em" rspace="0.1em">‖</mo>'
    return f'<mo stretchy="false">{escape("−" if text == "-" else text)}</mo>'


def _group(opens: str, inner: str) -> str:
    ends = CLOSES[opens]
    return f'<mrow><mo fence="true" form="prefix">{opens}</mo>{inner}<mo fence="true" form="postfix">{ends}</mo></mrow>'


def _scripted(base: str, below: str, above: str) -> str:
    if below and above:
        return f"<msubsup>{base}<mrow>{below}</mrow><mrow>{above}</mrow></msubsup>"
    if below:
        return f"<msub>{base}<mrow>{below}</mrow></msub>"
    return f"<msup>{base}<mrow>{above}</mrow></msup>" if above else base


def _with_fractions(parts: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Where a quotient has a part in parentheses and ends behind its second part, a fraction."""
    solid = list(parts)
    place = 1
    while place < len(solid) - 1:
        before, after = _beside(solid, place, -1), _beside(solid, place, 1)
        if solid[place][1] == _sign("/") and before is not None and after is not None:
            over, under = solid[before], solid[after]
            follows = solid[after + 1][0] if after + 1 < len(solid) else "end"
            precedes = solid[before - 1][0] if before else "end"
            bare = follows not in ("atom", "group", "operator") and precedes not in ("atom", "group", "bar")
            if bare and (over[2] or under[2]) and {over[0], under[0]} <= {"atom", "group"}:
                fraction = f"<mfrac><mrow>{over[2] or over[1]}</mrow><mrow>{under[2] or under[1]}</mrow></mfrac>"
                solid[before : after + 1] = [("atom", fraction, "")]
                place = before
        place += 1
    return solid


def _beside(parts: list[tuple[str, str, str]], place: int, step: int) -> int | None:
    found = place + step
    while 0 <= found < len(parts) and parts[found][0] == "space":
        found += step
    return found if 0 <= found < len(parts) else None


def _joined(parts: list[tuple[str, str, str]]) -> str:
    """Parts in a row: a space between two that are multiplied, none beside a sign, which has its own."""
    texts = []
    for place, (kind, text, _) in enumerate(parts):
        before, after = _beside(parts, place, -1), _beside(parts, place, 1)
        if kind != "space":
            texts.append(text)
        elif before is not None and after is not None and "sign" not in (parts[before][0], parts[after][0]):
            texts.append('<mspace width="0.25em"/>')
    return "".join(texts)
