"""Differentiation: nesting, penalties, memory, and what a traced array refuses.

Seen to fail: with dw's arguments swapped in bilinear_triple, with `pull` overwriting a gradient instead of adding to
it, and with the trace left open after vjp.
"""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from generant import grad, ops, value_and_grad, vjp
from generant.autograd import Trace


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def net(params, x):
    """linear, layer_norm, tanh, linear: the discriminator of the penalty tests."""
    w1, b1, gain, bias, w2 = params
    return ops.matmul(ops.tanh(ops.layer_norm(ops.linear(x, w1, b1), gain, bias)), w2)


PARAMS = [normal(5, 7), normal(7), 1 + 0.1 * normal(7, seed=1), 0.1 * normal(7, seed=2), normal(7, 1)]
X = normal(6, 5)


def r1(params, x):
    """mean_i |d net / d x_i|^2 (Mescheder, Geiger, Nowozin 2018, eq. 9)."""
    g = grad(lambda x: ops.sum(net(params, x)))(x)
    return ops.mean(ops.sum(g * g, axis=1))


def test_r1_penalty_against_finite_differences() -> None:
    _, grads = value_and_grad(r1)(PARAMS, X)
    for i, p in enumerate(PARAMS):
        d, h = normal(*p.shape, seed=9), 1e-6
        at = lambda s: float(r1([q + s * d if j == i else q for j, q in enumerate(PARAMS)], X))
        assert (grads[i] * d).sum() == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-6, abs=1e-8)


def test_r1_penalty_against_torch() -> None:
    torch = pytest.importorskip("torch")
    value, grads = value_and_grad(r1)(PARAMS, X)
    params = [torch.tensor(p, requires_grad=True) for p in PARAMS]
    x = torch.tensor(X, requires_grad=True)
    h = torch.nn.functional.layer_norm(x @ params[0] + params[1], (7,), params[2], params[3])
    (g,) = torch.autograd.grad((torch.tanh(h) @ params[4]).sum(), x, create_graph=True)
    penalty = (g * g).sum(1).mean()
    theirs = torch.autograd.grad(penalty, params)
    assert float(value) == pytest.approx(penalty.item(), rel=1e-12)
    for a, b in zip(grads, theirs, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-9, atol=1e-10)


def test_third_derivative_of_tanh_is_exact() -> None:
    third = grad(lambda x: ops.sum(grad(lambda x: ops.sum(grad(lambda x: ops.sum(ops.tanh(x)))(x)))(x)))(X)
    t = np.tanh(X)
    np.testing.assert_allclose(third, (1 - t * t) * (6 * t * t - 2), rtol=0, atol=1e-14)


