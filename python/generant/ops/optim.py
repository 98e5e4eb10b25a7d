"""Optimiser steps on one flat buffer: Adam, Lion, SGD, exponential moving average, clipping by norm.

The parameters of a model, their gradients and the optimiser's moments are each one contiguous array, so a step is one
call and one pass. All are effects: they change their arguments in place and have no derivative. A batch that produced
NaN or infinity is recognised by clip_norm_, and the others do nothing when its flag says so.
"""
import numpy as np

from ._table import op

__all__ = ["adam_", "clip_norm_", "ema_", "lion_", "sgd_"]

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


@op("p: n, m: n, g: n, lr: 1 float64, ok?: 1 uint8 ->", effects=(0, 1), sizes=SIZES,
    attrs=[dict(), dict(beta1=0.5, beta2=0.75, weight_decay=0.1)])
def lion_(p, m, g, lr, ok=None, *, beta1=0.9, beta2=0.99, weight_decay=0.0):
    """p <- (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g, in place.

    p, m, g: n; lr: 1 float64. Nothing changes if ok: 1 uint8 is given and 0. One pass, 20 bytes per float32 parameter.
    Not differentiable. Chen et al. (2023), algorithm 2.
    """
    if ok is not None and not ok[0]:
        return
    rate, T = float(lr[0]), p.dtype.type
    if weight_decay:
        p *= T(1 - rate * weight_decay)
    p -= T(rate) * np.sign(T(beta1) * m + T(1 - beta1) * g)
    m *= T(beta2)
    m += T(1 - beta2) * g


def _no_outputs(shapes, attrs):
    if shapes[1] is None and (attrs["momentum"] or attrs["nesterov"]):
        raise ValueError(f"sgd_: momentum = {attrs['momentum']} and nesterov = {attrs['nesterov']} need m, got None")
    return ()


@op("p: n, m?: n, g: n, lr: 1 float64, ok?: 1 uint8 ->", effects=(0, 1), sizes=SIZES, shape=_no_outputs,
    attrs=[dict(), dict(momentum=0.9), dict(momentum=0.5, nesterov=True, weight_decay=0.1), dict(weight_decay=0.1)])
def sgd_(p, m, g, lr, ok=None, *, momentum=0.0, nesterov=False, weight_decay=0.0):
    """p <- p - lr m with m <- momentum m + g + weight_decay p: gradient descent with momentum, in place.

    The decay is coupled, a part of the gradient, as in torch. With nesterov the step is along momentum m + g +
    weight_decay p. p, g: n; m: n, or None without momentum; lr: 1 float64. Nothing changes if ok: 1 uint8 is given and
    0. One pass. Not differentiable. Sutskever et al. (2013), section 2, in the form of torch.optim.SGD.
    """
    if ok is not None and not ok[0]:
        return
    T = p.dtype.type
    move = g + T(weight_decay) * p
    if m is not None:
        m *= T(momentum)
        m += move
        move = move + T(momentum) * m if nesterov else m
    p -= T(float(lr[0])) * move


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
