"""Diffusion as a scikit-learn estimator: what it learns, what it refuses, and what survives an interruption.

Seen to fail: with the average not copied into the network, with the gradient check after the update, with the last good
weights dropped on KeyboardInterrupt.
"""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

import generant
from generant import diffusion, io, nn
from generant.data import batches, digits, stratified_split
from generant.models import Diffusion, DivergedError, NotFittedError
from generant.random import Stream, permutation, seed_from

SMALL = {"width": 32, "blocks": 1, "epochs": 4, "batch_size": 32, "n_steps": 6, "random_state": 0}


def blobs(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussian classes around (3, -1, 0) and (-3, 1, 10), of deviations 1 and 0.5."""
    y = np.arange(n) % 2
    z = np.random.default_rng(0).standard_normal((n, 3))
    return np.where(y[:, None] == 0, [3.0, -1.0, 0.0] + z, [-3.0, 1.0, 10.0] + 0.5 * z), y


def weights(model: Diffusion) -> dict[str, np.ndarray]:
    return nn.state(model.network_)


def test_learns_two_classes():
    X, y = blobs(1200)
    model = Diffusion(width=32, blocks=1, epochs=120, batch_size=200, learning_rate=5e-3, random_state=0).fit(X, y)
    for label in (0, 1):
        real, fake = X[y == label], model.sample(1000, label, random_state=1)
        np.testing.assert_allclose(fake.mean(0), real.mean(0), atol=0.25)
        np.testing.assert_allclose(fake.std(0), real.std(0), rtol=0.25)
    labels = model.sample(1000, random_state=2)[:, 2] > 5  # drawn as often as in training
    assert labels.mean() == pytest.approx(0.5, abs=0.06)
    losses = [h["loss"] for h in model.history_]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:5])


def test_the_averaged_weights_are_the_model():
    X, y = blobs()
    last, averaged = (Diffusion(**{**SMALL, "ema_decay": decay}).fit(X, y) for decay in (0.0, 0.9))
    assert all((weights(last)[name] != weights(averaged)[name]).any() for name in ("enter.weight", "leave.weight"))


def test_same_seed_same_bits_on_any_number_of_threads(tmp_path):
    X, y = blobs()
    threads, found = generant.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            generant.set_num_threads(n)
            model = Diffusion(**{**SMALL, "width": 80}).fit(X, y)
            found.append((weights(model), model.sample(50, random_state=3)))
            model.save(tmp_path / str(n))
    finally:
        generant.set_num_threads(threads)
    for state, samples in found[1:]:
        np.testing.assert_array_equal(samples, found[0][1])
        for name, array in state.items():
            np.testing.assert_array_equal(array, found[0][0][name])
    for name in (io.ARRAYS, io.CONFIG):  # no clock, no machine in the files
        assert len({(tmp_path / str(n) / name).read_bytes() for n in (1, 2, 3)}) == 1
    other = Diffusion(**{**SMALL, "width": 80, "random_state": 1}).fit(X, y)
    assert (other.sample(50, random_state=3) != found[0][1]).any()


def test_a_sample_does_not_depend_on_those_beside_it(monkeypatch):
    X, y = blobs()
    model = Diffusion(**SMALL).fit(X, y)
    many = model.sample(20, y[:20], random_state=3)
    exact = generant.show_config()["backend"] != "definition"  # NumPy's products depend on the batch

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-4)

    same(model.sample(7, y[:7], random_state=3), many[:7])
    monkeypatch.setattr("generant.models.diffusion.CHUNK", 6)
    same(model.sample(20, y[:20], random_state=3), many)


def test_numpy_random_state_is_neither_read_nor_moved():
    X, y = blobs()
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    a = Diffusion(**SMALL).fit(X, y).sample(3, random_state=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(Diffusion(**SMALL).fit(X, y).sample(3, random_state=1), a)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", "float32"), ("float64", "float64"), ("uint8", "uint8")])
def test_shape_and_dtype_come_back(dtype, expected):
    X = np.random.default_rng(0).integers(0, 255, (40, 4, 5)).astype(dtype)
    model = Diffusion(**SMALL).fit(X)
    samples = model.sample(3)
    assert samples.shape == (3, 4, 5) and samples.dtype == expected
    assert model.n_features_in_ == 20 and model.classes_ is None and model.n_iter_ == 4
    assert (samples >= X.min(0)).all() and (samples <= X.max(0)).all()
    assert model.sample().shape == (1, 4, 5)


@pytest.mark.parametrize("sampler", list(diffusion.SAMPLERS))
@pytest.mark.parametrize("clip", [True, False])
def test_every_sampler_serves(sampler, clip):
    X, y = blobs()
    model = Diffusion(**{**SMALL, "sampler": sampler, "clip": clip}).fit(X, y)
    assert np.isfinite(model.sample(5, random_state=0)).all()


def test_labels_may_be_words_and_data_may_be_constant_or_short():
    model = Diffusion(**SMALL).fit(np.full((3, 2), 7.0), ["cat", "dog", "cat"])
    assert model.classes_.tolist() == ["cat", "dog"]
    np.testing.assert_array_equal(model.sample(2, ["dog", "cat"]), 7.0)
    with pytest.raises(ValueError, match=r"y\[1\] is 'cow', which fit has not seen; the classes are cat, dog"):
        model.sample(2, ["dog", "cow"])


@pytest.mark.parametrize(
    ("X", "y", "error", "message"),
    [
        (np.zeros(5), None, ValueError, r"n d or n h w, got shape \(5,\)"),
        (np.zeros((0, 3)), None, ValueError, r"X is empty, shape \(0, 3\)"),
        (np.zeros((3, 0)), None, ValueError, r"X is empty, shape \(3, 0\)"),
        (np.array([["a", "b"]]), None, TypeError, "real numbers, got dtype <U1"),
        (np.array([[1, "a"]], object), None, ValueError, "array of numbers: could not convert"),
        (np.array([[1, {}]], object), None, TypeError, "real numbers: float"),
        (np.array([[1, None]], object), None, ValueError, "NaN or infinite"),
        ([[1, 2], [3]], None, ValueError, "X must be a rectangular array"),
        (np.zeros((2, 2), complex), None, ValueError, "real numbers.*got dtype complex128"),
        (np.zeros((3, 2)), [0, 1], ValueError, r"one label per sample, \(3,\), got shape \(2,\)"),
        (np.zeros((3, 2)), [[0], [1], [1]], ValueError, r"one label per sample, \(3,\), got shape \(3, 1\)"),
        (np.zeros((3, 2)), [0.5, 1, 2], ValueError, "class labels"),
        (np.zeros((3, 2)), [0, None, 1], TypeError, "class labels"),
    ],
)
def test_fit_refuses(X, y, error, message):
    with pytest.raises(error, match=r"Diffusion\.fit: .*" + message):
        Diffusion(**SMALL).fit(X, y)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_fit_names_the_count_and_first_place_of_bad_values(value):
    X = np.zeros((20, 3, 4))
    X[12, 1, 2] = X[15, 0, 0] = X[19] = value
    with pytest.raises(ValueError, match=r"X has 14 value\(s\) that are NaN or infinite, the first at X\[12, 1, 2\]"):
        Diffusion(**SMALL).fit(X)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"sampler": "rk45"}, ValueError, "sampler is 'rk45', wanted one of euler, heun, dpm2"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an integer, got float"),
        ({"width": -1}, ValueError, "width must be at least 1"),
        ({"n_steps": 0}, ValueError, "n_steps must be at least 1"),
        ({"learning_rate": float("nan")}, ValueError, "Diffusion: learning_rate must lie in"),
        ({"learning_rate": -1.0}, ValueError, "Diffusion: learning_rate must lie in"),
        ({"ema_decay": 2.0}, ValueError, "decay must lie in"),
        ({"sigma_min": -1.0}, ValueError, "0 < sigma_min"),
        ({"random_state": -1}, ValueError, "random_state must lie in"),
        ({"random_state": "x"}, TypeError, "random_state must be an integer or None"),
    ],
)
def test_bad_parameters_are_refused_before_training(params, error, message):
    model = Diffusion(**{**SMALL, **params})
    with pytest.raises(error, match=message):
        model.fit(*blobs())
    assert not hasattr(model, "network_")


def test_sample_refuses():
    with pytest.raises(NotFittedError, match=r"Diffusion\.sample: the model is not fitted yet; call fit first"):
        Diffusion().sample(3)
    with pytest.raises(NotFittedError, match=r"Diffusion\.save"):
        Diffusion().save("nowhere")
    X, y = blobs()
    model = Diffusion(**SMALL).fit(X, y)
    for n, error in ((0, ValueError), (-3, ValueError), (2.0, TypeError), ("3", TypeError), (None, TypeError)):
        with pytest.raises(error, match=r"Diffusion\.sample: n_samples must be"):
            model.sample(n)
    with pytest.raises(ValueError, match=r"y\[2\] is 9, which fit has not seen; the classes are 0, 1"):
        model.sample(3, [0, 1, 9])
    with pytest.raises(ValueError, match="one label per sample"):
        model.sample(3, [0, 1])
    with pytest.raises(ValueError, match="fitted without labels"):
        Diffusion(**SMALL).fit(X).sample(2, [0, 1])


def test_callbacks_see_history_and_can_stop():
    seen = []
    model = Diffusion(**{**SMALL, "callbacks": [lambda m, entry: seen.append(entry), lambda m, e: e["epoch"] == 2]})
    model.fit(*blobs())
    assert model.history_ == seen and len(seen) == 2
    assert seen[1]["step"] == 24 == model.n_iter_ and seen[1]["images_per_second"] > 0


def test_progress_bar_shows_loss_and_rate(capsys):
    Diffusion(**{**SMALL, "verbose": 1}).fit(*blobs())
    shown = capsys.readouterr().err
    assert "loss=" in shown and "images/s" in shown


def stop_at(epoch: int, error: BaseException | None = None):
    def callback(model, entry):
        if entry["epoch"] == epoch:
            if error is not None:
                raise error
            return True
        return False

    return [callback]


def test_interrupted_training_keeps_its_weights():
    X, y = blobs()
    stopped = Diffusion(**{**SMALL, "callbacks": stop_at(2)}).fit(X, y)
    model = Diffusion(**{**SMALL, "callbacks": stop_at(2, KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    np.testing.assert_array_equal(model.sample(5, random_state=1), stopped.sample(5, random_state=1))


def test_a_second_fit_forgets_the_first():
    X, y = blobs()
    model = Diffusion(**SMALL).fit(X, y)
    again = model.fit(X[:, :2]).sample(3, random_state=0)
    np.testing.assert_array_equal(again, Diffusion(**SMALL).fit(X[:, :2]).sample(3, random_state=0))
    assert not hasattr(model, "priors_")
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.full((3, 3), np.nan))
    assert model.sample(1).shape == (1, 2)  # refused before anything was forgotten


@pytest.mark.filterwarnings("ignore:(overflow|invalid)")  # NumPy's, where the definitions serve
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_training_with_the_last_good_weights(monkeypatch, tmp_path, bad):
    X, y = blobs()
    stopped = Diffusion(**{**SMALL, "callbacks": stop_at(2)}).fit(X, y)
    plain, calls = diffusion.Objective.prepare, []

    def prepare(self, *args):
        calls.append(1)
        found = plain(self, *args)
        return found._replace(weight=found.weight * bad) if len(calls) == 25 else found

    monkeypatch.setattr(diffusion.Objective, "prepare", prepare)
    model = Diffusion(**SMALL)
    with pytest.raises(DivergedError, match=r"at step 25 \(epoch 3\): .* the weights of step 24 are kept"):
        model.fit(X, y)
    np.testing.assert_array_equal(model.sample(5, random_state=1), stopped.sample(5, random_state=1))
    model.save(tmp_path)
    assert Diffusion.load(tmp_path).n_iter_ == 24


@pytest.mark.filterwarnings("ignore:(overflow|invalid)")
def test_an_absurd_learning_rate_diverges_cleanly():
    with pytest.raises(DivergedError, match="A lower learning_rate may help"):
        Diffusion(**{**SMALL, "learning_rate": 1e37, "epochs": 50}).fit(*blobs())


@pytest.mark.parametrize("labels", [None, "ints", "words"])
def test_save_and_load_give_the_same_samples(tmp_path, labels):
    X, y = blobs()
    if labels is not None:
        y = y if labels == "ints" else np.array(["even", "odd"])[y]
    model = Diffusion(**SMALL).fit(X.reshape(-1, 1, 3), None if labels is None else y)
    model.save(tmp_path / "model")
    other = Diffusion.load(tmp_path / "model")
    assert other.get_params() == model.get_params()
    assert other.history_ == [{k: v for k, v in h.items() if k != "images_per_second"} for h in model.history_]
    np.testing.assert_array_equal(other.sample(20, random_state=5), model.sample(20, random_state=5))
    if labels is not None:
        np.testing.assert_array_equal(other.sample(2, y[:2], random_state=5), model.sample(2, y[:2], random_state=5))
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.sample(4, random_state=5), model.sample(4, random_state=5))


def test_load_refuses_what_is_not_a_model(tmp_path):
    model = Diffusion(**SMALL).fit(*blobs())
    model.save(tmp_path)
    config = json.loads((tmp_path / io.CONFIG).read_text())
    for damage in (
        lambda c: c["params"].update(unknown=1),
        lambda c: c["params"].update(width=33),
        lambda c: c["fitted"].pop("scaling"),
        lambda c: c.pop("params"),
        lambda c: c["fitted"]["scaling"].update(shape=[4]),
    ):
        broken = json.loads(json.dumps(config))
        damage(broken)
        (tmp_path / io.CONFIG).write_text(json.dumps(broken))
        with pytest.raises(io.FormatError, match="does not hold a complete Diffusion model"):
            Diffusion.load(tmp_path)
    (tmp_path / io.CONFIG).write_text(json.dumps(config))
    data = (tmp_path / io.ARRAYS).read_bytes()
    (tmp_path / io.ARRAYS).write_bytes(data[: len(data) // 2])
    with pytest.raises(io.FormatError, match="not a readable safetensors file"):
        Diffusion.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Diffusion.load(tmp_path / "nowhere")


def test_scikit_learn_can_clone_it():
    sklearn_base = pytest.importorskip("sklearn.base")
    model = Diffusion(width=17, random_state=3)
    assert sklearn_base.clone(model).get_params() == model.get_params()
    assert repr(model) == "Diffusion(width=17, random_state=3)"
    assert model.set_params(width=5).width == 5
    with pytest.raises(ValueError, match="has no parameter 'depth'"):
        model.set_params(depth=1)


def test_batches_are_a_permutation_and_a_function_of_the_key():
    stream = Stream(0)
    found = list(batches(23, 5, stream.at(0)))
    assert [len(b) for b in found] == [5, 5, 5, 5] and len(set(np.concatenate(found))) == 20
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(list(batches(23, 5, stream.at(0)))))
    assert (np.concatenate(found) != np.concatenate(list(batches(23, 5, stream.at(1))))).any()
    np.testing.assert_array_equal(np.sort(permutation(stream.at(2), 1000)), np.arange(1000))
    for size in (0, 24):
        with pytest.raises(ValueError, match="size must lie in"):
            next(batches(23, size, stream.at(0)))


def test_streams_do_not_meet():
    keys = {tuple(Stream(1, purpose).at(i)) for purpose in range(4) for i in range(10)}
    assert len(keys) == 40
    assert seed_from(5) == 5 and seed_from(None) != seed_from(None)


def test_digits_are_split_by_class():
    pytest.importorskip("sklearn")
    data = digits(random_state=0)
    assert data.train.shape == (1438, 64) and data.held_out.shape == (359, 64)
    assert data.train.min() == 0 and data.train.max() == 1 and data.train.dtype == np.float32
    for label in range(10):
        held, kept = (data.held_out_labels == label).sum(), (data.train_labels == label).sum()
        assert held == round(0.2 * (held + kept))
    rest, held = stratified_split(data.train_labels, 0.5, Stream(1))
    assert sorted([*rest, *held]) == list(range(1438))
    assert (digits(random_state=1).held_out != data.held_out).any()
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
        stratified_split(data.train_labels, 1.0, Stream(1))
