"""Records of text as token ids: what a model would have read and written, prompt and completion encoded apart.

A completion's text is what the chat template adds behind the prompt's text with the assistant's turn opened, up to and
with the first stop token: what generation would have produced. Text without a template is taken as it is. Since the two
are encoded apart, no token lies across the boundary, whatever characters meet there; a stop token is appended to a
completion that does not end in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from rlax_llm.data.messages import Message, Text, Verbatim
from rlax_llm.data.preferences import Demonstration, Labelled, Pair
from rlax_llm.data.rows import DataError, user_message
from rlax_llm.models.tokenizer import Tokenizer


class PairTokens(NamedTuple):
    """A pair as token ids.

    Attributes:
        prompt: ids, at least one.
        chosen: ids, the last one a stop token.
        rejected: as ``chosen``.
        margin: as in ``Pair``.
        where: the row's place, for errors.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float | None = None
    where: str = "a pair"


class LabelledTokens(NamedTuple):
    """A labelled completion as token ids.

    Attributes:
        prompt: ids, at least one.
        completion: ids, the last one a stop token.
        label: True where desirable.
        where: the row's place, for errors.
    """

    prompt: list[int]
    completion: list[int]
    label: bool
    where: str = "a labelled completion"


class DemonstrationTokens(NamedTuple):
    """A demonstration as token ids.

    Attributes:
        prompt: ids, at least one; of a whole text its first token, which nothing predicts.
        completion: ids, the last one a stop token.
        learnt: for each id of the completion whether it is the assistant's, or None where all are.
        where: the row's place, for errors.
    """

    prompt: list[int]
    completion: list[int]
    learnt: list[bool] | None = None
    where: str = "a demonstration"


Tokens = TypeVar("Tokens", PairTokens, LabelledTokens, DemonstrationTokens)


class Limits(NamedTuple):
    """What rows must keep to; None is no limit.

    Attributes:
        max_prompt_tokens: longest prompt.
        max_new_tokens: longest completion, stop token included.
        vocab_size: ids lie below it.
    """

    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    vocab_size: int | None = None