def test_third_derivative_against_torch() -> None:
    torch = pytest.importorskip("torch")

    def third(f, g):
        return grad(lambda x: ops.sum(grad(lambda x: ops.sum(grad(lambda x: ops.sum(f(x)))(x)))(x)))(g)

    for name in ("silu", "sigmoid", "softplus", "gelu"):
        x = torch.tensor(X, requires_grad=True)
        f = getattr(torch.nn.functional, name)
        g = x
        y = f(x)
        for _ in range(3):
            (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            y = g
        np.testing.assert_allclose(third(getattr(ops, name), X), g.detach().numpy(), rtol=1e-8, atol=1e-10)


def test_operators_equal_their_ops() -> None:
    a, b = normal(3, 4), 2 + np.abs(normal(3, 4, seed=1))
    for f, df in (
        (lambda x: x + b, lambda: np.ones_like(a)),
        (lambda x: b + x, lambda: np.ones_like(a)),
        (lambda x: b - x, lambda: -np.ones_like(a)),
        (lambda x: 3 - 2 * x, lambda: -2 * np.ones_like(a)),
        (lambda x: x * b, lambda: b),
        (lambda x: x / b, lambda: 1 / b),
        (lambda x: 2 / (x * x + 1), lambda: -4 * a / (a * a + 1) ** 2),
        (lambda x: x**2, lambda: 2 * a),
        (lambda x: (x * x + 1) ** 1.5, lambda: 3 * a * np.sqrt(a * a + 1)),
        (lambda x: -x, lambda: -np.ones_like(a)),
        (lambda x: abs(x), lambda: np.sign(a)),
        (lambda x: np.float64(2) * x, lambda: 2 * np.ones_like(a)),
        (lambda x: x.T, lambda: np.ones_like(a)),
    ):
        np.testing.assert_allclose(grad(lambda x, f=f: ops.sum(f(x)))(a), df(), rtol=1e-13)


def test_a_var_used_twice_adds_up_and_an_unused_one_has_zero_gradient() -> None:
    a, b = normal(3), normal(4)
    value, (da, db) = value_and_grad(lambda p: ops.sum(p[0] * p[0] + p[0]))([a, b])
    np.testing.assert_allclose(da, 2 * a + 1)
    np.testing.assert_array_equal(db, np.zeros(4))
    assert float(value) == pytest.approx((a * a + a).sum())


def test_further_outputs_are_returned_not_differentiated() -> None:
    (loss, y), g = value_and_grad(lambda x: (ops.sum(x * x), x * 2.0))(X)
    np.testing.assert_allclose(g, 2 * X)
    np.testing.assert_allclose(y, 2 * X)
    assert isinstance(y, np.ndarray) and isinstance(loss, np.ndarray)


def test_a_constant_function_has_zero_gradient() -> None:
    np.testing.assert_array_equal(grad(lambda x: np.array(3.0))(X), np.zeros_like(X))


def test_what_leaves_the_trace_is_refused_with_what_to_do() -> None:
    seen = []

    def f(x):
        for attempt in (
            lambda: np.exp(x), lambda: np.mean(x), lambda: bool(x), lambda: float(x), lambda: len(x), lambda: list(x),
            lambda: x == x, lambda: x < 1, lambda: np.asarray(x), lambda: x[0], lambda: 1 in x,
        ):
            with pytest.raises(TypeError, match=r"traced array.*generant\.ops"):
                attempt()
            seen.append(1)
        with pytest.raises(TypeError):
            x + "text"
        return ops.sum(x)

    grad(f)(X)
    assert len(seen) == 11
    assert "Var(shape=(6, 5)" in repr(Trace().box(X))


def test_a_var_outside_its_function_is_refused() -> None:
    leaked = []
    grad(lambda x: (leaked.append(x), ops.sum(x))[1])(X)
    with pytest.raises(TypeError, match="outlived"):
        ops.tanh(leaked[0])


def test_pull_works_once_and_checks_its_cotangents() -> None:
    y, pull = vjp(ops.tanh, X)
    with pytest.raises(ValueError, match="2 cotangents for 1"):
        vjp(ops.tanh, X)[1](y, y)
    pull(y)
    with pytest.raises(RuntimeError, match="twice"):
        pull(y)


def test_a_gradient_of_something_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scalar, got shape \(6, 5\)"):
        grad(ops.tanh)(X)


def test_in_place_ops_and_ops_without_a_rule_are_refused() -> None:
    with pytest.raises(TypeError, match="ema_ changes its arguments in place"):
        grad(lambda e: (ops.ema_(e, np.ones(5), np.array([0.9])), ops.sum(e))[1])(np.ones(5))
    with pytest.raises(TypeError, match="radius_min is not differentiable"):
        grad(lambda x: ops.sum(ops.radius_min(x, x, np.ones(len(X)))))(X)


def test_activations_die_after_their_last_use() -> None:
    """The tape is freed by pull; no activation survives, and no reference cycle keeps one."""
    alive = []

    def f(x):
        h = ops.tanh(x)
        alive.append(weakref.ref(h.value if isinstance(h.value, np.ndarray) else h))
        return ops.sum(h * h)

    gc.disable()
    try:
        grad(f)(normal(64, 64))
        assert alive[0]() is None
    finally:
        gc.enable()


def test_an_exception_in_the_function_leaves_no_open_trace() -> None:
    leaked = []

    def f(x):
        leaked.append(x)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        grad(f)(X)
    with pytest.raises(TypeError, match="outlived"):
        ops.tanh(leaked[0])


def test_eight_threads_differentiate_at_once() -> None:
    expected = value_and_grad(r1)(PARAMS, X)
    results: list = [None] * 8

    def work(i: int) -> None:
        for _ in range(20):
            results[i] = value_and_grad(r1)(PARAMS, X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for value, grads in results:
        assert value.tobytes() == expected[0].tobytes()
        assert all(a.tobytes() == b.tobytes() for a, b in zip(grads, expected[1], strict=True))


def test_only_the_gradients_asked_for_are_computed() -> None:
    """A discriminator step does not go back through the generator: its arrays are plain, so nothing tracks them."""
    calls = []
    for name in ("matmul_dx", "matmul_dw"):
        op = getattr(ops, name)
        original = op.run
        op.run = lambda *a, _o=original, _n=name, **k: (calls.append(_n), _o(*a, **k))[1]
    try:
        w, x = normal(5, 3), X
        _, g = value_and_grad(lambda w: ops.sum(ops.matmul(x, w)))(w)
        assert calls == ["matmul_dw"]
        np.testing.assert_allclose(g, x.T @ np.ones((6, 3)), rtol=1e-13)
    finally:
        for name in ("matmul_dx", "matmul_dw"):
            getattr(ops, name)._choose()
