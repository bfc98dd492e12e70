"""Rows that can be used, and what was left out of a table: counted, with its places and the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from rlax_llm.core.wording import counted
from rlax_llm.data.rows import DataError

T = TypeVar("T")
U = TypeVar("U")

Tables = Path | str | Sequence[Path | str]
"""One table or several, as ``read_table`` takes each."""

_LOT = 1000  # rows that are tried together
_REASONS = 4  # and places that are named at most
_PLACES = 4
_OWN = re.compile(r"'[^']*'|\d+")  # what differs between two rows with the same fault


class LeftOut(NamedTuple):
    """A row that cannot be used.

    Attributes:
        where: its place.
        said: why not, in a sentence that begins with the place.
    """

    where: str
    said: str


@dataclass(frozen=True)
class Kept(Sequence[T], Generic[T]):
    """The rows of a table that can be used, as a sequence, with what was left out.

    Attributes:
        name: what the table is called.
        rows: in their order.
        places: of each row.
        left_out: the others.
        notes: lines on how the table was read.
    """

    name: str
    rows: Sequence[T]
    places: Sequence[str]
    left_out: Sequence[LeftOut] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def then(self, use: Callable[[Sequence[T]], Sequence[U]]) -> Kept[U]:
        """What ``use`` makes of the rows; a row that it refuses is left out.

        Args:
            use: ``rows → as many results``, each a function of its own row. Where it raises a ``DataError`` for several
                rows it is asked again for each of them.

        Raises:
            DataError: no row is left.

        >>> def short(rows):
        ...     if any(len(row) > 1 for row in rows):
        ...         raise DataError("it is too long; cut it.")
        ...     return rows
        >>> kept = number_rows("d", ["a", "bb"]).then(short)
        >>> list(kept), kept.report()
        (['a'], 'd: 1 of 2 rows left out: 1 because it is too long (row 2)')
        """
        rows = []
        places = []
        left_out = list(self.left_out)
        for start in range(0, len(self.rows), _LOT):
            lot = range(start, min(start + _LOT, len(self.rows)))
            try:
                rows += use([self.rows[i] for i in lot])
                places += [self.places[i] for i in lot]
            except DataError:
                for i in lot:
                    try:
                        rows += use([self.rows[i]])
                        places.append(self.places[i])
                    except DataError as error:
                        left_out.append(_left_out(self.places[i], error))
        return Kept(self.name, rows, places, left_out, self.notes).checked()

    def noted(self, note: str) -> Kept[T]:
        """With one more line on how the table was read.

        Args:
            note: begins with the table's name.
        """
        return replace(self, notes=(*self.notes, note))

    def checked(self) -> Kept[T]:
        """Itself, if there is a row.

        Raises:
            DataError: every row was left out; it says why, the commonest reason first.
        """
        if self.rows or not self.left_out:
            return self
        first = self.left_out[0].said
        if len(self.left_out) == 1:
            raise DataError(first)
        none = f"{self.name}: none of the {len(self.left_out):,} rows can be used"
        if len(self._groups()) == 1:
            raise DataError(f"{none}. {first}")
        raise DataError(f"{none}: {self._reasons()}.")

    def report(self) -> str:
        """What there is to say of the table: its notes, and how many rows were left out for which reason, and where.

        Reasons that differ in numbers or quoted words alone are counted as one, with its first row as the example.

        >>> left_out = [LeftOut(f"d, row {n}", f"d, row {n}: it has {n} tokens; cut it.") for n in (3, 4)]
        >>> Kept("d", ["a"], ["d, row 1"], left_out).report()
        'd: 2 of 3 rows left out: 2 because, as in row 3, it has 3 tokens (rows 3, 4)'
        """
        return "\n".join([*self.notes, *([self._omission()] if self.left_out else [])])

    def _omission(self) -> str:
        total = len(self.left_out) + len(self.rows)
        return f"{self.name}: {len(self.left_out):,} of {counted(total, 'row')} left out: {self._reasons()}"

    def _groups(self) -> list[list[LeftOut]]:
        """What was left out by its reason, the commonest first."""
        groups: dict[str, list[LeftOut]] = {}
        for one in self.left_out:
            groups.setdefault(_OWN.sub("*", _reason(one)), []).append(one)
        return sorted(groups.values(), key=len, reverse=True)

    def _reasons(self) -> str:
        commonest = self._groups()
        told = [self._told(group) for group in commonest[:_REASONS]]
        if others := sum(map(len, commonest[_REASONS:])):
            told.append(f"{others:,} for other reasons")
        return "; ".join(told)

    def _told(self, group: Sequence[LeftOut]) -> str:
        """How many rows, the reason, and the first places."""
        places = [one.where.removeprefix(f"{self.name}, ") for one in group]
        alike = len({_reason(one) for one in group}) == 1
        reason = f"{'' if alike else f', as in {places[0]},'} {_reason(group[0])}"
        return f"{len(group):,} because{reason} ({_listed(places)})"


def sift(name: str, rows: Iterable[tuple[str, T]], use: Callable[[str, T], U]) -> Kept[U]:
    """What ``use`` makes of the rows of a table; a row that it refuses is left out.

    Args:
        name: what the table is called.
        rows: with their places; what is raised in getting them is the table's own fault, and is not caught.
        use: ``(place, row) → result``, raises a ``DataError`` for a row that cannot be used.

    Raises:
        DataError: no row is left; as getting the rows does.

    >>> sift("d", [("d, row 1", "2"), ("d, row 2", "3")], lambda where, row: int(row)).rows
    [2, 3]
    """
    found = []
    places = []
    left_out = []
    for where, row in rows:
        try:
            found.append(use(where, row))
            places.append(where)
        except DataError as error:
            left_out.append(_left_out(where, error))
    return Kept(name, found, places, left_out).checked()


def of_each(paths: Tables, read: Callable[[Path | str], Kept[T]]) -> Kept[T]:
    """The rows of one table or of several, in order, with what was left out of each.

    Args:
        paths: of the tables; one alone is read as it is.
        read: ``path → rows``.

    Raises:
        DataError: as ``read``.

    >>> kept = of_each(["a", "b"], lambda name: number_rows(str(name), [1, 2]))
    >>> kept.name, list(kept), kept.places[2]
    ('a, b', [1, 2, 1, 2], 'b, row 1')
    """
    if isinstance(paths, Path | str):
        return read(paths)
    parts = [read(path) for path in paths]
    if len(parts) == 1:
        return parts[0]
    return Kept(
        ", ".join(part.name for part in parts),
        [row for part in parts for row in part.rows],
        [place for part in parts for place in part.places],
        [one for part in parts for one in part.left_out],
        tuple(note for part in parts for note in part.notes),
    )


def number_rows(name: str, rows: Sequence[T]) -> Kept[T]:
    """All rows of a table that is not a file.

    Args:
        name: what it is called.
        rows: counted from 1.

    >>> number_rows("d", ["a", "b"]).places
    ['d, row 1', 'd, row 2']
    """
    return Kept(name, rows, [f"{name}, row {number}" for number in range(1, len(rows) + 1)])


def flatten_rows(kept: Kept[list[T]]) -> Kept[T]:
    """Lists of rows as their rows.

    Args:
        kept: each of its rows gave several.

    >>> flatten_rows(Kept("d", [["a", "b"], ["c"]], ["d, row 1", "d, row 2"])).places
    ['d, row 1', 'd, row 1', 'd, row 2']
    """
    rows = [row for several in kept.rows for row in several]
    places = [place for several, place in zip(kept.rows, kept.places, strict=True) for _ in several]
    return Kept(kept.name, rows, places, kept.left_out, kept.notes)


def keep_commonest(kept: Kept[T], form: Callable[[T], Any], said: Callable[[T, T], str]) -> Kept[T]:
    """The rows of the commonest form; those of another are left out.

    Args:
        kept: the rows, of one form each.
        form: ``row → form``, hashable.
        said: ``(row, row of the commonest form) → `` how the first differs from most.

    >>> rows = number_rows("d", ["a", "b", 3])
    >>> kept = keep_commonest(rows, type, lambda row, usual: f"{row} is no {type(usual).__name__}")
    >>> kept.report()
    'd: 1 of 3 rows left out: 1 because 3 is no str (row 3)'
    """
    counts: dict[Any, int] = {}
    for row in kept.rows:
        counts[form(row)] = counts.get(form(row), 0) + 1
    if len(counts) < 2:
        return kept
    commonest = max(counts, key=lambda key: counts[key])
    usual = next(row for row in kept.rows if form(row) == commonest)

    def check(rows: Sequence[T]) -> Sequence[T]:
        for row in rows:
            if form(row) != commonest:
                raise DataError(said(row, usual))
        return rows

    return kept.then(check)


def _left_out(where: str, error: DataError) -> LeftOut:
    said = str(error)
    return LeftOut(where, said if said.startswith(where) else f"{where}: {said}")


def _reason(one: LeftOut) -> str:
    """The reason alone: without its place, and without what to do about it."""
    return one.said.removeprefix(f"{one.where}: ").split("; ")[0].rstrip(".?")


def _listed(places: Sequence[str]) -> str:
    """The first places, in few words."""
    named = [place.split(" ", 1) for place in places[:_PLACES]]
    more = ", …" if len(places) > _PLACES else ""
    if len(places) == 1 or any(words[:-1] not in (["line"], ["row"]) or words[0] != named[0][0] for words in named):
        return ", ".join(places[:_PLACES]) + more
    return f"{named[0][0]}s {', '.join(words[1] for words in named)}{more}"
