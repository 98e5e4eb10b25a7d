"""Diffusion beyond the defaults: networks, objectives, guidance, latents, likelihoods, and runs that were interrupted.

Likelihoods and samples are compared with closed forms of Gaussian data; a prepared loss with the plain one.
Seen to fail: with no label hidden, with the classes of the two halves of a guided batch exchanged, without the sample
weights, without the posterior in the score of a mixture, with noise of another mean than 0 or none on whole numbers,
with a plan of another form, without the trace of what is linear in x, with the probes' traces added up, with the
variational integral twice as large or without the Gaussian's share, with one noise instead of a pair, with another
weight in it, and with other noise at every validation.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from generant import diffusion, io, nn, ops
from generant.models import Diffusion, NotFittedError
from generant.random import key

TINY = {"epochs": 2, "batch_size": 16, "n_steps": 4, "random_state": 0}
IMAGES = np.random.default_rng(0).integers(0, 256, (32, 8, 8)).astype(np.uint8)
LABELS = np.arange(32) % 2
NETWORKS = {
    "mlp": {"width": 16, "blocks": 1},
    "unet": {"channels": (8, 8), "attention": ()},
    "dit": {"width": 16, "blocks": 1, "heads": 2, "patch": 4},
}


def gaussians(n=1000):
    """Two classes of deviations (1, 2, 0.5) around 1 and 4."""
    y = np.arange(n) % 2
    z = np.random.default_rng(0).standard_normal((n, 3))
    return 1 + 3 * y[:, None] + z * [1, 2, 0.5], y


def log_normal(X, mean):
    return -0.5 * (((X - mean) / [1, 2, 0.5]) ** 2).sum(1) - 1.5 * math.log(2 * math.pi)  # the deviations' product is 1


def same_weights(a, b):
    return all((nn.state(a.network_)[name] == array).all() for name, array in nn.state(b.network_).items())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_samples_and_comes_back_from_a_file(tmp_path, name):
    model = Diffusion(**TINY, **NETWORKS[name], architecture=name, p_uncond=0.2).fit(IMAGES, LABELS)
    samples = model.sample(3, [0, 1, 1], random_state=1)
    assert samples.shape == (3, 8, 8) and samples.dtype == np.uint8
    assert [h["epoch"] for h in model.history_] == [1, 2] and math.isfinite(model.history_[-1]["loss"])
    model.save(tmp_path)
    other = Diffusion.load(tmp_path)
    assert other.get_params() == model.get_params() and same_weights(other, model)
    np.testing.assert_array_equal(other.sample(3, [0, 1, 1], random_state=1), samples)
    guided = [model.sample(3, [0, 1, 1], random_state=1, guidance=w) for w in (1.0, 30.0)]
    np.testing.assert_array_equal(guided[0], samples)
    assert (guided[1] != samples).any()
    assert model.class_scores(IMAGES[:5]).shape == (5, 2)


@pytest.mark.once
def test_auto_is_a_unet_from_16_pixels_on():
    kinds = {}
    for shape in ((15, 20), (16, 16), (16, 16, 3), (300,)):
        model = Diffusion(**{**TINY, "epochs": 1}, channels=(4, 4), width=8)
        model.fit(np.random.default_rng(0).standard_normal((16, *shape)))
        kinds[shape] = type(model.network_).__name__
    assert list(kinds.values()) == ["MlpDenoiser", "UNet2D", "UNet2D", "MlpDenoiser"]


OBJECTIVES = [
    {"objective": "flow"},
    {"objective": "flow", "times": "mode", "schedule": "process"},
    {"objective": "v", "times": "lognormal", "process": "vp", "schedule": "exponential"},
    {"objective": "epsilon", "process": "linear", "schedule": "process", "sampler": "ddpm", "n_steps": 40},
    {"objective": "denoised", "weighting": "min_snr", "process": "vp"},
    {"objective": diffusion.Objective("edm", form="flow", times="lognormal", self_conditioning=0.5)},
]


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda o: "-".join(map(str, o.values()))[:40])
def test_any_objective_learns_two_classes(options):
    X, y = gaussians(600)
    model = Diffusion(
        width=32, blocks=1, epochs=50, batch_size=200, learning_rate=1e-2, random_state=0, **options
    ).fit(X, y)  # fmt: skip
    for label in (0, 1):
        real, fake = X[y == label], model.sample(300, label, random_state=1)
        assert (np.abs(fake.mean(0) - real.mean(0)) < 0.5 * real.std(0)).all()
        if options["objective"] != "denoised":  # under this weight it pays little attention to the last noise
            np.testing.assert_allclose(fake.std(0), real.std(0), rtol=0.6)


@pytest.mark.parametrize("prediction", ["score", "epsilon", "denoised"])
@pytest.mark.parametrize("form", ["ve", "vp", "flow"])
def test_predictions_come_in_every_form(prediction, form):
    model = Diffusion(**TINY, width=8, blocks=1, objective=prediction, form=form, process="subvp").fit(*gaussians(32))
    assert np.isfinite(model.sample(3, random_state=0)).all()


def test_likelihoods_of_gaussians_are_the_closed_form():
    X, y = gaussians(1000)
    model = Diffusion(
        width=32, blocks=1, epochs=60, batch_size=200, learning_rate=1e-2, p_uncond=0.1, random_state=0
    ).fit(X, y)  # fmt: skip
    few, labels = X[:20], y[:20]
    expected = np.stack([log_normal(few, 1), log_normal(few, 4)], axis=1)
    scores = model.class_scores(few)
    own = scores[np.arange(20), labels]
    assert own.mean() == pytest.approx(expected[np.arange(20), labels].mean(), abs=0.2)
    np.testing.assert_allclose(model.score_samples(few[:5], labels[:5]), own[:5], rtol=1e-4)  # rows are alone
    assert model.score(few) == pytest.approx(np.log(np.exp(expected).mean(1)).mean(), abs=0.2)
    np.testing.assert_allclose(model.bits_per_dim(few, labels), -own / (3 * math.log(2)), rtol=1e-6)


def test_class_scores_of_many_features_are_a_bound_that_decides():
    y = np.arange(600) % 2
    X = np.random.default_rng(0).standard_normal((600, 16)) + 0.5 * y[:, None]
    model = Diffusion(width=32, blocks=1, epochs=60, batch_size=200, learning_rate=1e-2, random_state=0).fit(X, y)
    log_p = lambda mean: -0.5 * ((X[:50] - mean) ** 2).sum(1) - 8 * math.log(2 * math.pi)
    expected, found = np.stack([log_p(0), log_p(0.5)], axis=1), model.class_scores(X[:50])
    gaps = [scores[:, 1] - scores[:, 0] for scores in (expected, found)]
    assert np.corrcoef(*gaps)[0, 1] > 0.95 and 0.8 < gaps[1].std() / gaps[0].std() < 1.25
    assert found[np.arange(50), y[:50]].mean() == pytest.approx(expected[np.arange(50), y[:50]].mean(), abs=1.5)
    each = np.stack([model.score_samples(X[:50], np.full(50, c)) for c in (0, 1)], axis=1)
    assert np.abs(model.score_samples(X[:50]) - np.log(np.exp(each).mean(1))).mean() < 0.1
    assert each[np.arange(50), y[:50]].mean() == pytest.approx(expected[np.arange(50), y[:50]].mean(), abs=1.0)
    np.testing.assert_allclose(model.class_scores(X[:7]), found[:7], rtol=1e-4)


def test_guidance_moves_samples_away_from_the_other_class():
    y = np.arange(400) % 2
    X = np.random.default_rng(0).standard_normal((400, 2)) + np.where(y[:, None], 1.0, -1.0)
    model = Diffusion(
        width=16, blocks=1, epochs=60, batch_size=200, learning_rate=1e-2, p_uncond=0.25, random_state=0
    ).fit(X, y)  # fmt: skip
    means = [model.sample(300, 1, random_state=1, guidance=w).mean() for w in (0.0, 1.0, 3.0)]
    assert means[0] == pytest.approx(0, abs=0.4) and means[1] == pytest.approx(1, abs=0.3)
    assert means[2] > means[1] + 0.2
    hidden = model._inputs(np.zeros((4000, 2), np.float32), np.zeros(4000, np.int64), np.ones(4000, np.float32), 0)[1]
    assert set(hidden) == {0, 2} and (hidden == 2).mean() == pytest.approx(0.25, abs=0.03)


def test_many_features_take_probes_and_whole_numbers_are_dequantised():
    z = np.random.default_rng(0).standard_normal((600, 10))
    X = np.clip(np.rint(128 + 20 * z), 0, 255).astype(np.uint8)
    model = Diffusion(width=16, blocks=1, epochs=20, batch_size=200, learning_rate=5e-3, random_state=0).fit(X)
    bits = model.bits_per_dim(X[:100])
    entropy = math.log2(20 * math.sqrt(2 * math.pi * math.e))
    assert bits.shape == (100,) and bits.mean() == pytest.approx(entropy, abs=0.2)
    np.testing.assert_array_equal(bits, model.bits_per_dim(X[:100]))


def test_whole_numbers_may_be_spread_in_training():
    X = np.random.default_rng(0).integers(0, 3, (300, 12)).astype(np.float64)
    options = {"width": 16, "blocks": 1, "epochs": 20, "batch_size": 100, "learning_rate": 5e-3, "random_state": 0}
    model = Diffusion(**options, dequantise=True).fit(X)
    samples = model.sample(50, random_state=1)
    np.testing.assert_array_equal(samples, np.rint(samples))
    bits = model.bits_per_dim(X[:50].astype(np.int64)).mean()
    assert math.log2(3) - 0.1 < bits < math.log2(3) + 0.6
    plain = Diffusion(**options).fit(X)  # puts little between the numbers
    assert bits < plain.bits_per_dim(X[:50].astype(np.int64)).mean()


class Halves:
    """A linear autoencoder: the latent is the first half of an even row, doubled."""

    def transform(self, X):
        return 2 * X[:, : X.shape[1] // 2]

    def inverse_transform(self, Z):
        return np.concatenate([Z, Z], axis=1) / 2


def test_latents_are_drawn_and_decoded():
    half, y = gaussians(400)
    X = np.concatenate([half, half], axis=1)
    options = {"width": 16, "blocks": 1, "epochs": 20, "batch_size": 100, "random_state": 0, "p_uncond": 0.1}
    model = Diffusion(**options, autoencoder=Halves()).fit(X, y)
    plain = Diffusion(**options).fit(2 * half, y)
    samples = model.sample(50, random_state=1)
    assert model.n_features_in_ == 6 and samples.shape == (50, 6)
    np.testing.assert_array_equal(samples[:, :3], plain.sample(50, random_state=1) / 2)
    np.testing.assert_array_equal(model.class_scores(X[:9]), plain.class_scores(2 * half[:9]))
    with pytest.raises(TypeError, match="no likelihood of X"):
        model.score_samples(X)
    sklearn_base = pytest.importorskip("sklearn.base")
    assert sklearn_base.clone(model).autoencoder is model.autoencoder


def test_a_latent_model_is_saved_with_its_autoencoder(tmp_path, monkeypatch):
    from generant import models

    class Coder(Halves):
        def save(self, path):
            io.save_json(path / "kept.json", {"halves": 2})

        @classmethod
        def load(cls, path):
            assert io.load_json(path / "kept.json") == {"halves": 2}
            return cls()

    X = np.concatenate([gaussians(64)[0]] * 2, axis=1)
    model = Diffusion(**TINY, width=8, blocks=1, autoencoder=Coder()).fit(X)
    model.save(tmp_path)
    with pytest.raises(io.FormatError, match="needs an autoencoder of class 'Coder'"):
        Diffusion.load(tmp_path)
    monkeypatch.setattr(models, "Coder", Coder, raising=False)
    monkeypatch.setattr(models, "__all__", [*models.__all__, "Coder"])
    other = Diffusion.load(tmp_path)
    assert other.n_features_in_ == 6
    np.testing.assert_array_equal(other.sample(4, random_state=0), model.sample(4, random_state=0))


@pytest.mark.parametrize("stopping", [False, True])
def test_a_killed_and_resumed_run_is_the_whole_run(tmp_path, stopping):
    X, y = gaussians(120)
    options = {
        **TINY, "epochs": 6, "width": 16, "blocks": 1, "p_uncond": 0.2, "early_stopping": stopping,
        "checkpoint_every": 4,
    }  # fmt: skip
    whole = Diffusion(**options).fit(X, y)

    class Killed(Exception):
        pass

    def kill(model, entry):
        if entry["epoch"] == 4:
            raise Killed

    path = tmp_path / "run"
    with pytest.raises(Killed):
        Diffusion(**options, checkpoint=path, callbacks=[kill]).fit(X, y)
    resumed = Diffusion(**options).fit(X, y, resume=path)
    assert same_weights(whole, resumed)
    told = [[{k: v for k, v in h.items() if k != "images_per_second"} for h in m.history_] for m in (whole, resumed)]
    assert told[0] == told[1] and ("validation_loss" in told[0][0]) == stopping
    with pytest.raises(ValueError, match="was written with width = 16, this model has 8"):
        Diffusion(**{**options, "width": 8}).fit(X, y, resume=path)


def test_training_goes_on():
    X, y = gaussians(96)
    model = Diffusion(**TINY, width=16, blocks=1, warm_start=True).fit(X, y)
    first = model.n_iter_
    model.fit(X, y)
    assert model.n_iter_ == 2 * first and len(model.history_) == 4
    model.partial_fit(X, y)
    assert model.n_iter_ == 2.5 * first


def test_sample_weights_count():
    X, y = gaussians(600)
    model = Diffusion(width=16, blocks=1, epochs=40, batch_size=100, learning_rate=5e-3, random_state=0)
    model.fit(X, sample_weight=(y == 1).astype(float))  # the other class is not to be learned
    np.testing.assert_allclose(model.sample(300, random_state=0).mean(0), X[y == 1].mean(0), atol=0.6)


def test_a_prepared_loss_is_the_loss():
    net = nn.MlpDenoiser(3, nn_stream(), width=8, blocks=1)
    nn.pack(net).data[...] += np.float32(0.1)
    x, s = ops.normal(key(1), shape=(9, 3)), np.geomspace(0.01, 30, 9)
    for prediction in ("edm", "epsilon", "flow"):
        objective = diffusion.Objective(prediction, weighting="min_snr")
        prepared = [np.array(c) for c in objective.prepare(s) if c is not None]
        found = objective.prepared_losses(net, x, None, prepared, key(2))
        np.testing.assert_array_equal(found, objective.losses(net, x, None, s, key(2)))
    edm = diffusion.Edm()
    found = edm.prepared_loss(net, x, None, edm.prepare(s), key(2))
    assert float(found) == float(edm.loss(net, x, None, s, key(2)))
    assert repr(objective.weighted("snr")) == "Objective('flow', form='vp', times=uniform, weighting=snr)"


def nn_stream():
    from generant.random import Stream

    return Stream(0)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"architecture": "resnet"}, ValueError, "architecture must be one of auto, mlp, unet, dit"),
        ({"architecture": "unet"}, ValueError, "'unet' needs images"),
        ({"objective": "noise"}, ValueError, "prediction must be one of"),
        ({"form": "x"}, ValueError, "form must be one of"),
        ({"times": "never"}, ValueError, "times must be one of"),
        ({"weighting": "heavy"}, ValueError, "weighting must be one of"),
        ({"process": "x"}, ValueError, "process must be one of flow, cosine"),
        ({"schedule": "x"}, ValueError, "schedule must be one of karras"),
        ({"blocks": 0}, ValueError, "blocks must be at least 1"),
        ({"p_uncond": 1.5}, ValueError, r"p_uncond must lie in \[0, 1\]"),
        ({"p_uncond": 1}, ValueError, "p_uncond must be below 1"),
        ({"guidance": 2.0}, ValueError, "set p_uncond"),
        ({"guidance": None}, TypeError, "guidance must be a number"),
        ({"autoencoder": 3}, TypeError, "autoencoder has no transform"),
    ],
)
def test_what_cannot_be_is_refused(params, error, message):
    with pytest.raises(error, match=message):
        Diffusion(**TINY, **params).fit(*gaussians(40))


def test_methods_refuse():
    for method in ("score_samples", "class_scores", "bits_per_dim"):
        with pytest.raises(NotFittedError, match=rf"Diffusion\.{method}: the model is not fitted"):
            getattr(Diffusion(), method)(IMAGES)
    X = gaussians(40)[0]
    model = Diffusion(**TINY, width=8, blocks=1).fit(X)
    with pytest.raises(ValueError, match="fitted without labels"):
        model.class_scores(X)
    with pytest.raises(ValueError, match="needs a model that was fitted with labels and p_uncond > 0"):
        model.sample(2, guidance=3.0)
    given = Diffusion(**TINY, width=8, blocks=1, objective=diffusion.Objective("v")).fit(X)
    with pytest.raises(TypeError, match="a ready objective cannot be written to a file"):
        given.save("nowhere")
