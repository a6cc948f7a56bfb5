"""An immutable, hashable mapping, so that values with tables in them can be keys themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

V_co = TypeVar("V_co", covariant=True)


class FrozenMap(Mapping[str, V_co]):
    """A read-only mapping from names to values, ordered by name.

    Equal to any mapping with the same items; hashable when its values are. Its JSON form is an object.
    """

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[str, V_co] | Iterable[tuple[str, V_co]] = ()) -> None:
        """Copy `items`; a later duplicate of a name wins, as in `dict`."""
        pairs = dict(items)
        self._items: dict[str, V_co] = {name: pairs[name] for name in sorted(pairs)}
        self._hash: int | None = None

    def __getitem__(self, name: str) -> V_co:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMap):  # the inherited comparison copies both sides
            return self._items == other._items
        return super().__eq__(other)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(tuple(self._items.items()))
        return self._hash

    def __repr__(self) -> str:
        return f"FrozenMap({self._items!r})"
