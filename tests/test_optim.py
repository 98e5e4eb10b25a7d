"""Adam, Lion, SGD, moving average, clipping and schedules on flat buffers.

Agreement with torch is in test_optim_torch.py.
Seen to fail: without bias correction, with eps inside the root, with weight decay added to the gradient, with the flag
ignored, with a norm that skips the last partial vector, with Lion's sign of the mean by beta2, with a step of Lion that
changes its own m instead of the one it is given.
"""

from __future__ import annotations

import numpy as np
import pytest

import generant
from generant import ops, optim
from generant.autograd import vjp

SIZES = [1, 7, 16, 67, 16384, 16385, 50001]


def reference_adam(p, grads, lr, beta1, beta2, eps, weight_decay):
    """Algorithm 2 of Loshchilov and Hutter (2019) in float64."""
    p = p.astype(np.float64)
    m = v = np.zeros_like(p)
    for t, (g, rate) in enumerate(zip(grads, lr, strict=True), start=1):
        g = g.astype(np.float64)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        update = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        p = p - rate * weight_decay * p - rate * update
    return p


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("options", [{}, {"beta1": 0.0, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1}], ids=len)
def test_adam_is_its_formula(n, dtype, tolerance, options) -> None:
    """Ten steps with a changing learning rate."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal(n).astype(dtype)
    grads = [(rng.standard_normal(n) * 10.0 ** rng.integers(-3, 3, n)).astype(dtype) for _ in range(10)]
    rates = [0.01 * 0.9**i for i in range(10)]
    full = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, **options}
    expected = reference_adam(p, grads, rates, **full)
    adam = optim.Adam(p, **options)
    for g, rate in zip(grads, rates, strict=True):
        before = g.copy()
        adam.lr[0] = rate
        adam.step(g)
        np.testing.assert_array_equal(g, before)
    np.testing.assert_allclose(p, expected, rtol=tolerance, atol=tolerance)
    assert adam.count[0] == 10


def reference_lion(p, grads, lr, beta1, beta2, weight_decay):
    """Algorithm 2 of Chen et al. (2023) in float64."""
    p = p.astype(np.float64)
    m = np.zeros_like(p)
    for g, rate in zip(grads, lr, strict=True):
        p = p - rate * (np.sign(beta1 * m + (1 - beta1) * g) + weight_decay * p)
        m = beta2 * m + (1 - beta2) * g
    return p


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("options", [{}, {"beta1": 0.5, "beta2": 0.75, "weight_decay": 0.1}], ids=len)
def test_lion_is_its_formula(n, dtype, tolerance, options) -> None:
    rng = np.random.default_rng(5)
    p = rng.standard_normal(n).astype(dtype)
    grads = [rng.standard_normal(n).astype(dtype) for _ in range(10)]
    rates = [0.01 * 0.9**i for i in range(10)]
    expected = reference_lion(p, grads, rates, **{"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, **options})
    lion = optim.Lion(p, **options)
    for g, rate in zip(grads, rates, strict=True):
        lion.lr[0] = rate
        lion.step(g)
    np.testing.assert_allclose(p, expected, rtol=tolerance, atol=tolerance)


def test_lion_does_not_move_where_there_is_no_gradient() -> None:
    p = np.ones(20)
    optim.Lion(p, lr=0.5).step(np.r_[np.zeros(19), 1e-30])
    np.testing.assert_array_equal(p, np.r_[np.ones(19), 0.5])


def test_first_step_has_length_lr() -> None:
    """After bias correction the first update is lr g / (|g| + eps)."""
    p = np.zeros(1000)
    optim.Adam(p, lr=0.25).step(np.linspace(-3, 3, 1000))
    np.testing.assert_allclose(np.abs(p), 0.25, rtol=1e-5)


MAKERS = [optim.Adam, optim.AdamW, optim.Lion, optim.SGD, lambda p: optim.SGD(p, momentum=0.9, nesterov=True)]


@pytest.mark.parametrize("make", MAKERS)
def test_a_step_works_on_the_arrays_it_is_given(make) -> None:
    """Same bits as on its own arrays, which stay as they are; and nothing moves when the flag says so."""
    g = np.random.default_rng(6).standard_normal((3, 50)).astype(np.float32)
    own, other = make(np.ones(50, np.float32)), make(np.ones(50, np.float32))
    at = {name: value.copy() for name, value in {**other.state, "params": other.params}.items()}
    for ok in (None, np.ones(1, np.uint8), np.zeros(1, np.uint8)):
        for i in range(3):
            own.step(g[i], ok)
            other.step(g[i], ok, at=at)
        for name, value in {**own.state, "params": own.params}.items():
            np.testing.assert_array_equal(at[name], value)
        assert other.params.min() == other.params.max() == 1
    before = own.params.copy()
    own.step(g[0], np.zeros(1, np.uint8))
    np.testing.assert_array_equal(own.params, before)
    assert (own.params != 1).all()


def test_an_average_works_on_the_arrays_it_is_given() -> None:
    p = np.arange(50.0)
    own, other = optim.EMA(p, warmup=True), optim.EMA(p.copy(), warmup=True)
    average, q = np.zeros(50), p + 1
    at = {"average": average, "params": q, "decay": np.array([0.75]), "count": other.count}
    other.apply(at=at)
    np.testing.assert_array_equal(average, 0.25 * q)
    assert other.count[0] == 0
    p += 1
    other.params += 1
    other.prepare()
    other.apply()
    own.update()
    np.testing.assert_array_equal(own.average, other.average)
    own.update(at={**at, "decay": own.decay})
    assert own.count[0] == 2
    np.testing.assert_allclose(average, (0.25 * 2 / 11 + 9 / 11) * q)


def test_a_flag_of_zero_changes_nothing() -> None:
    p, g = np.ones(100, np.float32), np.full(100, np.nan, np.float32)
    adam, ema = optim.Adam(p), optim.EMA(p)
    p += 1
    saved = {k: v.copy() for k, v in adam.state.items()}, ema.average.copy()
    ok, norm = optim.clip(g, 1.0)
    assert ok[0] == 0
    assert ok.dtype == np.uint8
    assert np.isnan(norm[0])
    adam.step(g, ok)
    ema.update(ok)
    for name, value in adam.state.items():
        np.testing.assert_array_equal(value, saved[0][name])
    np.testing.assert_array_equal(ema.average, saved[1])
    np.testing.assert_array_equal(p, 2)
    ok, _ = optim.clip(np.ones(3, np.float32))
    adam.step(np.ones(100, np.float32), ok)
    assert adam.count[0] == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", SIZES)
def test_clip(n, dtype) -> None:
    g = np.random.default_rng(2).standard_normal(n).astype(dtype)
    exact = float(np.sqrt(np.sum(g.astype(np.longdouble) ** 2)))
    for limit in (0.5 * exact, 2 * exact, np.inf):
        clipped = g.copy()
        ok, norm = optim.clip(clipped, limit)
        assert ok[0] == 1
        assert norm[0] == pytest.approx(exact, rel=1e-14)
        np.testing.assert_allclose(clipped, g * min(1.0, limit / exact), rtol=4 * np.finfo(dtype).eps)
        if limit >= exact:
            np.testing.assert_array_equal(clipped, g)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 15, 16384, 20002])
def test_clip_finds_one_bad_value(bad, position) -> None:
    g = np.ones(20003, np.float32)
    g[position] = bad
    before = g.copy()
    assert optim.clip(g, 1.0)[0][0] == 0
    np.testing.assert_array_equal(g, before)


def test_large_float32_gradients_do_not_overflow() -> None:
    g = np.full(10000, 1e38, np.float32)
    ok, norm = optim.clip(g, 1e4)
    assert ok[0] == 1
    assert norm[0] == pytest.approx(1e40, rel=1e-6)
    np.testing.assert_allclose(g, 100, rtol=1e-6)


def test_same_bits_for_any_number_of_threads() -> None:
    threads, seen = generant.get_num_threads(), set()
    rng = np.random.default_rng(3)
    p0, g0 = (rng.standard_normal(100_003).astype(np.float32) for _ in range(2))
    try:
        for n in (1, 2, 5):
            generant.set_num_threads(n)
            p, g = p0.copy(), g0.copy()
            adam, ema = optim.Adam(p), optim.EMA(p)
            for _ in range(3):
                ok, norm = optim.clip(g, 1.0)
                adam.step(g, ok)
                ema.update(ok)
            seen.add((p.tobytes(), ema.average.tobytes(), norm.tobytes()))
    finally:
        generant.set_num_threads(threads)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ema(dtype) -> None:
    p = np.zeros(1003, dtype)
    ema = optim.EMA(p, decay=0.9)
    expected = np.zeros(1003)
    for i in range(5):
        p += i
        ema.update()
        expected = 0.9 * expected + 0.1 * p
    np.testing.assert_allclose(ema.average, expected, rtol=8 * np.finfo(dtype).eps)
    warm = optim.EMA(np.ones(1), decay=0.5, warmup=True)
    decays = []
    for _ in range(12):
        warm.update()
        decays.append(warm.decay[0])
    np.testing.assert_allclose(decays[:3], [1 / 10, 2 / 11, 3 / 12])
    assert decays[-1] == 0.5


def test_state_can_be_saved_and_loaded() -> None:
    """A run resumed from copies of the state continues bit for bit."""
    rng = np.random.default_rng(4)
    grads = rng.standard_normal((6, 50)).astype(np.float32)
    p = np.zeros(50, np.float32)
    adam = optim.Adam(p)
    for g in grads[:3]:
        adam.step(g)
    saved, q = {k: v.copy() for k, v in adam.state.items()}, p.copy()
    other = optim.Adam(q)
    other.load(saved)
    for g in grads[3:]:
        adam.step(g)
        other.step(g)
    np.testing.assert_array_equal(p, q)
    with pytest.raises(KeyError, match="wanted"):
        other.load({"m": saved["m"]})
    with pytest.raises(ValueError, match="m has shape"):
        other.load({**saved, "m": np.zeros(3, np.float32)})


def test_schedules() -> None:
    assert [optim.constant(i, lr=2.0, warmup=4) for i in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert optim.constant(0, lr=3.0) == 3.0
    rates = [optim.cosine(i, lr=1.0, total=100, warmup=10, final=0.1) for i in range(120)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == rates[119] == pytest.approx(0.1)
    rates = [optim.linear(i, lr=1.0, total=100, warmup=10, final=0.1) for i in range(120)]
    np.testing.assert_allclose(rates, np.r_[np.arange(1, 11) / 10, np.linspace(1, 0.1, 91)[:-1], [0.1] * 20])
    with pytest.raises(ValueError, match="linear: warmup"):
        optim.linear(0, lr=1.0, total=5, warmup=5)
    with pytest.raises(ValueError, match="cosine: warmup"):
        optim.cosine(0, lr=1.0, total=5, warmup=5)


@pytest.mark.parametrize("make, error, words", [
    (lambda: optim.Adam([1.0]), TypeError, "Adam: params must be a flat array, got list"),
    (lambda: optim.Adam(np.zeros((2, 2))), ValueError, r"shape \(2, 2\)"),
    (lambda: optim.Adam(np.zeros(4)[::2]), ValueError, "contiguous"),
    (lambda: optim.Adam(np.zeros(4, np.int64)), ValueError, "int64"),
    (lambda: optim.Adam(np.zeros(4), beta1=1.0), ValueError, "Adam: beta1 must lie in"),
    (lambda: optim.AdamW(np.zeros(4), weight_decay=-1.0), ValueError, "AdamW: weight_decay must lie in"),
    (lambda: optim.Lion(np.zeros(4), beta2=1.0), ValueError, "Lion: beta2 must lie in"),
    (lambda: optim.SGD(np.zeros(4), momentum=1.0), ValueError, "SGD: momentum must lie in"),
    (lambda: optim.SGD(np.zeros(4), nesterov=True), ValueError, "SGD: nesterov needs"),
    (lambda: ops.sgd_(np.zeros(4), None, np.zeros(4), np.ones(1), momentum=0.9), ValueError, "sgd_: momentum = 0.9"),
    (lambda: ops.assign_(np.zeros(4), np.zeros(5)), ValueError, "assign_"),
    (lambda: optim.EMA(np.zeros(4), decay=1.5), ValueError, "EMA: decay must lie in"),
    (lambda: optim.clip(np.zeros(4), 0.0), ValueError, "clip: limit must be positive"),
    (lambda: optim.Adam(np.zeros(4)).step(np.zeros(5)), ValueError, "adam_"),
    (lambda: optim.Adam(np.zeros(4)).step(np.zeros(4, np.float32)), TypeError, "adam_: g is float32 but p is float64"),
    (lambda: ops.clip_norm_(np.zeros(8)[::2]), ValueError, "contiguous"),
])
def test_errors(make, error, words) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("effect", [
    lambda x: ops.clip_norm_(x)[1],
    lambda x: ops.ema_(x, np.ones(3), np.ones(1)),
    lambda x: ops.adam_(x, x, x, x, np.zeros(1, np.int64), np.ones(1)),
    lambda x: ops.lion_(x, x, x, np.ones(1)),
    lambda x: ops.sgd_(x, None, x, np.ones(1)),
    lambda x: ops.assign_(x, x),
], ids=["clip_norm_", "ema_", "adam_", "lion_", "sgd_", "assign_"])
def test_effects_have_no_derivative(effect) -> None:
    with pytest.raises(TypeError, match="_ changes its arguments in place and cannot be differentiated"):
        vjp(effect, np.ones(3))
