"""Optimiser steps on one flat buffer: Adam, exponential moving average, clipping by norm.

The parameters of a model, their gradients and the optimiser's moments are each one contiguous array, so a step is one
call and one pass. All three are effects: they change their arguments in place and have no derivative. A batch that
produced NaN or infinity is recognised by clip_norm_, and adam_ and ema_ do nothing when its flag says so.
"""
import numpy as np

from ._table import op

__all__ = ["adam_", "clip_norm_", "ema_"]

SIZES = [dict(n=1), dict(n=7), dict(n=67), dict(n=1000)]
BLOCK = 1 << 14                                        # elements per partial sum of the norm: fixed, so the norm is too


@op("p: n, m: n, v: n, g: n, step: 1 int64, lr: 1 float64, ok?: 1 uint8 ->", effects=(0, 1, 2, 4), sizes=SIZES,
    domain={"v": "positive"}, attrs=[dict(), dict(beta1=0.5, weight_decay=0.1)])
def adam_(p, m, v, g, step, lr, ok=None, *, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """p <- (1 - lr weight_decay) p - lr m_hat / (sqrt(v_hat) + eps): Adam with decoupled weight decay, in place.

    m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, step <- step + 1, m_hat = m / (1 - beta1^step),
    v_hat = v / (1 - beta2^step). p, m, v, g: n; step: 1 int64, steps done so far; lr: 1 float64. Nothing changes if
    ok: 1 uint8 is given and 0. One pass, 28 bytes per float32 parameter. Not differentiable.
    Kingma and Ba (2015), algorithm 1; Loshchilov and Hutter (2019), algorithm 2.
    """
    if ok is not None and not ok[0]:
        return
    step += 1
    t, rate = int(step[0]), float(lr[0])
    T = p.dtype.type
    m *= T(beta1)
    m += T(1 - beta1) * g
    v *= T(beta2)
    v += T(1 - beta2) * (g * g)
    if weight_decay:
        p *= T(1 - rate * weight_decay)
    p -= T(rate / (1 - beta1**t)) * m / (np.sqrt(v) * T((1 - beta2**t) ** -0.5) + T(eps))


@op("e: n, p: n, decay: 1 float64, ok?: 1 uint8 ->", effects=(0,), sizes=SIZES)
def ema_(e, p, decay, ok=None):
    """e <- e + (1 - decay) (p - e): exponential moving average of the parameters, in place.

    e, p: n; decay: 1 float64 in [0, 1]. Nothing changes if ok: 1 uint8 is given and 0. Not differentiable.
    """
    if ok is not None and not ok[0]:
        return
    e += e.dtype.type(1 - float(decay[0])) * (p - e)


@op("g: n -> 1 uint8, 1 float64", effects=(0,), sizes=SIZES, attrs=[dict(limit=0.5), dict(limit=1e9)])
def clip_norm_(g, *, limit=float("inf")):
    """g <- g min(1, limit / |g|), in place; returns (1 uint8: whether |g| is finite, 1 float64: |g| before).

    g: n. The norm is summed in float64 over blocks of 16384 elements, whatever the number of threads. A gradient
    whose norm is not finite is left as it is. The default only checks. Not differentiable.
    Pascanu, Mikolov and Bengio (2013), algorithm 1.
    """
    x = g.astype(np.float64) if g.dtype == np.float32 else g
    norm = np.sqrt(sum((np.sum(b * b) for b in np.split(x, range(BLOCK, len(x), BLOCK))), start=x.dtype.type(0)))
    finite = np.isfinite(norm)
    if finite and norm > limit:
        g *= g.dtype.type(limit / norm)
    return np.array([finite], np.uint8), np.array([norm], np.float64)
