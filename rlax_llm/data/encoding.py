"""Records of text as token ids: what a model reads and what it is to write.

A completion's text is what a model has to write after the prompt that generation reads, up to and with the first stop
token (``data/conversations.py``). Text without a template is taken as it is, and begins as the tokenizer begins a text.
The tokens are those of the whole text, so that no tokenizer puts a blank before an answer; the prompt's are those that
generation reads, and no token lies across the boundary. A stop token is appended to a completion that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from rlax_llm.data.conversations import Pieces, conversation_pieces
from rlax_llm.data.messages import Text, Verbatim
from rlax_llm.data.preferences import Demonstration, Labeled, Pair, Stepwise
from rlax_llm.data.rows import DataError, of_row, user_message
from rlax_llm.models.tokenizer import Tokenizer


class PairTokens(NamedTuple):
    """A pair as token ids.

    Attributes:
        prompt: ids, at least one.
        chosen: ids, the last one a stop token.
        rejected: as ``chosen``.
        margin: as in ``Pair``.
        where: the row's place, for errors.
        learned: of chosen, rejected and gold, for each id whether it is the assistant's, or None where all are.
        gold: as ``chosen``, of a third response; None where the pair has none.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float | None = None
    where: str = "a pair"
    learned: tuple[list[bool] | None, ...] = (None, None)
    gold: list[int] | None = None


class LabeledTokens(NamedTuple):
    """A labeled completion as token ids.

    Attributes:
        prompt: ids, at least one.
        completion: ids, the last one a stop token.
        label: True where desirable.
        where: the row's place, for errors.
        learned: for each id of the completion whether it is the assistant's, or None where all are.
    """

    prompt: list[int]
    completion: list[int]
    label: bool
    where: str = "a labeled completion"
    learned: list[bool] | None = None


class DemonstrationTokens(NamedTuple):
    """A demonstration as token ids.

    Attributes:
        prompt: ids, at least one; of a whole text its first token, which nothing predicts.
        completion: ids, the last one a stop token.
        learned: for each id of the completion whether it is the assistant's, or None where all are.
        where: the row's place, for errors.
    """

    prompt: list[int]
    completion: list[int]
    learned: list[bool] | None = None
    where: str = "a demonstration"


class StepwiseTokens(NamedTuple):
    """A completion of labeled steps as token ids.

    Attributes:
        prompt: ids, at least one.
        steps: ids of each step, at least one, the separator's included.
        labels: of each step, True where right.
        where: the row's place, for errors.
    """

    prompt: list[int]
    steps: list[list[int]]
    labels: Sequence[bool]
    where: str = "a completion of labeled steps"

    @property
    def completion(self) -> list[int]:
        """The ids of all steps."""
        return _joined(self.steps)


Tokens = TypeVar("Tokens", PairTokens, LabeledTokens, DemonstrationTokens, StepwiseTokens)


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
    golden = iter(_encoded(tokenizer, [(row.where, row.prompt, row.gold) for row in pairs if row.gold is not None]))
    encoded = [
        _pair_tokens(pair, chosen, rejected, None if pair.gold is None else next(golden))
        for pair, chosen, rejected in zip(pairs, ids[::2], ids[1::2], strict=True)
    ]
    for chosen, rejected in zip(ids[::2], ids[1::2], strict=True):
        if chosen.prompt != rejected.prompt:
            raise DataError(
                f"{chosen.where}: chosen and rejected answer different prompts; wanted two answers to one prompt."
            )
    for row in encoded:
        if row.chosen == row.rejected:
            raise DataError(f"{row.where}: chosen and rejected have the same tokens; leave the row out.")
    return encoded


def _pair_tokens(
    pair: Pair, chosen: DemonstrationTokens, rejected: DemonstrationTokens, gold: DemonstrationTokens | None
) -> PairTokens:
    """The sides of a pair together, and its gold response where it has one."""
    plain = PairTokens(chosen.prompt, chosen.completion, rejected.completion, pair.margin, pair.where)
    if gold is None:
        return plain._replace(learned=(chosen.learned, rejected.learned))
    if gold.prompt != chosen.prompt:
        raise DataError(f"{pair.where}: gold and chosen answer different prompts; wanted answers to one prompt.")
    return plain._replace(learned=(chosen.learned, rejected.learned, gold.learned), gold=gold.completion)


