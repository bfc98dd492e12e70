r"""One way to write what LaTeX and Unicode write in many: ``½``, ``\dfrac12`` and ``\frac{1}{2}`` are one fraction."""

from __future__ import annotations

import re

_SYMBOLS = {
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\uff0d\ufe63", "-"),
    **dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f\u205f", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u2217": "*",
    "\u00f7": "/",
    "\u2044": "/",
    "\u2215": "/",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u00b0": r"^\circ ",
    "\u00ba": r"^\circ ",
    "\u00b1": r"\pm ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u222a": r"\cup ",
    "\u2208": r"\in ",
    "\u2205": r"\emptyset ",
    "\u2018": "'",
    "\u2019": "'",
    "\u201c": '"',
    "\u201d": '"',
}
_SYMBOL_TABLE = str.maketrans(_SYMBOLS)
_VULGAR = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅖": "2/5",
    "⅗": "3/5",
    "⅘": "4/5",
    "⅙": "1/6",
    "⅚": "5/6",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_REPLACED = [
    (re.compile(r"\\m?(?:left|right|middle|[bB]igg?[lr]?)(?![a-zA-Z])\s*\.?"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:lbrace)(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])"), r"\\ge"),
    (
        re.compile(r"\\(?:operatorname|mathrm|textrm|textnormal|textit|textsf|mathit|mathsf|mbox|hbox)\s*(?={)"),
        r"\\text",
    ),
    (re.compile(r"\\(?:textbf|mathbf|bold|boldsymbol|bm|emph|underline)\s*(?={)"), r"\\text"),
    (re.compile(r"\^\s*{\s*\\circ\s*}|\\degree(?![a-zA-Z])|\^\s*\\circ(?![a-zA-Z])"), r"^\\circ "),
    (re.compile(r",\\!|{,\\!}|\\!,"), ","),
    (re.compile(r"(?<!\\)\\!|\\negthinspace(?![a-zA-Z])"), ""),
    (re.compile(r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-zA-Z])|\\(?:thin|thick|med|en)space(?![a-zA-Z])|(?<!\\)~"), " "),
    (re.compile(r"\\dollar(?![a-zA-Z])|\\textdollar(?![a-zA-Z])"), r"\\$"),
    (re.compile(r"\\euro(?![a-zA-Z])|\\texteuro(?![a-zA-Z])"), "\u20ac"),
    (re.compile(r"\\pounds(?![a-zA-Z])"), "\u00a3"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?=\D|$)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*(?={)"), r"\\frac{\1}"),
    (re.compile(r"(\\frac\s*{[^{}]*})\s*(\d)"), r"\1{\2}"),
    (re.compile(r"\\(frac|sqrt)\s+(?=[{\[])"), r"\\\1"),
    (re.compile(r"(\\frac{[^{}]*})\s+(?={)"), r"\1"),
    (re.compile(r"\\sqrt\s*(\d)"), r"\\sqrt{\1}"),
    (re.compile(r"\u221a\s*(\d+(?:\.\d+)?)"), r"\\sqrt{\1}"),
    (re.compile(r"\u221a\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])(pi|infinity|infty)(?![a-zA-Z])"), lambda found: _WORDS[found[1]]),
    (re.compile(r"\s+"), " "),
]
_WORDS = {"pi": r"\pi ", "infinity": r"\infty ", "infty": r"\infty "}
_WRAPPINGS = [
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    ("``", "''"),
]
_END = re.compile(r"(?:(?<!\.\.)(?<!\\)[.,;]|(?<=[a-zA-Z][a-zA-Z])!)\s*$")  # "4!" is a factorial
_COMMANDS = (r"\boxed{", r"\fbox{", r"\text{", "{")


def one_notation(text: str) -> str:
    r"""The text with one spelling of signs, blanks, fractions, roots, fonts and brackets.

    Args:
        text: LaTeX or plain.

    >>> one_notation(r"−3½"), one_notation(r"\left( \dfrac12,\,π \right)"), one_notation(r"10,\!000\mathrm{cm}")
    ('-3 1/2', '( \\frac{1}{2}, \\pi )', '10,000\\text{cm}')
    """
    text = re.sub(r"(\d)?([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", lambda at: f"{at[1] + ' ' if at[1] else ''}{_VULGAR[at[2]]}", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda at: f"^{{{at[0].translate(_RAISED)}}}", text).translate(_SYMBOL_TABLE)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return text.strip()


def unwrap(text: str) -> str:
    r"""The text without delimiters, quotes, emphasis, braces and a full stop around all of it.

    Args:
        text: in one notation.

    >>> unwrap(r"$\boxed{\text{(A)}}$."), unwrap("**42**"), unwrap("*4* or *5*")
    ('(A)', '42', '*4* or *5*')
    """
    while True:
        shorter = _without_one(text.strip())
        if shorter == text:
            return text
        text = shorter


def _without_one(text: str) -> str:
    text = _END.sub("", text)
    for opening, closing in _WRAPPINGS:
        inside = text[len(opening) : len(text) - len(closing)]
        wrapped = inside and text == opening + inside + closing and not inside.endswith("\\")
        if wrapped and opening not in inside and closing not in inside:
            return inside
    for command in _COMMANDS:
        if text.startswith(command) and text.endswith("}") and closing_brace(text, len(command) - 1) == len(text) - 1:
            return text[len(command) : -1]
    return text


def closing_brace(text: str, opening: int) -> int | None:
    r"""Where the brace that opens at ``opening`` is closed; escaped braces do not count.

    Args:
        text: any.
        opening: index of a ``{``.

    >>> closing_brace(r"\boxed{\{1\}}", 6), closing_brace("{1", 0)
    (12, None)
    """
    depth = 0
    for found in re.finditer(r"\\.|[{}]", text[opening:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return opening + found.start()
    return None


def top_level_parts(text: str, separator: re.Pattern[str]) -> list[str]:
    r"""What stands between the separators that are in no bracket.

    Args:
        text: in one notation.
        separator: a pattern that matches at least one character.

    >>> top_level_parts("(1,2), f(x,y)", re.compile(","))
    ['(1,2)', ' f(x,y)']
    """
    parts = []
    start = 0
    at = 0
    depth = 0
    while at < len(text):
        if depth <= 0 and (found := separator.match(text, at)):
            parts.append(text[start:at])
            start = at = found.end()
            continue
        token = text[at : at + 2] if text[at] == "\\" else text[at]
        depth += (token in ("{", "(", "[", r"\{", r"\(")) - (token in ("}", ")", "]", r"\}", r"\)"))
        at += len(token)
    return [*parts, text[start:]]
