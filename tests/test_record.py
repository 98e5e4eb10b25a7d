"""Recorded steps: the same bits as the step itself, in a fraction of the memory, and no silent stale number.

The step of the first tests is a GAN's: two networks in turns, gradient penalties, clipping, Adam, averages, noise from
a key.

Seen to fail: with gradients placed while their buffer is still read, with results over inputs that are read later or by
rows, without copies of state that changes, without the check of indices, with one arena for two threads, with memory
freed a call too early, with effects dropped as dead, with undeclared arrays accepted.
"""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from generant import grad, nn, ops, optim, recording
from generant.models.checkpoint import flatten
from generant.random import Stream, key
from generant.recording.memory import assign


class Net(nn.Module):
    def __init__(self, sizes, stream):
        self.layers = [nn.Linear(a, b, stream) for a, b in itertools.pairwise(sizes)]
        self.norm = nn.LayerNorm(sizes[1])
        self.phases = nn.Buffer(np.linspace(0.5, 1.5, sizes[-1], dtype=np.float32))

    def __call__(self, x):
        x = ops.tanh(self.norm(self.layers[0](x)))
        for layer in self.layers[1:-1]:
            x = ops.silu(layer(x))
        return self.layers[-1](x) * self.phases.value


def penalty(net, x):
    slope = grad(lambda x: ops.sum(net(x)))(x)
    return ops.mean(ops.sum(ops.square(slope), axis=1))


class Gan:
    """Two learners and the step that trains them in turns."""

    def __init__(self):
        adam = lambda p: optim.Adam(p, lr=1e-2, beta1=0.5)
        average = lambda p: optim.EMA(p, decay=0.9)
        self.d = nn.Learner(Net((2, 16, 16, 1), Stream(1)), adam, clip=1.0)
        self.g = nn.Learner(Net((4, 16, 16, 2), Stream(2)), adam, clip=1.0, ema=average)
        self.state = {"d": self.d.state, "g": self.g.state}

    def step(self, state, real, keys):
        z = ops.normal(keys, shape=(real.shape[0], 4))
        disc, gen = self.d.network(state["d"]), self.g.network(state["g"])
        fake = gen(z)

        def d_loss(disc):
            paired = ops.mean(ops.softplus(disc(fake) - disc(real)))
            return paired + 0.5 * penalty(disc, real) + 0.5 * penalty(disc, fake)

        found, slopes = nn.value_and_grad(d_loss)(disc)
        ok, norm = self.d.update(state["d"], slopes)
        disc = self.d.network(state["d"])  # with the weights of now
        other, slopes = nn.value_and_grad(lambda gen: ops.mean(ops.softplus(disc(real) - disc(gen(z)))))(gen)
        self.g.update(state["g"], slopes)
        return {"loss": found, "generator": other, "norm": norm, "ok": ok}


def batch(i):
    rng = np.random.default_rng(100 + i)
    return rng.standard_normal((17 if i % 5 == 4 else 32, 2)).astype(np.float32), key(5, i)


def train(gan, call, steps):
    """The losses of some steps, the learning rate changing at each."""
    found = []
    for i in steps:
        for learner in (gan.d, gan.g):
            learner.prepare(0.005 * (1 + np.cos(i / 13)))
        found.append({name: a.tobytes() for name, a in call(*batch(i)).items()})
    return found


def bits(tree):
    return {name: a.tobytes() for name, a in flatten(tree).items()}


def test_forty_alternating_steps_over_two_shapes_have_the_bits_of_eager_ones():
    eager, planned = Gan(), Gan()
    recorded = recording.record(planned.step, planned.state)
    assert train(eager, lambda *a: eager.step(eager.state, *a), range(40)) == train(planned, recorded, range(40))
    assert bits(eager.state) == bits(planned.state)
    assert len(recorded.plans) == 2
    for plan, _ in recorded.plans.values():
        assert plan.arena < plan.eager, "planned memory is less than what an eager step holds at once"
        assert plan.placed >= 16
    assert "planned memory" in repr(recorded)
    resumed = Gan()
    first = recording.record(resumed.step, resumed.state)
    train(resumed, first, range(23))
    train(resumed, recording.record(resumed.step, resumed.state), range(23, 40))  # new plans, halfway
    assert bits(eager.state) == bits(resumed.state)


