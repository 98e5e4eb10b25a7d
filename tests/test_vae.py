"""VAE: bounds against a model whose likelihood is known, what training changes, what sampling depends on, files.

Seen to fail: with the mean of the log weights for IWAE's loss; with a sum for a mean in the importance-sampled score;
without logvar in log q; with a weight of the divergence that begins at 0; with free bits that cost nothing; with one
key for all rows, or keys by place, in samples and in scores; with bins a level too wide; without the change of unit;
with components of the prior that are too narrow, or one of them only; with unknown labels taken for the first class.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from generant import models, nn, ops
from generant.models import VAE, vae_objectives
from generant.models.scaling import Scaling
from generant.models.vae_networks import Autoencoder
from generant.random import Stream, split

pytestmark = pytest.mark.once

TINY = dict(latent_dim=2, hidden=(16,), epochs=3, batch_size=16, random_state=0)


def rows(n: int = 96) -> tuple[np.ndarray, np.ndarray]:
    rng, y = np.random.default_rng(0), np.arange(n) % 3
    return rng.standard_normal((n, 5)) + 3 * np.eye(3, 5)[y], y


# ---- a linear Gaussian model: p(z) = N(0, 1), p(x | z) = N(W z + b, s^2), so p(x) = N(b, W' W + s^2) ----


class Linear(nn.Module):
    """A linear encoder of a fixed width, mu = V x, and a linear decoder."""

    def __init__(self, *weights: np.ndarray) -> None:
        self.weights = list(weights)

    def __call__(self, x, codes=None):
        y = [ops.matmul(x, w) for w in self.weights[:-1]]
        return (y[0], ops.add(ops.affine(y[0], scale=0.0), self.weights[-1])) if len(y) == 1 else y


class Decoder(nn.Module):
    def __init__(self, w: np.ndarray, b: np.ndarray) -> None:
        self.w, self.b = w, b

    def __call__(self, z, codes=None):
        return ops.linear(z, self.w, self.b)


def linear_gaussian(sigma: float = 0.7, widen: float = 0.4):
    """(network with an encoder that is not quite the posterior, x, log p(x))."""
    rng, d, latent = np.random.default_rng(1), 4, 2
    w, b = rng.standard_normal((latent, d)), rng.standard_normal(d)
    x = rng.standard_normal((50, latent)) @ w + b + sigma * rng.standard_normal((50, d))
    covariance = w.T @ w + sigma**2 * np.eye(d)
    _, logdet = np.linalg.slogdet(covariance)
    r = x - b
    exact = -0.5 * (d * math.log(2 * math.pi) + logdet + np.einsum("ni,ij,nj->n", r, np.linalg.inv(covariance), r))
    precision = np.eye(latent) + w @ w.T / sigma**2
    v = np.linalg.solve(precision, w).T / sigma**2  # the posterior's mean is (x - b) v
    logvar = np.log(np.diag(np.linalg.inv(precision))) + widen
    decoder = Decoder(w.astype(np.float32), b.astype(np.float32))
    encoder = Linear(v.astype(np.float32), logvar.astype(np.float32))
    likelihood = models.likelihoods.likelihood(("gaussian", sigma), d)
    net = Autoencoder((d,), likelihood, _Centred(encoder, b), decoder)
    return net, x.astype(np.float32), exact


class _Centred(nn.Module):
    def __init__(self, encoder, b) -> None:
        self.encoder, self.b = encoder, b.astype(np.float32)

    def __call__(self, x, codes=None):
        return self.encoder(ops.sub(x, self.b), codes)


def test_importance_sampling_finds_the_likelihood():
    net, x, exact = linear_gaussian()
    noise = ops.normal(Stream(0).at(0), shape=(len(x), 4000, 2))
    found = vae_objectives.importance_log_prob(net, x, None, noise)
    np.testing.assert_allclose(found, exact, atol=0.05)


def test_bounds_rise_with_draws_and_stay_below():
    net, x, exact = linear_gaussian()
    weight, beta = np.ones(len(x), np.float32), np.array(1, np.float32)

    def bound(objective, **kw):
        values = [objective(net, x, None, None, weight, Stream(0).at(i), beta, **kw)[0] for i in range(200)]
        return -float(np.mean(values))

    bounds = [bound(vae_objectives.elbo)]
    bounds += [bound(vae_objectives.iwae, samples=k, latent=2) for k in (1, 2, 5, 20)]
    assert bounds[0] == pytest.approx(bounds[1], abs=0.02)  # the bound of one draw is the ELBO
    assert bounds[1] + 0.01 < bounds[2] < bounds[3] < bounds[4] < exact.mean()
    many = -float(vae_objectives.elbo(net, x, None, None, weight, Stream(0).at(0), beta, samples=500)[0])
    assert many == pytest.approx(bounds[0], abs=0.02)


def test_parts_add_up():
    net, x, _ = linear_gaussian()
    weight, key = np.linspace(0, 2, len(x)).astype(np.float32), Stream(0).at(0)
    for objective, kw in ((vae_objectives.elbo, {}), (vae_objectives.iwae, dict(samples=1, latent=2))):
        loss, reconstruction, kl = objective(net, x, None, None, weight, key, np.array(0.5, np.float32), **kw)
        assert float(loss) == pytest.approx(float(reconstruction) + 0.5 * float(kl), rel=1e-5)


def test_free_bits_cost_what_they_are_and_have_no_gradient():
    net, x, _ = linear_gaussian()
    weight, key, beta = np.ones(len(x), np.float32), Stream(0).at(0), np.array(1, np.float32)

    def loss(net, free_bits):
        found = vae_objectives.elbo(net, x, None, None, weight, key, beta, free_bits=free_bits)
        return ops.sub(found[0], found[1])

    assert float(loss(net, 50.0)) == pytest.approx(100, rel=1e-6)
    assert all((g == 0).all() for g in nn.value_and_grad(lambda n: loss(n, 50.0))(net)[1])
    assert float(loss(net, 1e-6)) == pytest.approx(float(loss(net, 0.0)), rel=1e-4)


# ---- training --------------------------------------------------------------------------------------------------------


def test_the_divergence_has_a_gradient_by_default():
    X, _ = rows()
    model = VAE(**TINY).fit(X)
    x, net = model.scaling_.forward("", X), model.networks_["vae"]
    inputs = model._inputs(x, None, np.ones(len(x), np.float32), 0)
    gradients = dict(zip(nn.named_parameters(net), nn.value_and_grad(
        lambda n: vae_objectives.elbo(n, *inputs)[2])(net)[1], strict=True))
    for name in ("encoder.mu.weight", "encoder.logvar.weight", "encoder.layers.0.weight"):
        assert np.abs(gradients[name]).max() > 1e-4, name
    assert float(inputs[-1]) == 1.0  # the weight of the divergence, in the first step


def test_warm_up_raises_the_weight_of_the_divergence():
    X, _ = rows()
    model = VAE(**TINY, beta=4.0, kl_warmup=7).fit(X)
    weights = [float(model._inputs(X, None, None, step)[-1]) for step in (0, 3, 7, 100)]
    np.testing.assert_allclose(weights, [0.5, 2.0, 4.0, 4.0])


@pytest.mark.parametrize(
    "kw",
    [
        dict(),
        dict(objective="iwae", n_importance=3),
        dict(n_importance=2, kl_warmup=3, free_bits=0.1),
        dict(likelihood="gaussian_outputs"),
        dict(prior="mixture", n_components=3),
        dict(prior="vamp", n_components=9),
        dict(semi_supervised=True),
        dict(semi_supervised=True, prior="vamp", n_components=6),
    ],
    ids=lambda kw: next(iter(kw), "default"),
)
@pytest.mark.parametrize("labelled", [False, True])
def test_learns(kw, labelled):
    X, y = rows()
    if kw.get("semi_supervised"):
        if not labelled:
            pytest.skip("needs labels")
        y = np.where(np.arange(len(y)) < 30, y, -1)
    model = VAE(**{**TINY, "epochs": 20, "batch_size": 24, "learning_rate": 3e-2}, **kw).fit(X, y if labelled else None)
    losses = [h["loss"] for h in model.history_]
    assert np.mean(losses[-3:]) < losses[0] - 0.3
    assert set(model.history_[0]) >= {"loss", "reconstruction", "kl", "norm"}
    Z = model.sample(500, random_state=0)
    np.testing.assert_allclose(Z.mean(0), X.mean(0), atol=0.5)
    np.testing.assert_allclose(Z.std(0), X.std(0), rtol=0.5)


@pytest.mark.parametrize(
    ("kw", "loss", "score"),
    [
        (dict(), 5.62487, -7.68505),
        (dict(objective="iwae", n_importance=4), 5.63918, -7.68354),
        (dict(prior="vamp", n_components=6), 5.59075, -7.68892),
    ],
    ids=["elbo", "iwae", "vamp"],
)
def test_a_seeded_run_reaches_known_values(kw, loss, score):
    X, y = rows()
    model = VAE(**{**TINY, "epochs": 5, "learning_rate": 1e-2}, **kw).fit(X, y)
    assert model.history_[-1]["loss"] == pytest.approx(loss, rel=1e-3)
    assert model.score(X, y) == pytest.approx(score, rel=1e-3)


def test_scores_are_densities_of_the_data():
    """exp(score) integrates to 1 over the plane."""
    X = np.random.default_rng(0).standard_normal((200, 2)) * [1.0, 3.0] + [5.0, 0.0]
    model = VAE(**{**TINY, "epochs": 10}).fit(X)
    a, b = np.meshgrid(np.linspace(-5, 15, 60), np.linspace(-16, 16, 60), indexing="ij")
    grid = np.stack([a.ravel(), b.ravel()], 1)
    total = np.exp(model.score_samples(grid)).sum() * (20 / 59) * (32 / 59)
    assert total == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_draws_of_the_latents_have_the_density_of_the_prior(prior):
    X, y = rows()
    model = VAE(**TINY, prior=prior, n_components=4).fit(X, y)
    net, keys = model.networks_["vae"], split(Stream(0).at(0), 4000)
    if prior == "mixture":
        net.prior.mu[...] *= 3
    z = model._prior_draws(keys)
    edges = np.quantile(z[:, 0], [0.2, 0.5, 0.8])
    grid = np.stack(np.meshgrid(*[np.linspace(-15, 15, 301)] * 2, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    mass = np.exp(net.prior.log_prob(grid, net.encode_pseudo)).astype(np.float64) * 0.01
    assert mass.sum() == pytest.approx(1, abs=0.01)
    for edge, share in zip(edges, [0.2, 0.5, 0.8], strict=True):
        assert mass[grid[:, 0] < edge].sum() == pytest.approx(share, abs=0.04)


def test_binned_fractions_are_scored_as_a_density():
    """Codes k have masses, (k + u) / levels the density that is constant on bins: levels times the mass."""
    k = np.random.default_rng(0).integers(0, 5, (60, 3))
    codes = VAE(**TINY, likelihood=("logistic", 5)).fit(k)
    fractions = VAE(**TINY, likelihood=("logistic", 5)).fit((k + 0.3) / 5)
    np.testing.assert_allclose(
        fractions.score_samples((k + 0.99) / 5), codes.score_samples(k) + 3 * math.log(5), rtol=1e-6
    )
    drawn = fractions.sample(20, random_state=0)
    assert np.allclose((drawn * 5) % 1, 0.5, atol=1e-5)
    codes.n_importance_score = 3000
    everything = np.stack(np.meshgrid(*[np.arange(5)] * 3), -1).reshape(-1, 3)
    assert np.exp(codes.score_samples(everything)).sum() == pytest.approx(1, abs=0.05)


def test_bins_undo_both_scales_of_levels():
    k = np.arange(17).repeat(2).reshape(17, 2)
    scaling = Scaling.bins(k / 16, 17)
    for x in (k / 16, (k + 0.999) / 17, (k + 1e-6) / 17):
        np.testing.assert_array_equal(scaling.forward("", x), k)


# ---- what depends on what --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", ("categorical", 3), ("logistic", 3), "multinomial"])
def test_a_sample_depends_on_its_place_and_class_only(likelihood):
    X = np.random.default_rng(0).integers(0, 2, (64, 5))
    model = VAE(**TINY, likelihood=likelihood).fit(X, np.arange(64) % 2)
    many, few = model.sample(9, 1, random_state=3), model.sample(4, 1, random_state=3)
    mixed = model.sample(4, [0, 1, 0, 1], random_state=3)
    np.testing.assert_allclose(many[:4], few, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed[1::2], few[1::2], rtol=1e-5, atol=1e-6)
    assert len(np.unique(VAE(**TINY).fit(X + 0.1 * X).sample(9, random_state=3), axis=0)) == 9


def test_a_score_depends_on_its_row_only():
    X, y = rows()
    model = VAE(**TINY).fit(X, y)
    scores = model.score_samples(X)
    np.testing.assert_allclose(model.score_samples(X[::-1])[::-1], scores, rtol=1e-5)
    np.testing.assert_allclose(model.score_samples(X[5:6]), scores[5:6], rtol=1e-5)
    assert len(np.unique(vae_noise(model, X))) == len(X)


def vae_noise(model, X):
    from generant.models.decoder_model import row_keys

    return row_keys(model.scaling_.forward("", X), Stream(0))[:, 1]


# ---- latents, images, labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (17, 19, 3)])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian_outputs", ("categorical", 3)])
def test_images(shape, likelihood):
    X = np.random.default_rng(0).integers(0, 2, (12, *shape)).astype(np.uint8)
    model = VAE(**TINY, likelihood=likelihood, channels=(4, 6)).fit(X, np.arange(12) % 2)
    assert type(model.networks_["vae"].encoder).__name__ == "ConvEncoder"
    assert model.sample(3).shape == (3, *shape) and model.sample(3).dtype == np.uint8
    assert model.transform(X).shape == (12, 2)
    assert model.reconstruct(X, np.arange(12) % 2).shape == X.shape
    assert model.interpolate(X[0], X[1], 4).shape == (4, *shape)
    assert np.isfinite(model.score_samples(X[:3])).all()


def test_latents_go_both_ways():
    X, _ = rows()
    model = VAE(**{**TINY, "epochs": 40, "batch_size": 24, "latent_dim": 5, "learning_rate": 2e-2, "beta": 0.01}).fit(X)
    Z = model.transform(X)
    np.testing.assert_array_equal(model.inverse_transform(Z), model.reconstruct(X))
    assert ((model.reconstruct(X) - X) ** 2).mean() < 0.15 * X.var(0).mean()
    line = model.interpolate(X[0], X[1], 5)
    np.testing.assert_allclose(line[[0, -1]], model.reconstruct(X[:2]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(line[2], model.inverse_transform(Z[:2].mean(0, keepdims=True))[0], rtol=1e-4, atol=1e-5)


def test_rows_without_labels_help():
    """Two classes on two circles, three labels each."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    X = np.stack([8.0 * y, 0 * y], 1) + rng.standard_normal((400, 2))
    seen = np.where(np.arange(400) < 6, y, -1)
    kw = {**TINY, "epochs": 12, "batch_size": 50, "learning_rate": 3e-2, "semi_supervised": True}
    model = VAE(**kw).fit(X, seen)
    assert (model.predict(X) == y).mean() > 0.97
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1, rtol=1e-5)
    assert model.classes_.tolist() == [0, 1]
    other = VAE(**kw).fit(X, [None if label < 0 else "ab"[label] for label in seen])
    np.testing.assert_array_equal(other.predict(X), np.array(["a", "b"])[model.predict(X)])


