"""Linear sketches of a layer's change M = B A, and the sum of M back from their sum.

Averaging factors does not average products, and stacking factors (FLoRA, arXiv 2409.05976) shows
each device's own to the server. Sketches are linear: with public random Omega and Psi every device
sends M Omega and Psi M, computed through the factors, and from the sums follows the sum of M:

    Y = sum M Omega,  Z = Psi sum M,  Q R = Y,  sum M = Q (Psi Q)^+ Z

(Tropp, Yurtsever, Udell, Cevher: Practical sketching algorithms for low-rank matrix approximation,
2017, algorithm 4), exactly if Omega has as many columns as the sum has rank. Devices of different
ranks send the same shapes. Entries are ±1/sqrt(2 k), so that a sketch has the norm of M on
average. Where the sketches are not shorter than M, M itself is sent.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from secagg.hashing import encode_parts
from secagg.lora.forms import Pair, sketch_length
from secagg.manifest import Adapter

Float64 = NDArray[np.float64]
_CUT = 1e-12  # relative; directions of Y below it are rounding


def _dense(adapter: Adapter, pair: Pair) -> bool:
    return sketch_length(adapter, pair) == pair.rows * pair.columns


def _signs(
    adapter: Adapter, label: str, pair: Pair, version: int, shape: tuple[int, int]
) -> Float64:
    """±1/sqrt(2 k) from SHAKE-256: the same bits on every platform, new in every version."""
    rows, columns = shape
    stream = hashlib.shake_256(
        encode_parts(
            "lora-sketch", label.encode(), adapter.seed, pair.b.name.encode(), b"%d" % version
        )
    )
    raw = np.frombuffer(stream.digest(-(-rows * columns // 8)), dtype=np.uint8)
    bits = np.unpackbits(raw, count=rows * columns, bitorder="little")
    small = min(rows, columns)
    signs = (2.0 * bits.astype(np.float64) - 1.0).reshape(shape)
    return np.asarray(signs / math.sqrt(2 * small), dtype=np.float64)


def _omega(adapter: Adapter, pair: Pair, version: int) -> Float64:
    return _signs(adapter, "omega", pair, version, (pair.columns, adapter.sketch))


def _psi(adapter: Adapter, pair: Pair, version: int) -> Float64:
    return _signs(adapter, "psi", pair, version, (2 * adapter.sketch, pair.rows))


def sketch(adapter: Adapter, pair: Pair, version: int, left: Float64, right: Float64) -> Float64:
    """Sketches of left @ right (rows x q times q x columns), flat."""
    if _dense(adapter, pair):
        return (left @ right).ravel()
    first = left @ (right @ _omega(adapter, pair, version))
    second = (_psi(adapter, pair, version) @ left) @ right
    return np.concatenate([first.ravel(), second.ravel()])


def recover(adapter: Adapter, pair: Pair, version: int, summed: Float64) -> tuple[Float64, Float64]:
    """Factors (left, right) whose product is the sum that was sketched."""
    if _dense(adapter, pair):
        return np.eye(pair.rows), summed.reshape(pair.rows, pair.columns)
    cut = pair.rows * adapter.sketch
    first = summed[:cut].reshape(pair.rows, adapter.sketch)
    second = summed[cut:].reshape(2 * adapter.sketch, pair.columns)
    u, s, _ = np.linalg.svd(first, full_matrices=False)
    basis = u[:, s > _CUT * max(float(s[0]), 1e-300)]
    solved, *_ = np.linalg.lstsq(_psi(adapter, pair, version) @ basis, second, rcond=None)
    return basis, solved


def truncated(left: Float64, right: Float64, rank: int) -> tuple[Float64, Float64, float]:
    """Rank-``rank`` factors (U S, V^T) of left @ right by two QR and a small SVD; the lost share.

    Rows of the second factor are orthonormal, also where singular values vanish. The third value
    is the Frobenius norm of what is cut off over that of the product.
    """
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(r_left @ r_right.T)
    total = float(np.sqrt((s**2).sum()))
    keep = min(rank, len(s))
    lost = float(np.sqrt((s[keep:] ** 2).sum())) / total if total > 0 else 0.0
    b = np.zeros((left.shape[0], rank))
    a = np.zeros((rank, right.shape[1]))
    b[:, :keep] = (q_left @ u[:, :keep]) * s[:keep]
    a[:keep] = vt[:keep] @ q_right.T
    return b, a, lost
