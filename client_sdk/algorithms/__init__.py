"""Device halves of the federated algorithms: what one device adds to the sum."""

from client_sdk.algorithms import evaluation, fedavg, fedsgd, zeroth_order
from client_sdk.algorithms.work import Algorithm, Work

ALGORITHMS: dict[str, Algorithm] = {
    "evaluation": evaluation.contribute,
    "zeroth-order": zeroth_order.contribute,
    "fedsgd": fedsgd.contribute,
    "fedavg": fedavg.contribute,
    "fedprox": fedavg.contribute,  # the same steps with a proximal term
}

__all__ = ["ALGORITHMS", "Algorithm", "Work"]