class Encoded(NamedTuple, Generic[Tokens]):
    """Rows that fit, and the places of those that do not.

    Attributes:
        rows: in their order.
        dropped: for each reason the rows left out, by their places.
    """

    rows: list[Tokens]
    dropped: dict[str, list[str]]

    def report(self) -> str:
        """One line on what was left out; empty where nothing was.

        >>> Encoded([], {"a prompt of more than 8 tokens": ["line 1"]}).report()
        '1 of 1 rows left out: 1 with a prompt of more than 8 tokens (the first is line 1)'
        """
        left_out = sum(map(len, self.dropped.values()))
        reasons = (f"{len(places)} with {why} (the first is {places[0]})" for why, places in self.dropped.items())
        return f"{left_out} of {left_out + len(self.rows)} rows left out: {', '.join(reasons)}" if left_out else ""


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[PairTokens]:
    """Token ids of pairs.

    Args:
        tokenizer: the model's.
        pairs: records, as ``read_pairs`` gives them.

    Raises:
        DataError: naming the row: messages without a chat template, a template that refuses them or whose text of the
            conversation does not begin with its text of the prompt, a stop token inside a completion, a character that
            the tokenizer does not know, or two sides that have the same tokens.

    >>> encode_pairs(Tokenizer.characters("1+=23"), [Pair("1+1=", "2", "3")])[0][:3]
    ([2, 3, 2, 4], [5, 1], [6, 1])
    """
    sides = [(pair.where, pair.prompt, side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    ids = _encoded(tokenizer, sides)
    encoded = [
        PairTokens(chosen.prompt, chosen.completion, rejected.completion, pair.margin, pair.where)
        for pair, chosen, rejected in zip(pairs, ids[::2], ids[1::2], strict=True)
    ]
    for row in encoded:
        if row.chosen == row.rejected:
            raise DataError(f"{row.where}: chosen and rejected have the same tokens; leave the row out.")
    return encoded


def encode_pair(tokenizer: Tokenizer, pair: Pair) -> PairTokens:
    """``encode_pairs`` of one pair.

    >>> encode_pair(Tokenizer.characters("ab"), Pair("a", "a", "b")).rejected
    [3, 1]
    """
    return encode_pairs(tokenizer, [pair])[0]


def encode_labelled(tokenizer: Tokenizer, rows: Sequence[Labelled]) -> list[LabelledTokens]:
    """Token ids of labelled completions.

    Args:
        tokenizer: the model's.
        rows: records, as ``read_labelled`` gives them.

    Raises:
        DataError: as ``encode_pairs``, but for the sides.

    >>> encode_labelled(Tokenizer.characters("ab"), [Labelled("a", "b", False)])[0][:3]
    ([2], [3, 1], False)
    """
    ids = _encoded(tokenizer, [(row.where, row.prompt, row.completion) for row in rows])
    return [
        LabelledTokens(own.prompt, own.completion, row.label, row.where) for row, own in zip(rows, ids, strict=True)
    ]


def encode_demonstrations(tokenizer: Tokenizer, rows: Sequence[Demonstration]) -> list[DemonstrationTokens]:
    """Token ids of demonstrations, with what of them is the assistant's.

    Args:
        tokenizer: the model's.
        rows: records, as ``read_demonstrations`` gives them.

    Raises:
        DataError: as ``encode_pairs``, but for the sides.

    >>> encode_demonstrations(Tokenizer.characters("ab"), [Demonstration("a", "b")])[0][:2]
    ([2], [3, 1])
    """
    return _encoded(tokenizer, [(row.where, row.prompt, row.completion) for row in rows])


def within(rows: Sequence[Tokens], limits: Limits) -> Encoded[Tokens]:
    """The rows that keep to the limits; the others are left out and counted, never cut.

    Args:
        rows: of one kind.
        limits: in tokens.

    Raises:
        DataError: a token beyond the vocabulary, naming the row, or no row left.

    >>> rows = [DemonstrationTokens([2], [3, 1]), DemonstrationTokens([2, 2], [3, 1], where="line 2")]
    >>> kept = within(rows, Limits(max_prompt_tokens=1))
    >>> len(kept.rows), kept.report()
    (1, '1 of 2 rows left out: 1 with a prompt of more than 1 tokens (the first is line 2)')
    """
    kept = Encoded[Tokens]([], {})
    for row in rows:
        completions = (row.chosen, row.rejected) if isinstance(row, PairTokens) else (row.completion,)
        largest = max(max(ids) for ids in (row.prompt, *completions))
        if limits.vocab_size is not None and largest >= limits.vocab_size:
            raise DataError(
                f"{row.where}: token {largest} is beyond the model's vocabulary of {limits.vocab_size}; use the "
                "model's own tokenizer."
            )
        reason = _too_long(len(row.prompt), max(map(len, completions)), limits)
        if reason:
            kept.dropped.setdefault(reason, []).append(row.where)
        else:
            kept.rows.append(row)
    if not kept.rows:
        raise DataError(
            f"no row to train on: {kept.report() or 'there is none'}; raise max_prompt_tokens or max_new_tokens."
        )
    return kept


def _too_long(prompt: int, completion: int, limits: Limits) -> str:
    if limits.max_prompt_tokens is not None and prompt > limits.max_prompt_tokens:
        return f"a prompt of more than {limits.max_prompt_tokens} tokens"
    if limits.max_new_tokens is not None and completion > limits.max_new_tokens:
        return f"a completion of more than {limits.max_new_tokens} tokens"
    return ""


Exchange = tuple[str, Text, Text]  # the row's place, prompt and completion
Pieces = list[str]  # of text: prompt, answer, what lies between, answer, …


def _encoded(tokenizer: Tokenizer, exchanges: Sequence[Exchange]) -> list[DemonstrationTokens]:
    stops = [tokenizer.decode([token], skip_special=False) for token in tokenizer.eos_ids]
    opened: dict[int, str] = {}
    pieces = [_pieces(tokenizer, stops, exchange, opened) for exchange in exchanges]
    # The two sides of a pair have their prompt in common, and so have many rows.
    texts = list(dict.fromkeys(text for row in pieces for text in row))
    try:
        ids = dict(zip(texts, tokenizer.encode_all(texts), strict=True))
    except ValueError:
        for (where, *_), row in zip(exchanges, pieces, strict=True):
            _at(where, tokenizer.encode_all, row)
        raise
    return [
        _tokens(tokenizer, where, [ids[text] for text in row], isinstance(prompt, Verbatim) and not prompt)
        for (where, prompt, _), row in zip(exchanges, pieces, strict=True)
    ]


Result = TypeVar("Result")


def _at(where: str, function: Callable[..., Result], *arguments: object) -> Result:
    """Call, and let an error name the row."""
    try:
        return function(*arguments)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def _pieces(tokenizer: Tokenizer, stops: Sequence[str], exchange: Exchange, opened: dict[int, str]) -> Pieces:
    """The text of an exchange; ``opened`` keeps what the template makes of each prompt, by its identity."""
    where, prompt, completion = exchange
    if isinstance(prompt, Verbatim) or (not tokenizer.has_chat_template and isinstance(prompt, str)):
        return [str(prompt), _at(where, _string, completion)]
    messages = user_message(prompt) if isinstance(prompt, str) else prompt
    answers = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    if id(prompt) not in opened:
        opened[id(prompt)] = _at(where, tokenizer.prompt_text, prompt)
    return _at(where, _turns, tokenizer, stops, (list(messages), list(answers)), opened[id(prompt)])


def _string(completion: Text) -> str:
    if not isinstance(completion, str):
        raise ValueError("the prompt is a string and the completion a list of messages; give two of a kind.")
    return completion


def _turns(
    tokenizer: Tokenizer, stops: Sequence[str], turns: tuple[list[Message], list[Message]], prompt_text: str
) -> Pieces:
    """The whole conversation's text, cut at the beginning of each answer and behind the stop token that ends it."""
    prompt, answers = turns
    messages = prompt + answers
    whole = tokenizer.conversation_text(messages)
    pieces, done = [], 0
    for index in range(len(prompt), len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        opened = prompt_text if index == len(prompt) else tokenizer.prompt_text(messages[:index])
        last = index + 1 == len(messages)
        closed = whole if last else tokenizer.conversation_text(messages[: index + 1])
        if not (whole.startswith(opened) and whole.startswith(closed) and len(opened) < len(closed)):
            raise ValueError(
                "the chat template's text of the conversation does not begin with its text of the prompt; use a "
                "template that writes earlier turns alike."
            )
        inside = [stop for stop in stops if stop in messages[index]["content"]]
        if inside:
            raise ValueError(f"the completion holds the stop token {inside[0]!r}; remove it from the text.")
        answer = closed[len(opened) :]
        ends = [answer.index(stop) + len(stop) for stop in stops if stop in answer]
        end = len(opened) + min(ends, default=len(answer))
        pieces += [whole[done : len(opened)], whole[len(opened) : end]]
        done = end
    return pieces


def _tokens(tokenizer: Tokenizer, where: str, ids: list[list[int]], whole_text: bool) -> DemonstrationTokens:
    prompt, *rest = ids
    answers = rest[::2]
    if whole_text:
        # Nothing comes before a text's first token, so that none can be asked to predict it.
        prompt, answers = answers[0][:1], [answers[0][1:]]
    if not prompt:
        raise DataError(f"{where}: the prompt has no tokens; a completion needs at least one before it.")
    if len(rest) == 1:
        return DemonstrationTokens(prompt, _stopped(tokenizer, where, answers[0], whole_text), None, where)
    rest = [*rest[:-1], _stopped(tokenizer, where, rest[-1], whole_text)]
    learnt = [index % 2 == 0 for index, part in enumerate(rest) for _ in part]
    return DemonstrationTokens(prompt, _joined(rest), learnt, where)


def _joined(parts: Iterable[Sequence[int]]) -> list[int]:
    return [token for part in parts for token in part]


def _stopped(tokenizer: Tokenizer, where: str, ids: list[int], whole_text: bool) -> list[int]:
    """The completion up to its stop token, which is appended where there is none."""
    stops = tokenizer.eos_ids
    if not whole_text:
        first = next((index for index, token in enumerate(ids) if token in stops), len(ids))
        behind = ids[first + 1 :]
        if behind and tokenizer.decode(behind, skip_special=False).strip():
            stop = tokenizer.decode([ids[first]], skip_special=False)
            raise DataError(f"{where}: the completion goes on behind the stop token {stop!r}; remove it from the text.")
        ids = ids[: first + 1]
    return list(ids) if ids and ids[-1] in stops else [*ids, *stops[:1]]
