"""Which devices the demo kills in which round.

Every device has its turn, the last ones first: the plan moves on by one group of victims a round.
The first devices hold most of the data, so a second turn costs the least. It needs no chance, and
so none of it can leak into masks or noise.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KillPlan:
    """``drops`` devices a round vanish for good before their upload; one more, if ``resume``,
    is killed after its upload in every odd round and comes back at once.

    Devices are numbered 0..clients-1, rounds from 1.
    """

    clients: int
    drops: int
    resume: bool

    def victims(self, round_number: int) -> frozenset[int]:
        after = -(round_number - 1) * self.drops
        return frozenset((after - step) % self.clients for step in range(1, self.drops + 1))

    def resumer(self, round_number: int) -> int | None:
        if not self.resume or round_number % 2 == 0:
            return None
        return (-round_number * self.drops - 1) % self.clients

    @property
    def survivors_min(self) -> int:
        return self.clients - self.drops


def plan_kills(clients: int, fraction: float) -> tuple[KillPlan, str | None]:
    """The plan for a drop-out fraction, and what to say where it could not be followed.

    floor(fraction * clients + 0.5) devices drop in every round, or as many as the threshold of the
    complete graph permits with nobody corrupt.
    """
    from secagg.graph.parameters import dropouts_tolerated

    wanted = int(fraction * clients + 0.5)
    most = dropouts_tolerated(clients, 0)
    drops = min(wanted, most)
    message = None
    if drops < wanted:
        message = (
            f"--drop {fraction:g} means {wanted} of {clients} devices, but the threshold of so "
            f"small a cohort permits {most}; {most} will drop."
        )
    # With no drop-out asked for, nothing is killed at all.
    return KillPlan(clients, drops, resume=wanted > 0), message
