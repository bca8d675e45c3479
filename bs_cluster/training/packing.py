"""Packing: several short rows make one unit of up to ``max_length`` tokens. Attention stays within rows."""

from __future__ import annotations

from collections.abc import Sequence

from bs_cluster.data.encode import EncodedRow


def pack_rows(rows: Sequence[EncodedRow], max_length: int) -> list[list[EncodedRow]]:
    """Best-fit decreasing, the strategy TRL calls ``bfd``: each row goes where it leaves the least room.

    Deterministic; a row longer than ``max_length`` stands alone. O(rows · max_length) with a table of open bins.
    """
    by_room: dict[int, list[int]] = {}
    units: list[list[EncodedRow]] = []
    for row in sorted(rows, key=lambda row: (-len(row.input_ids), row.id)):
        length = len(row.input_ids)
        room = next((space for space in range(length, max_length + 1) if by_room.get(space)), None)
        if room is None:
            units.append([row])
            by_room.setdefault(max(max_length - length, 0), []).append(len(units) - 1)
        else:
            unit = by_room[room].pop()
            units[unit].append(row)
            by_room.setdefault(room - length, []).append(unit)
    return units