def test_a_mixed_table():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.standard_normal((50, 2)), rng.integers(0, 4, 50), rng.integers(0, 2, 50)])
    columns = ["gaussian", "gaussian", ("categorical", 4), "bernoulli"]
    model = VAE(**TINY, likelihood=columns).fit(X)
    drawn = model.sample(30)
    assert set(drawn[:, 2]) <= {0, 1, 2, 3} and set(drawn[:, 3]) <= {0, 1}
    # columns of other units: the same model, another density
    unit = np.array([1e3, 1e-3, 1, 1])
    other = VAE(**TINY, likelihood=columns).fit(X * unit + [1e4, 0, 0, 0])
    np.testing.assert_allclose(other.sample(30, random_state=0)[:, :2] - [1e4, 0],
                               model.sample(30, random_state=0)[:, :2] * unit[:2], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(other.score_samples(X * unit + [1e4, 0, 0, 0]), model.score_samples(X), atol=2e-2)
    assert np.isfinite(VAE(**TINY, likelihood="gaussian_features").fit(X).score(X))


# ---- files and interruptions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kw",
    [
        dict(),
        dict(likelihood="bernoulli"),
        dict(semi_supervised=True),
        dict(prior="mixture", n_components=3),
        dict(prior="vamp", n_components=6),
    ],
    ids=str,
)
def test_save_and_load(tmp_path, kw):
    X, y = rows()
    X = (X > 0.5).astype(np.float32) if "likelihood" in kw else X
    model = VAE(**TINY, **kw).fit(X, y)
    model.save(tmp_path)
    again = VAE.load(tmp_path)
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
    np.testing.assert_array_equal(again.sample(7, random_state=1), model.sample(7, random_state=1))


