"""The base of the estimators on a model whose answers are known: the mean of every class.

Seen to fail: with the checkpoint's losses of the epoch under way dropped, with zero-weight rows left in the scaling,
with the best weights not restored after early stopping, with an earlier fit forgotten before a bad file is refused.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import generant
from generant import io, nn, ops
from generant.models import DivergedError, NotFittedError
from generant.models.density import DensityModel
from generant.models.generative import NOISE, GenerativeModel
from generant.models.scaling import Scaling
from generant.random import Stream

pytestmark = pytest.mark.once

KILLED_AT = 40  # the 200 rows make 6 steps of 32 an epoch: in the middle of the seventh


class Means(nn.Module):
    """mu (classes, d), and a place that remembers a step."""

    def __init__(self, classes, d, stream):
        self.mu = nn.init.normal((classes, d), stream)
        self.seen, self.half = nn.Buffer(np.zeros(1, np.float32)), nn.Buffer(np.array([0.5]))

    def __call__(self, codes):
        return ops.gather(self.mu, codes)


class Toy(DensityModel):
    """N(mu_class, 1) of scaled rows; a step sees its data through noise."""

    def __init__(
        self, *, noise=0.1, epochs=10, batch_size=32, learning_rate=0.1, ema_decay=0.9, early_stopping=False,
        validation_fraction=0.1, n_iter_no_change=3, tol=0.0, warm_start=False, checkpoint=None, checkpoint_every=7,
        random_state=None, callbacks=(), verbose=0,
    ):  # fmt: skip
        for name, value in list(locals().items()):
            if name != "self":
                setattr(self, name, value)

    def _networks(self, stream):
        return {"means": Means(max(1, self._n_classes), self.scaling_.size, stream)}

    def _inputs(self, x, codes, weight, step):
        return x, np.zeros(len(x), np.int64) if codes is None else codes, weight, self._stream(NOISE).at(step)

    def _step(self, state, x, codes, weight, key):
        learner = self._training.learners["means"]
        net = learner.network(state["means"])
        x = ops.add(x, ops.affine(ops.normal(key, shape=tuple(x.shape)), scale=self.noise))
        loss = lambda net: ops.mean(ops.mul(ops.sum(ops.square(ops.sub(net(codes), x)), axis=1), weight))
        value, gradients = nn.value_and_grad(loss)(net)
        ops.ema_(net.seen.value, ops.reshape(value, shape=(1,)), net.half.value)
        return {"loss": value, "norm": learner.update(state["means"], gradients)[1]}

    def _mu(self, n, codes):
        return np.asarray(self.networks_["means"](np.zeros(n, np.int64) if codes is None else codes))

    def _validate(self, x, codes, weight):
        return float(np.mean(weight * np.sum((x - self._mu(len(x), codes)) ** 2, axis=1)))

    def _sample(self, codes, keys):
        z = ops.normals(keys, np.zeros(1, np.uint64), np.ones(1), shape=(self.scaling_.size,))
        return self._mu(len(keys), codes) + z

    def _score(self, x, codes):
        away = (x.astype(np.float64) - self._mu(len(x), codes)) ** 2
        return -0.5 * away.sum(1) - 0.5 * self.scaling_.size * math.log(2 * math.pi)


def rows(n=200, d=3):
    y = np.arange(n) % 3
    return np.random.default_rng(0).standard_normal((n, d)) * 3 + 4.0 * y[:, None], y


def history(model):
    return [{k: v for k, v in entry.items() if k != "images_per_second"} for entry in model.history_]


def same(a, b):
    """Whether two models have the same bits."""
    ours, theirs = (nn.state(m.networks_["means"]) for m in (a, b))
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


def at_step(number, act):
    """A Toy that does something before a step."""

    class Interrupted(Toy):
        def _inputs(self, x, codes, weight, step):
            if step == number:
                act(x, weight)
            return super()._inputs(x, codes, weight, step)

    Interrupted.__name__ = "Toy"
    return Interrupted


def raises(error):
    def act(*_):
        raise error

    return act


# ---- what is learned ----


def test_learns_what_it_should_and_scores_in_nats_of_the_data():
    X, y = rows(3000)
    model = Toy(epochs=40, ema_decay=0.99, random_state=0).fit(X, y)
    s = model.scaling_
    means = np.stack([X[y == c].mean(0) for c in range(3)])
    np.testing.assert_allclose(model._mu(3, np.arange(3)) * s.scale + s.offset, means, atol=0.2)
    exact = -0.5 * (((X[:, None] - means) / s.scale) ** 2).sum(2) - 1.5 * math.log(2 * math.pi) - 3 * math.log(s.scale)
    np.testing.assert_allclose(model.class_scores(X), exact, atol=0.5)
    np.testing.assert_array_equal(model.score_samples(X, y), model.class_scores(X)[np.arange(len(X)), y])
    np.testing.assert_allclose(
        model.score_samples(X), np.log((np.exp(model.class_scores(X)) * model.priors_).sum(1)), rtol=1e-12
    )
    assert model.score(X) == np.mean(model.score_samples(X))
    np.testing.assert_allclose(model.sample(4000, 2, random_state=0).mean(0), means[2], atol=0.3)


def test_a_density_changes_with_the_unit_of_the_data():
    X, y = rows()
    a, b = (Toy(epochs=3, random_state=0).fit(k * X, y).score(k * X, y) for k in (1.0, 10.0))
    assert a - b == pytest.approx(3 * math.log(10), abs=1e-4)


def test_samples_of_a_seed_do_not_depend_on_how_many():
    X, y = rows()
    model = Toy(random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.sample(7, random_state=3), model.sample(50, random_state=3)[:7])
    assert (model.sample(5) != model.sample(5)).any()
    drawn = model.sample(3, [2, 0, 1], random_state=1)
    assert drawn.shape == (3, 3) and drawn.dtype == X.dtype
    with pytest.raises(ValueError, match=r"Toy\.sample: y\[1\] is 5, which fit has not seen; the classes are 0, 1, 2"):
        model.sample(2, [0, 5])
    with pytest.raises(ValueError, match="fitted without labels"):
        Toy(epochs=1).fit(X).sample(1, 0)


def test_rows_of_weight_zero_have_no_influence():
    X, y = rows()
    weight = np.where(np.arange(len(X)) < 150, 1.0, 0.0)
    spoilt = X.copy()
    spoilt[150:] = 1e6
    a = Toy(random_state=0).fit(X, y, weight)
    assert same(a, Toy(random_state=0).fit(spoilt, y, weight))
    assert same(a, Toy(random_state=0).fit(X[:150], y[:150]))
    heavy = Toy(epochs=60, random_state=0).fit(X, sample_weight=np.where(y == 2, 1.0, 1e-6))
    np.testing.assert_allclose(heavy.sample(2000, random_state=0).mean(0), X[y == 2].mean(0), atol=0.8)


@pytest.mark.parametrize("weight", [np.ones(3), -np.ones(200), np.zeros(200), np.full(200, np.nan)])
def test_weights_that_make_no_sense_are_refused(weight):
    with pytest.raises(ValueError, match=r"Toy\.fit: sample_weight must"):
        Toy().fit(rows()[0], sample_weight=weight)


# ---- interruptions ----


def victim(folder, *, resume=None):
    """What a process of its own runs: fit with a checkpoint; killed in the middle of an epoch unless it resumes."""
    kill = at_step(KILLED_AT, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    model = (Toy if resume else kill)(random_state=1, early_stopping=True, checkpoint=Path(folder) / "run")
    return model.fit(*rows(), resume=resume)


def test_after_kill_9_a_resumed_run_has_the_bits_of_one_that_was_not_killed(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"from test_generative import victim\nvictim({str(tmp_path)!r})"
    env = {**os.environ, "PYTHONPATH": str(Path(generant.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run"], "a half-written file is left"
    resumed = victim(tmp_path, resume=tmp_path / "run")
    whole = Toy(random_state=1, early_stopping=True).fit(*rows())
    assert same(whole, resumed) and history(whole) == history(resumed) and whole.n_iter_ == resumed.n_iter_
    np.testing.assert_array_equal(whole.sample(9, random_state=0), resumed.sample(9, random_state=0))


@pytest.mark.parametrize("step", [1, 6, 7, 33])
def test_ctrl_c_leaves_a_model_and_a_way_on(tmp_path, step):
    X, y = rows()
    path = tmp_path / "run"
    model = at_step(step, raises(KeyboardInterrupt()))(random_state=1, checkpoint=path, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert model.n_iter_ == step and np.isfinite(model.sample(4)).all()
    model.save(tmp_path / "model")
    resumed = Toy(random_state=1, checkpoint=path).fit(X, y, resume=path)
    assert same(resumed, Toy(random_state=1).fit(X, y)) and resumed.n_iter_ == 60


def test_divergence_keeps_the_last_good_weights():
    X, y = rows()

    def spoil(x, weight):
        weight[0] = np.inf

    broken, stopped = at_step(20, spoil)(random_state=1), at_step(20, raises(KeyboardInterrupt()))(random_state=1)
    with pytest.raises(DivergedError, match=r"Toy\.fit: a loss is no longer finite at step 21 \(epoch 4\): loss inf"):
        broken.fit(X, y)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(X, y)
    np.testing.assert_array_equal(broken.networks_["means"].mu, stopped.networks_["means"].mu)
    assert broken.n_iter_ == 20 and np.isfinite(broken.score(X, y))


def test_a_checkpoint_of_something_else_is_refused_and_nothing_is_lost(tmp_path):
    X, y = rows()
    path = tmp_path / "run"
    Toy(random_state=1, checkpoint=path).fit(X, y)
    fitted = Toy(random_state=1).fit(X, y)
    before = pickle.dumps(fitted)

    def refused(message, model=fitted, X=X, y=y, resume=path, error=ValueError, weight=None):
        with pytest.raises(error, match=message):
            model.fit(X, y, weight, resume=resume)

    refused("was written for other data", X=X + 1)
    refused("was written for other data", X=X * 2)
    refused("was written for other data", y=y[::-1])
    refused("was written for other data", y=y + 1)
    refused("was written for other data", weight=np.where(y == 0, 2.0, 1.0))
    refused(r"was written with epochs = 10, this model has 11", Toy(random_state=1, epochs=11))
    refused(r"was written with noise = 0.1, this model has 0.2", Toy(random_state=1, noise=0.2))
    refused("was written with another random_state", Toy(random_state=2))
    refused("is a checkpoint of a Toy, wanted a Other", type("Other", (Toy,), {})(random_state=1))
    refused("does not exist", resume=tmp_path / "nowhere", error=FileNotFoundError)
    data = path.read_bytes()
    for name, content in {"short": data[: len(data) // 2], "empty": b"", "text": b"not a checkpoint at all"}.items():
        (tmp_path / name).write_bytes(content)
        refused("is not a readable safetensors file", resume=tmp_path / name, error=io.FormatError)
    io.save_arrays(tmp_path / "foreign", {"a": np.ones(3)})
    refused("is not a checkpoint of generant", resume=tmp_path / "foreign", error=io.FormatError)
    refused("cannot be read", resume=tmp_path, error=io.FormatError)
    assert pickle.dumps(fitted) == before
    assert path.read_bytes() == data
    unfitted = Toy(random_state=1)
    refused("does not exist", unfitted, resume=tmp_path / "nowhere", error=FileNotFoundError)
    assert not hasattr(unfitted, "networks_")


def test_random_state_none_may_resume_under_the_seed_it_had(tmp_path):
    X, y = rows()
    path = tmp_path / "run"
    whole = Toy(checkpoint=path, checkpoint_every=25).fit(X, y)
    assert same(whole, Toy(checkpoint=path).fit(X, y, resume=path))


# ---- going on, stopping early ----


def test_warm_start_goes_on_and_fit_alone_begins_again():
    X, y = rows()
    model = Toy(epochs=4, warm_start=True, random_state=0).fit(X, y)
    first = [h["loss"] for h in model.history_]
    model.fit(X, y)
    assert model.n_iter_ == 48 and [h["epoch"] for h in model.history_] == list(range(1, 9))
    assert [h["loss"] for h in model.history_[:4]] == first
    model.set_params(warm_start=False).fit(X, y)
    assert model.n_iter_ == 24 and [h["loss"] for h in model.history_] == first
    with pytest.raises(ValueError, match="fitted with labels; y must be given again"):
        model.set_params(warm_start=True).fit(X)
    with pytest.raises(ValueError, match="X has 2 features, but Toy is expecting 3 features"):
        model.fit(X[:, :2], y)
    assert model.n_iter_ == 24


def test_partial_fit_is_a_pass_each():
    X, y = rows()
    model = Toy(random_state=0)
    for i in range(5):
        assert model.partial_fit(X, y).n_iter_ == 6 * (i + 1)
    assert model.history_[-1]["loss"] < model.history_[0]["loss"]
    late = Toy(random_state=0).partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2]).partial_fit(X, y)
    assert late.classes_.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"y\[2\] is 2, which fit has not seen"):
        Toy().partial_fit(X[y < 2], y[y < 2]).partial_fit(X, y)


def test_early_stopping_ends_and_keeps_the_best_epoch():
    X, y = rows()
    seen = []
    model = Toy(
        epochs=200, early_stopping=True, learning_rate=1.0, ema_decay=0.0, random_state=0,
        callbacks=[lambda m, entry: seen.append((entry["validation_loss"], m.networks_["means"].mu.copy()))],
    ).fit(X, y)  # fmt: skip
    losses = [loss for loss, _ in seen]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + model.n_iter_no_change < 200
    np.testing.assert_array_equal(model.networks_["means"].mu, seen[best][1])
    assert (seen[-1][1] != seen[best][1]).any()
    with pytest.raises(ValueError, match="early_stopping needs at least 2 rows"):
        Toy(early_stopping=True).fit(X[:1])


def test_callbacks_see_every_epoch_and_may_end_training(capsys):
    X, y = rows()
    entries = []

    def stop(model, entry):
        entries.append(entry)
        assert model.sample(1).shape == (1, 3)
        return entry["epoch"] == 3

    model = Toy(callbacks=[stop], verbose=1, random_state=0).fit(X, y)
    assert model.history_ == entries and len(entries) == 3
    assert {"epoch", "step", "loss", "norm", "images_per_second"} == set(entries[0])
    assert "fit" in capsys.readouterr().err  # the bar
    Toy(epochs=1).fit(X)
    assert capsys.readouterr().err == ""


# ---- files ----


def test_a_saved_model_is_the_model(tmp_path):
    X, y = rows()
    names = np.array(["zero", "one", "two"])[y]
    model = Toy(random_state=7, noise=0.2).fit(X, names)
    model.save(tmp_path / "a")
    loaded = Toy.load(tmp_path / "a")
    assert same(model, loaded) and loaded.get_params() == model.get_params() and history(loaded) == history(model)
    np.testing.assert_array_equal(model.sample(20, random_state=1), loaded.sample(20, random_state=1))
    np.testing.assert_array_equal(model.score_samples(X), loaded.score_samples(X))
    loaded.save(tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    copied = pickle.loads(pickle.dumps(model))
    assert same(copied, model) and copied.partial_fit(X, names).n_iter_ == model.n_iter_ + 6
    assert loaded.partial_fit(X, names).history_[-1]["epoch"] == 11


def test_damaged_models_are_refused(tmp_path):
    Toy(epochs=1, random_state=0).fit(rows()[0]).save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    good, text = weights.read_bytes(), config.read_text()

    def refused(message, error=io.FormatError):
        with pytest.raises(error, match=message):
            Toy.load(tmp_path)
        weights.write_bytes(good)
        config.write_text(text)

    weights.write_bytes(good[:-9])
    refused("model.safetensors is not a readable safetensors file")
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused("is not the file config.json was saved with")
    weights.unlink()
    refused("model.safetensors does not exist", FileNotFoundError)
    config.write_text("{")
    refused("config.json is not a JSON file")
    config.write_text("[]")
    refused("was not written by generant")
    config.write_text(text.replace('"Toy"', '"Another"'))
    refused("holds a Another model, wanted Toy")
    changed = json.loads(text)
    del changed["fitted"]["scaling"]
    config.write_text(json.dumps(changed))
    refused("does not hold a complete Toy model")
    changed = json.loads(text)
    changed["params"]["nonsense"] = 1
    config.write_text(json.dumps(changed))
    refused("does not hold a complete Toy model.*nonsense")
    assert same(Toy.load(tmp_path), Toy.load(tmp_path))
    with pytest.raises(NotFittedError, match=r"Toy\.save: the model is not fitted yet"):
        Toy().save(tmp_path)


# ---- data ----


def test_bytes_come_back_as_bytes():
    X = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), np.uint8)
    for scaling in (Scaling.standard(X), Scaling.to_range(X, -1, 1), Scaling.none(X)):
        x = scaling.forward("f", X)
        assert x.shape == (50, 60) and x.dtype == np.float32
        back = scaling.back(x)
        assert back.dtype == np.uint8
        np.testing.assert_array_equal(back, X)
        assert (scaling.back(x + 1000) == 255).all() and (scaling.back(x - 1000) == 0).all()
        config, arrays = json.loads(json.dumps(scaling.config())), scaling.arrays()
        np.testing.assert_array_equal(Scaling.load(arrays, config).forward("f", X), x)
    drawn = Toy(epochs=1).fit(X).sample(3)
    assert drawn.dtype == np.uint8 and drawn.shape == (3, 4, 5, 3)


def test_scaling_is_what_it_says():
    X, _ = rows()
    x = Scaling.standard(X, rms=0.5).forward("f", X)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
    assert np.sqrt(np.mean(x.astype(np.float64) ** 2)) == pytest.approx(0.5, rel=1e-6)
    x = Scaling.to_range(X, -1, 1).forward("f", X)
    assert (x.min(), x.max()) == (-1, 1)
    constant = Scaling.standard(np.full((5, 2), 3.0))
    np.testing.assert_array_equal(constant.back(constant.forward("f", np.full((5, 2), 3.0))), 3.0)
    beyond = Scaling.standard(X)
    assert (beyond.back(np.full((1, 3), 99.0), clip=True) == X.max(0)).all()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer, got float 2.5"),
        ({"learning_rate": -1}, ValueError, r"learning_rate must lie in \[0, inf\], got -1"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a number, got str 'fast'"),
        ({"ema_decay": 1.5}, ValueError, r"ema_decay must lie in \[0, 1\], got 1.5"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
        ({"early_stopping": True, "validation_fraction": 0}, ValueError, "validation_fraction must lie between"),
    ],
)
def test_bad_parameters_are_refused_by_fit_not_by_the_constructor(params, error, message):
    with pytest.raises(error, match=f"Toy: {message}"):
        Toy(**params).fit(rows()[0])


def test_what_a_model_does_not_define_is_said():
    class Nothing(GenerativeModel):
        __init__ = Toy.__init__

    with pytest.raises(TypeError, match="Nothing does not say what its networks are"):
        Nothing().fit(rows()[0])
    for method, args in (("sample", ()), ("score", (rows()[0],)), ("class_scores", (rows()[0],))):
        with pytest.raises(NotFittedError, match="is not fitted yet; call fit first"):
            getattr(Toy(), method)(*args)
    with pytest.raises(ValueError, match=r"Toy\.class_scores: the model was fitted without labels"):
        Toy(epochs=1).fit(rows()[0]).class_scores(rows()[0])


def test_the_same_seed_is_the_same_model_on_any_number_of_threads(threads):
    X, y = rows()
    found = []
    for n in (1, 2):
        threads(n)
        found.append(Toy(random_state=np.int64(5)).fit(X, y))
    assert same(*found) and history(found[0]) == history(found[1])
    assert Stream(5, 0).at(0).tolist() == Stream(5, 0).at(0).tolist()
