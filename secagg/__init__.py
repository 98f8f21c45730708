"""Secure aggregation, protocol 1: pure machines, no clock, network, files or hidden randomness.

The two halves are :mod:`secagg.client` and :mod:`secagg.server`; :mod:`secagg.simulation` drives
both without a network.
"""

from secagg.errors import (
    ConfigurationError,
    LocalProtocolError,
    RemoteProtocolError,
    SecaggError,
)
from secagg.manifest import Manifest
from secagg.secret import Secret
from secagg.tools import Tools, system_tools

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "LocalProtocolError",
    "Manifest",
    "RemoteProtocolError",
    "SecaggError",
    "Secret",
    "Tools",
    "__version__",
    "system_tools",
]
