"""Which of the active clients a round asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from combiner.domain.config import RoundConfig


def choose(active: Sequence[str], config: RoundConfig, rng: Random) -> list[str]:
    """min(ceil(clients_requested x over_selection), all) of `active`, by name.

    The same clients, config and state of `rng` give the same choice, whatever the order of `active`.
    """
    # Without the rounding 10 x 1.1 is a little more than 11, and its ceiling 12.
    wanted = math.ceil(round(config.clients_requested * config.over_selection, 6))
    names = sorted(set(active))
    return sorted(rng.sample(names, min(wanted, len(names))))


def rng_for(config: RoundConfig, otherwise: Random) -> Random:
    """The source of the choice: from `seed` if there is one, else `otherwise`.

    Rounds of one seed differ, and so do the attempts at one round: a choice that failed is not made again.
    """
    if config.seed is None:
        return otherwise
    return Random(f"{config.seed}/{config.task}/{config.round_id}/{config.attempt}")
