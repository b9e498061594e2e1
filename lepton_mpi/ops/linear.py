"""Linear map of rows, y = x W^T + b. Dims: B batch, I inputs, O outputs."""

from __future__ import annotations

from lepton_mpi.ops.array_module import Array
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.product import Precision, product


def linear(x: Array, W: Array, b: Array | None = None, *, precision: Precision = "fp32", out: Array | None = None) -> Array:
    """Return x W^T + b. Local.

    Args:
        x: [B, I]; B may be 0.
        W: [O, I].
        b: [O], or None.
        precision, out: see `product`.

    Returns:
        An array [B, O].

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("W", W, (None, None))
    check_shape("x", x, (None, W.shape[1]))
    y: Array = product(x, W.T, precision, out)
    if b is not None:
        check_shape("b", b, (W.shape[0],))
        y += b
    return y


def linear_backward_input(dy: Array, W: Array, *, precision: Precision = "fp32", out: Array | None = None) -> Array:
    """Return dx = dy W. Local.

    Args:
        dy: [B, O].
        W: [O, I].
        precision, out: see `product`.

    Returns:
        An array [B, I].

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("W", W, (None, None))
    check_shape("dy", dy, (None, W.shape[0]))
    dx: Array = product(dy, W, precision, out)
    return dx


def linear_backward_weight(dy: Array, x: Array, dW: Array, db: Array | None = None, *, precision: Precision = "fp32") -> None:
    """Add dy^T x to dW and the column sums of dy to db. Local.

    Args:
        dy: [B, O]; B may be 0.
        x: [B, I], the input of the forward pass.
        dW: [O, I]; the caller's, added to (a view into the gradient buffer).
        db: [O], or None; the caller's, added to.
        precision: see `product`.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("dy", dy, (None, None))
    check_shape("x", x, (dy.shape[0], None))
    check_shape("dW", dW, (dy.shape[1], x.shape[1]))
    dW += product(dy.T, x, precision)
    if db is not None:
        check_shape("db", db, (dy.shape[1],))
        db += dy.sum(axis=0)