def test_the_same_bits_on_any_number_of_threads(native, threads):
    found = []
    for n in (1, 2, 3):
        threads(n)
        gan = Gan()
        train(gan, recording.record(gan.step, gan.state), range(6))
        found.append(bits(gan.state))
    assert found[0] == found[1] == found[2]


def test_a_batch_that_is_not_finite_changes_no_weights():
    gan = Gan()
    recorded = recording.record(gan.step, gan.state)
    train(gan, recorded, range(3))
    before = gan.state["d"]["params"].tobytes(), gan.state["g"]["ema"]["average"].tobytes()
    real, k = batch(3)
    real[0, 0] = np.nan
    with np.errstate(all="ignore"):
        found = recorded(real, k)
    assert np.isnan(found["loss"]) and found["ok"][0] == 0
    assert (gan.state["d"]["params"].tobytes(), gan.state["g"]["ema"]["average"].tobytes()) == before


def linear(state, x):
    return ops.matmul(x, state["w"])


def state_of(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_an_array_that_was_not_declared_is_refused():
    w, other = state_of(3, 3), state_of(4, 3)
    recorded = recording.record(lambda s, x: ops.add(ops.matmul(x, s["w"]), other), {"w": w})
    with pytest.raises(ValueError, match=r"record: add reads an array of shape \(4, 3\) \(its argument 1\)"):
        recorded(state_of(4, 3, seed=1))
    frozen = recording.record(lambda s, x: ops.add(ops.matmul(x, s["w"]), other), {"w": w}, frozen=[other])
    for seed in (1, 2, 3):
        x = state_of(4, 3, seed=seed)
        np.testing.assert_array_equal(frozen(x), ops.add(ops.matmul(x, w), other))


def test_what_depends_on_frozen_arrays_only_is_worked_out_once_and_they_are_read_only():
    w, e = state_of(3, 3), state_of(3, 3, seed=4)
    recorded = recording.record(lambda s, x: x @ (ops.exp(s["e"]) @ s["e"]) @ s["w"], {"w": w, "e": e}, frozen=e)
    for seed in (1, 2, 3):
        x = state_of(4, 3, seed=seed)
        wanted = ops.matmul(ops.matmul(x, ops.matmul(ops.exp(e), e)), w)
        np.testing.assert_array_equal(recorded(x), wanted)
    ((plan, _),) = recorded.plans.values()
    assert plan.calls == 2
    with pytest.raises(ValueError, match="read-only"):
        e += 1


def test_frozen_filters_are_transformed_once_with_the_same_bits(native):
    """Where conv2d runs by Winograd's algorithm, and nowhere else; not where a gradient wants the pre-activation."""
    w, small, b = state_of(3, 3, 32, 32), state_of(3, 3, 32, 4), state_of(32)

    def step(state, x):
        y = ops.conv2d_act(x, state["w"], state["b"], x, activation="silu", padding=(1, 1, 1, 1))
        y = ops.conv2d(y, state["w"], padding=(1, 1, 1, 1))
        return ops.conv2d(y, state["small"], padding=(1, 1, 1, 1))

    state = {"w": w, "small": small, "b": b}
    recorded = recording.record(step, state, frozen=[w, small, b], check=2)
    for seed in range(3):
        x = state_of(2, 8, 8, 32, seed=seed)
        np.testing.assert_array_equal(recorded(x), step(state, x))
    ((plan, _),) = recorded.plans.values()
    assert [call.op.name for call in plan.layout.calls] == ["winograd_conv2d", "winograd_conv2d", "conv2d"]
    slope = recording.record(lambda s, x: grad(lambda x: ops.sum(step(s, x)))(x), state, frozen=[w, small, b], check=2)
    for seed in range(3):
        x = state_of(2, 8, 8, 32, seed=seed)
        np.testing.assert_array_equal(slope(x), grad(lambda x: ops.sum(step(state, x)))(x))


def test_a_number_that_python_worked_out_is_found_by_the_comparison():
    count = iter(range(100))
    recorded = recording.record(lambda s, x: ops.affine(x, scale=float(next(count))) @ s["w"], {"w": state_of(3, 3)})
    recorded(state_of(2, 3))
    with pytest.raises(RuntimeError, match="the replay differs from the step in result 0"):
        recorded(state_of(2, 3))


def test_state_is_read_where_it_is_and_inputs_where_they_come():
    w = state_of(3, 3)
    recorded = recording.record(linear, {"w": w}, check=0)
    for seed in range(4):
        x = state_of(5, 3, seed=seed)
        found = recorded(x)
        np.testing.assert_array_equal(found, ops.matmul(x, w))
        w *= 2
        np.testing.assert_array_equal(found, ops.matmul(x, w / 2))  # a result of its own


def test_results_may_be_views_inputs_state_constants_and_one_array_twice():
    def step(state, x):
        y = ops.exp(x)
        return {"y": y, "again": y, "flat": ops.reshape(y, shape=(6,)), "x": x, "w": state["w"],
                "ones": ops.full_like(x, value=1.0), "nested": (ops.stop_gradient(x), None, 3)}

    w = state_of(2)
    recorded = recording.record(step, {"w": w})
    for seed in range(3):
        x = state_of(2, 3, seed=seed)
        found = recorded(x)
        for name in ("y", "again"):
            np.testing.assert_array_equal(found[name], ops.exp(x))
        np.testing.assert_array_equal(found["flat"], ops.exp(x).ravel())
        np.testing.assert_array_equal(found["x"], x)
        np.testing.assert_array_equal(found["ones"], np.ones_like(x))
        assert found["nested"][1:] == (None, 3)
        found["w"][:] = found["x"][:] = 7  # copies
        assert not (x == 7).any() and not (w == 7).any()


def test_writing_over_an_input_never_changes_one_that_is_still_read():
    def step(state, x):
        long = ops.exp(ops.part(state["long"], shape=(300,)))
        row = ops.part(long, shape=(150,))  # half of what the result might be written over
        long = ops.sub(ops.reshape(long, shape=(2, 150)), row)
        a = ops.add(ops.exp(x), ops.sum(long))
        b = ops.square(a)          # a is still read below
        c = ops.add(b, ops.reshape(ops.reshape(b, shape=(6,)), shape=(2, 3)))
        d = ops.mul(c, a)
        e = ops.add(d, ops.slice_axis(d, start=0, stop=1, axis=0))  # a row of what is written over
        return ops.sub(e, c) * state["w"]

    state = {"w": state_of(3), "long": state_of(300)}
    recorded = recording.record(step, state, check=0)
    for seed in range(3):
        x = state_of(2, 3, seed=seed)
        np.testing.assert_array_equal(recorded(x), step(state, x))


def test_a_copy_is_taken_before_its_source_changes():
    def step(state, x):
        before = ops.stop_gradient(state["w"])
        ops.assign_(state["w"], x)
        return ops.sub(state["w"], before)

    w = state_of(3)
    recorded = recording.record(step, {"w": w}, check=1)
    last = w.copy()
    for seed in range(1, 5):
        x = state_of(3, seed=seed)
        np.testing.assert_array_equal(recorded(x), x - last)
        last = x


def test_indices_are_checked_at_every_replay():
    recorded = recording.record(lambda s, i: ops.gather(s["t"], i), {"t": state_of(5, 2)}, check=0)
    recorded(np.array([0, 4]))
    recorded(np.array([1, 3]))
    with pytest.raises(ValueError, match="gather"):
        recorded(np.array([1, 5]))


def test_tied_weights_and_gradients_that_are_one_array_are_packed_right():
    class Tied(nn.Module):
        def __init__(self, stream):
            self.a = nn.Linear(3, 3, stream)
            self.b, self.c = np.zeros(3, np.float32), np.ones(3, np.float32)
            self.again = self.a

        def __call__(self, x):
            return ops.tanh(self.again(self.a(x)) + self.b + self.c)

    runs = []
    for planned in (False, True):
        learner = nn.Learner(Tied(Stream(0)), lambda p: optim.Adam(p, lr=0.1), clip=0.5)

        def step(state, x, learner=learner):
            found, slopes = nn.value_and_grad(lambda net: ops.sum(net(x)))(learner.network(state))
            learner.update(state, slopes)
            return found

        call = recording.record(step, learner.state) if planned else lambda x, s=step, lr=learner: s(lr.state, x)
        runs.append([call(state_of(4, 3, seed=i)).tobytes() for i in range(5)])
        runs[-1].append(bits(learner.state))
    assert runs[0] == runs[1]


def test_a_gradient_is_written_in_place_only_where_nobody_can_tell():
    """Read again after packing, packed while the buffer still holds what is read, or packed twice: copied then."""

    def step(state, x):
        flat = state["g"]
        a = ops.exp(x)
        last = ops.affine(ops.part(flat, shape=(3,), offset=0), scale=0.5)  # what the step before left there
        b = ops.tanh(x)
        e = ops.silu(x)
        ops.pack_(flat, a, b, e, e, offsets=(0, 3, 6, 9))
        total = ops.add(last, b)
        c = ops.square(total)
        d = ops.sub(c, ops.part(flat, shape=(3,), offset=0))
        ops.pack_(flat, d, offsets=(0,))
        return c

    flats = [np.ones(12, np.float32), np.ones(12, np.float32)]
    recorded = recording.record(step, {"g": flats[0]}, check=0)
    for seed in range(4):
        x = state_of(3, seed=seed)
        assert recorded(x).tobytes() == step({"g": flats[1]}, x).tobytes()
        assert flats[0].tobytes() == flats[1].tobytes()


def test_what_cannot_be_recorded_is_refused():
    w = state_of(3, 3)
    with pytest.raises(ValueError, match="two arrays of the state overlap"):
        recording.record(linear, {"w": w, "row": w[1]})
    with pytest.raises(ValueError, match="contiguous, writeable"):
        recording.record(linear, {"w": w.T})
    with pytest.raises(ValueError, match="plans must be at least 1 and check at least 0, got 0 and 1"):
        recording.record(linear, {"w": w}, plans=0)
    with pytest.raises(TypeError, match="step must be a function"):
        recording.record(None, {"w": w})
    with pytest.raises(TypeError, match="a float input would be part of the plan"):
        recording.record(linear, {"w": w})(0.5)
    with pytest.raises(ValueError, match=r"ema_ changes an input or a frozen array"):
        recording.record(lambda s, x, d: ops.ema_(x, s["w"], d), {"w": state_of(4)})(state_of(4), np.array([0.5]))
    with pytest.raises(ValueError, match="an array that its ops did not make"):
        recording.record(lambda s, x: np.ones(3), {"w": w})(state_of(2, 3))


def test_few_plans_are_kept_and_words_and_whole_numbers_choose_among_them():
    def step(state, x, name, k):
        return ops.affine(getattr(ops, name)(ops.matmul(x, state["w"])), scale=float(k))

    recorded = recording.record(step, {"w": state_of(3, 3)}, plans=2)
    x = state_of(2, 3)
    for name, k in (("exp", 2), ("tanh", 2), ("exp", 3), ("exp", 2)):
        np.testing.assert_array_equal(recorded(x, name, k), step(recorded.state, x, name, k))
    assert len(recorded.plans) == 2


def test_a_recorded_function_of_traced_arrays_is_the_function():
    recorded = recording.record(linear, {"w": state_of(3, 3)})
    x = state_of(2, 3)
    recorded(x)
    np.testing.assert_array_equal(
        grad(lambda x: ops.sum(recorded(x)))(x), grad(lambda x: ops.sum(linear(recorded.state, x)))(x)
    )


def test_two_threads_may_run_one_plan():
    recorded = recording.record(lambda s, x: ops.exp(ops.tanh(x @ s["w"]) @ s["w"]), {"w": state_of(64, 64)}, check=0)
    xs = [state_of(200, 64, seed=i) for i in range(2)]
    wanted = [recorded(x) for x in xs]
    wrong = []

    def work(i):
        for _ in range(50):
            if (recorded(xs[i]) != wanted[i]).any():
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_memory_that_is_needed_at_the_same_time_never_overlaps():
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(1, 60))
        first = rng.integers(0, 40, n)
        spans = {i: (int(a), int(a + rng.integers(0, 12)), int(rng.integers(0, 5000))) for i, a in enumerate(first)}
        offsets, top = assign(spans)
        for i, (a, b, size) in spans.items():
            assert offsets[i] % 64 == 0 and offsets[i] + size <= top
            for j, (c, d, other) in spans.items():
                if i < j and a <= d and c <= b:
                    assert offsets[i] + size <= offsets[j] or offsets[j] + other <= offsets[i]
    together = {i: (i, i + 1, 1000) for i in range(50)}
    assert assign(together)[1] <= 3 * 1024
