"""Which rows a task that protects persons or documents takes: each is of one, and of few enough."""

from __future__ import annotations

from collections.abc import Sequence

from client_sdk.training.dataset import LeftOut
from client_sdk.training.examples import Row


def units_of(rows: Sequence[Row], unit: str) -> tuple[list[str | None], list[LeftOut]]:
    """The name that each row has under ``unit``; None: it cannot be used.

    And which rows cannot since they name no unit or several; those that are empty are told
    elsewhere.

    Args:
        unit: the word for what the task protects.
    """
    names: list[str | None] = []
    refused = []
    for row in rows:
        if not row.tokens:
            names.append(None)
        elif len(row.owners) == 1:
            names.append(row.owners[0])
        else:
            names.append(None)
            refused.append(_refused(row, unit))
    return names, refused


def beyond(
    names: Sequence[str | None], groups: Sequence[Sequence[int]], unit: str
) -> list[LeftOut]:
    """The rows that name a unit of which others are used already, as many as the task takes."""
    used = {row for group in groups for row in group}
    return [
        LeftOut(
            place,
            "example-unit-full",
            f"The task uses the first {max(map(len, groups))} rows of a {unit}, and those of this "
            "one stand before it. Put the rows first that are to be learnt.",
        )
        for place, name in enumerate(names)
        if name is not None and place not in used
    ]


def without_turn(groups: Sequence[Sequence[int]], served: int | None, unit: str) -> list[LeftOut]:
    """The rows of units beyond the places to which a task's schedule gives a turn.

    Args:
        served: as :func:`dp.schedule.places_served`.
    """
    if served is None:
        return []
    sentence = (
        f"It has no turn: of each device the {unit}s at the first {served} places serve in this "
        f"task. Take part with it in another task, or ask the operator for one with a larger "
        "examples_max or period."
    )
    return [
        LeftOut(row, "example-without-turn", sentence) for group in groups[served:] for row in group
    ]


def _refused(row: Row, unit: str) -> LeftOut:
    if row.owners:
        return LeftOut(
            row.index,
            "example-owners",
            f"It names {len(row.owners)} {unit}s, and a row moves a sum for each {unit} that it is "
            f"of: the task's noise is for one. Take it out, or split it into one row for each "
            f"{unit}.",
        )
    return LeftOut(
        row.index,
        "example-unit",
        f"The task protects each {unit} with all rows of it, and the row names none. Give it the "
        f'key "unit" with a name that stays with the {unit}: a text or a whole number.',
    )