def encode_pair(tokenizer: Tokenizer, pair: Pair) -> PairTokens:
    """``encode_pairs`` of one pair.

    >>> encode_pair(Tokenizer.characters("ab"), Pair("a", "a", "b")).rejected
    [3, 1]
    """
    return encode_pairs(tokenizer, [pair])[0]


def encode_labeled(tokenizer: Tokenizer, rows: Sequence[Labeled]) -> list[LabeledTokens]:
    """Token ids of labeled completions.

    Args:
        tokenizer: the model's.
        rows: records, as ``read_labeled`` gives them.

    Raises:
        DataError: as ``encode_pairs``, but for the sides.

    >>> encode_labeled(Tokenizer.characters("ab"), [Labeled("a", "b", False)])[0][:3]
    ([2], [3, 1], False)
    """
    ids = _encoded(tokenizer, [(row.where, row.prompt, row.completion) for row in rows])
    return [
        LabeledTokens(own.prompt, own.completion, row.label, row.where, own.learned)
        for row, own in zip(rows, ids, strict=True)
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


def encode_stepwise(tokenizer: Tokenizer, rows: Sequence[Stepwise], separator: str) -> list[StepwiseTokens]:
    """Token ids of completions of labeled steps, each step ended by the separator, no token across two of them.

    The prompt is what generation reads, and no stop token is appended: a step is judged where its separator ends.

    Args:
        tokenizer: the model's.
        rows: records, as ``read_stepwise`` gives them.
        separator: put behind each step that does not end in it.

    Raises:
        DataError: naming the row: messages without a chat template, or a character that the tokenizer does not know.

    >>> row = Stepwise("1+2=", ["2+1", "3"], [True, True])
    >>> encode_stepwise(Tokenizer.characters("123+="), [row], "=")[0].steps
    [[3, 5, 2, 6], [4, 6]]
    """
    pieces = [
        [
            _at(row.where, tokenizer.prompt_text, row.prompt),
            *(step if step.endswith(separator) else step + separator for step in row.steps),
        ]
        for row in rows
    ]
    found = []
    for row, parts in zip(rows, _parted(tokenizer, [row.where for row in rows], pieces), strict=True):
        prompt, *steps = parts if tokenizer.has_chat_template else _begun(tokenizer, parts)
        if not prompt:
            raise DataError(f"{row.where}: the prompt has no tokens; a step needs at least one before it.")
        found.append(StepwiseTokens(prompt, steps, row.labels, row.where))
    return found


Exchange = tuple[str, Text, Text]  # the row's place, prompt and completion


def _encoded(tokenizer: Tokenizer, exchanges: Sequence[Exchange]) -> list[DemonstrationTokens]:
    # A model's file may list an id that its tokenizer has no text for.
    stops = [text for token in tokenizer.eos_ids if (text := tokenizer.decode([token], skip_special=False))]
    opened: dict[int, str] = {}
    rows = [_pieces(tokenizer, stops, exchange, opened) for exchange in exchanges]
    parted = _parted(tokenizer, [where for where, *_ in exchanges], rows)
    return [
        _at(where, _tokens, tokenizer, parts, prompt, where)
        for (where, prompt, _), parts in zip(exchanges, parted, strict=True)
    ]


def _parted(tokenizer: Tokenizer, places: Sequence[str], rows: Sequence[Pieces]) -> list[list[list[int]]]:
    """The tokens of each row's whole text, parted where its pieces are; an error names the row's place."""
    # The two sides of a pair have their prompt in common, and so have many rows.
    texts = list(dict.fromkeys(text for pieces in rows for text in (*_apart(pieces), "".join(pieces))))
    try:
        ids = dict(zip(texts, tokenizer.encode_all(texts), strict=True))
    except ValueError:
        for where, pieces in zip(places, rows, strict=True):
            _at(where, tokenizer.encode_all, pieces)
        raise
    return [_at(where, _parts, tokenizer, pieces, ids) for where, pieces in zip(places, rows, strict=True)]


def _apart(pieces: Pieces) -> Pieces:
    """The pieces to encode alone: of two the first one, since the whole's tokens give the other."""
    return pieces[:1] if len(pieces) == 2 else pieces


def _parts(tokenizer: Tokenizer, pieces: Pieces, known: Mapping[str, list[int]]) -> list[list[int]]:
    """The whole text's tokens, parted where its pieces are; no token lies across a boundary.

    The first part is what a sampler reads, the prompt encoded alone. Where its tokens begin the whole's, the whole's
    tokens it is. Elsewhere a token of the whole lies across the boundary (two line ends that meet are one token in
    many vocabularies): the sampler will never have read it, so what follows is encoded as it stands after the prompt.
    """
    if len(pieces) > 2 and _joined(known[piece] for piece in pieces) == known["".join(pieces)]:
        return [known[piece] for piece in pieces]
    text = pieces[0]
    parts = [known[pieces[0]]]
    for piece in pieces[1:]:
        text += piece
        whole = known[text] if text in known else tokenizer.encode(text)
        parts.append(_behind(tokenizer, _joined(parts), piece, whole))
    return parts


def _behind(tokenizer: Tokenizer, before: list[int], piece: str, whole: list[int]) -> list[int]:
    if whole[: len(before)] == before:
        return whole[len(before) :]
    wanted = tokenizer.decode(whole, skip_special=False)
    for encode in (tokenizer.encode_inside, tokenizer.encode):
        ids = encode(piece)
        if tokenizer.decode([*before, *ids], skip_special=False) == wanted:
            return ids
    raise ValueError(
        f"the tokenizer has no tokens for {piece[:40]!r} that spell it after the text before it; end that text "
        "elsewhere, at the end of a word or a line."
    )


Result = TypeVar("Result")


def _at(where: str, function: Callable[..., Result], *arguments: object) -> Result:
    """Call, and let an error name the row."""
    try:
        return function(*arguments)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{where}: {of_row(error)}") from error


def _pieces(tokenizer: Tokenizer, stops: Sequence[str], exchange: Exchange, opened: dict[int, str]) -> Pieces:
    """The text of an exchange; ``opened`` keeps what the template makes of each prompt, by its identity."""
    where, prompt, completion = exchange
    if not _templated(tokenizer, prompt):
        return [str(prompt), _at(where, _string, completion)]
    messages = user_message(prompt) if isinstance(prompt, str) else prompt
    answers = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    if id(prompt) not in opened:
        opened[id(prompt)] = _at(where, tokenizer.prompt_text, prompt)
    return _at(where, conversation_pieces, tokenizer, stops, (messages, answers), opened[id(prompt)])


def _templated(tokenizer: Tokenizer, prompt: Text) -> bool:
    return not isinstance(prompt, Verbatim) and (tokenizer.has_chat_template or not isinstance(prompt, str))


def _string(completion: Text) -> str:
    if not isinstance(completion, str):
        raise ValueError("the prompt is a string and the completion a list of messages; give two of a kind.")
    return completion


def _tokens(tokenizer: Tokenizer, parts: list[list[int]], prompt: Text, where: str) -> DemonstrationTokens:
    whole_text = isinstance(prompt, Verbatim) and not prompt
    read, *rest = parts if _templated(tokenizer, prompt) else _begun(tokenizer, parts)
    if whole_text and not read:
        # Nothing comes before a text's first token, so that none can be asked to predict it.
        read = rest[0][:1]
        rest = [rest[0][1:]]
    if not read:
        raise DataError(f"{where}: the prompt has no tokens; a completion needs at least one before it.")
    rest = [*rest[:-1], _stopped(tokenizer, where, rest[-1], whole_text)]
    learned = [index % 2 == 0 for index, part in enumerate(rest) for _ in part]
    return DemonstrationTokens(read, _joined(rest), learned if len(rest) > 1 else None, where)


def _begun(tokenizer: Tokenizer, parts: list[list[int]]) -> list[list[int]]:
    """The parts of a text, after what the tokenizer begins a text with."""
    count = len(tokenizer.begun(_joined(parts))) - len(_joined(parts))
    return [tokenizer.begun(_joined(parts))[:count] + parts[0], *parts[1:]]


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
            raise DataError(f"{where}: the completion goes on after the stop token {stop!r}; remove it from the text.")
        ids = ids[: first + 1]
    return list(ids) if ids and ids[-1] in stops else [*ids, *stops[:1]]
