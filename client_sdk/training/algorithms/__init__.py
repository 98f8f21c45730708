"""Device halves of the federated algorithms: what one device adds to the sum."""

from client_sdk.training.algorithms import (
    evaluation,
    fedavg,
    fedbuff,
    fednova,
    fedsgd,
    scaffold,
    zeroth_order,
)
from client_sdk.training.algorithms.work import Algorithm, Work
from dp.contracts.optimisers import NAMED_AFTER

ALGORITHMS: dict[str, Algorithm] = {
    "evaluation": evaluation.contribute,
    "zeroth-order": zeroth_order.contribute,
    "fedsgd": fedsgd.contribute,
    "fedavg": fedavg.contribute,
    "fedbuff": fedbuff.contribute,
    "fednova": fednova.contribute,
    "scaffold": scaffold.contribute,
    "fedprox": fedavg.contribute,  # the same steps with a proximal term
    **dict.fromkeys(NAMED_AFTER, fedavg.contribute),  # the server optimiser is the server's
}

__all__ = ["ALGORITHMS", "Algorithm", "Work"]