def test_a_killed_run_that_is_resumed_ends_with_the_same_bits(tmp_path):
    X, y = rows()
    whole = VAE(**TINY).fit(X, y)

    class Kill(Exception):
        pass

    def kill(model, entry):
        if entry["epoch"] == 2:
            raise Kill

    kw = dict(TINY, checkpoint=tmp_path / "run", checkpoint_every=5)
    with pytest.raises(Kill):
        VAE(**kw, callbacks=[kill]).fit(X, y)
    resumed = VAE(**kw).fit(X, y, resume=tmp_path / "run")
    for a, b in zip(nn.state(whole.networks_).values(), nn.state(resumed.networks_).values(), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        (dict(objective="vae"), "objective"),
        (dict(latent_dim=0), "latent_dim"),
        (dict(free_bits=0.1, objective="iwae"), "free_bits"),
        (dict(semi_supervised=True, n_importance=2), "semi_supervised"),
        (dict(semi_supervised=True), "known label"),
        (dict(architecture="conv"), "images"),
        (dict(likelihood=("logistic", 4)), "fractions"),
        (dict(likelihood="cauchy"), "cauchy"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_refusals(kw, message):
    with pytest.raises(ValueError, match=message):
        VAE(**{**TINY, **kw}).fit(rows()[0])


def test_labels_where_they_are_needed():
    X, y = rows()
    model = VAE(**TINY).fit(X, y)
    with pytest.raises(ValueError, match="y must be given"):
        model.inverse_transform(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="without labels"):
        VAE(**TINY).fit(X).reconstruct(X, y)
    assert not hasattr(model, "predict")
    with pytest.raises(AttributeError, match="semi_supervised is off"):
        model.predict_proba(X)
