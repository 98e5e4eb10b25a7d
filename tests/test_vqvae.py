"""VQVAE and FSQ: quantisers against their formulas, codes both ways, what the prior draws, files.

Seen to fail: with the digits of a grid in the other order, or even levels without their half step; with a quantiser or
an encoder that stops the gradient; with dead codes left as they are; with a codebook that does not move; with a prior
that sees later codes, draws all positions with one number, or is not told the class; with a negative commitment.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from generant import autograd, nn, ops
from generant.models import FSQ, VQVAE
from generant.models.code_prior import CodePrior
from generant.models.quantisers import EmaCodebook, FiniteScalar, perplexity, quantise
from generant.random import Stream, split

pytestmark = pytest.mark.once

TINY = dict(positions=3, hidden=(16,), epochs=3, batch_size=16, random_state=0)
MODELS = {"vqvae": lambda **kw: VQVAE(**{**TINY, "n_codes": 8, "code_dim": 2, **kw}),
          "fsq": lambda **kw: FSQ(**{**TINY, "levels": (3, 4), **kw})}  # fmt: skip
both = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def rows(n: int = 96) -> tuple[np.ndarray, np.ndarray]:
    rng, y = np.random.default_rng(0), np.arange(n) % 3
    return rng.standard_normal((n, 5)) + 4 * np.eye(3, 5)[y], y


def vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


# ---- quantisers ------------------------------------------------------------------------------------------------------


def test_finite_scalars_are_the_rounding_of_the_paper():
    """Mentzer et al. (2024), appendix A.1, written out in float64."""
    levels, z = (8, 5, 4, 3), 3 * vectors(500, 4)
    each = np.array(levels)
    half_l = (each - 1) * (1 + 1e-3) / 2
    offset = np.where(each % 2 == 1, 0.0, 0.5)
    bounded = np.tanh(z + np.arctanh(offset / half_l)) * half_l - offset
    rounded = np.round(bounded)
    codes = ((rounded + each // 2) * np.cumprod([1, *levels[:-1]])).sum(1)
    through, _, found = quantise(FiniteScalar(levels), z)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(through, rounded / (each // 2), atol=1e-6)
    assert len(np.unique(FiniteScalar(levels).codebook(), axis=0)) == math.prod(levels)


@pytest.mark.parametrize("quantiser", [FiniteScalar((5, 4)), EmaCodebook(7, 2, Stream(0))], ids=["fsq", "ema"])
def test_the_gradient_goes_past_the_quantiser(quantiser):
    z, g = vectors(9, 2), vectors(9, 2, 1)
    found = autograd.grad(lambda z: ops.sum(ops.mul(quantise(quantiser, z)[0], g)))(z)
    wanted = autograd.grad(lambda z: ops.sum(ops.mul(quantiser.bound(z), g)))(z)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not np.allclose(quantise(quantiser, z)[0], z)


def test_codes_are_moving_averages():
    """van den Oord et al. (2017), equations 6 to 8, in float64."""
    book, m = EmaCodebook(4, 3, Stream(0), decay=0.9, threshold=0.0), 4
    counts, sums = book.counts.value.astype(float), book.sums.value.reshape(m, 3).astype(float)
    for step in range(5):
        z = vectors(20, 3, step)
        codes = quantise(book, z)[2]
        np.testing.assert_array_equal(codes, ((z[:, None] - sums / counts[:, None]) ** 2).sum(2).argmin(1))
        book.observe_(z, codes, np.zeros(m, np.int64))
        onehot = np.eye(m)[codes]
        counts, sums = 0.9 * counts + 0.1 * onehot.sum(0), 0.9 * sums + 0.1 * onehot.T @ z
        np.testing.assert_allclose(book.codebook(), sums / counts[:, None], rtol=1e-4)


def test_dead_codes_become_vectors_of_the_batch():
    book, z = EmaCodebook(4, 2, Stream(0), decay=0.5, threshold=0.3), vectors(20, 2)
    candidates = np.array([3, 5, 7, 9])
    book.observe_(z, np.zeros(20, np.int64), candidates)  # all but code 0 lie unused
    np.testing.assert_allclose(book.codebook()[1:], z[candidates[1:]], rtol=1e-5)
    np.testing.assert_allclose(book.codebook()[0], z.mean(0), atol=1e-3)
    np.testing.assert_allclose(book.counts.value, [10.0, 5.0, 5.0, 5.0], rtol=1e-3)
    before = book.codebook().copy()
    book.observe_(vectors(20, 2, 1), np.zeros(20, np.int64), candidates)  # unused for one step: 0.5 of an even share
    np.testing.assert_allclose(book.codebook()[1:], before[1:], rtol=1e-5)


def test_perplexity_counts_codes_in_use():
    assert float(perplexity(vectors(6, 2), np.array([0, 3, 5, 3, 0, 5]), 9)) == pytest.approx(3, rel=1e-5)
    assert float(perplexity(vectors(8, 1), np.full(8, 2), 9)) == pytest.approx(1, rel=1e-5)


# ---- the prior -------------------------------------------------------------------------------------------------------


def test_the_prior_is_a_distribution_that_it_samples():
    """Over 3^3 sequences the probabilities add up to 1, and frequencies of draws are theirs."""
    prior = CodePrior(3, 3, Stream(0), classes=2)
    for array in nn.named_parameters(prior).values():
        array += 0.3 * np.random.default_rng(1).standard_normal(array.shape).astype(np.float32)
    every = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for label in (0, 1):
        p = np.exp(prior.log_prob(every, np.full(27, label)))
        assert p.sum() == pytest.approx(1, abs=1e-5)
        drawn = prior.sample(split(Stream(label).at(0), 4000), np.full(4000, label))
        share = np.bincount(drawn @ [9, 3, 1], minlength=27) / 4000
        np.testing.assert_allclose(share, p, atol=0.03)
    assert p.max() > 0.06  # not the uniform distribution


def test_the_loss_of_the_prior_is_its_likelihood():
    prior, rng = CodePrior(5, 4, Stream(0), classes=2), np.random.default_rng(0)
    codes, labels, weight = rng.integers(0, 5, (6, 4)), rng.integers(0, 2, 6), rng.random(6).astype(np.float32)
    found = prior.loss(codes.reshape(-1), labels, weight)
    assert float(found) == pytest.approx(-np.mean(weight * prior.log_prob(codes, labels)), rel=1e-5)


# ---- the models ------------------------------------------------------------------------------------------------------


@both
def test_learns(make):
    X, y = rows()
    model = make(epochs=40, batch_size=24, learning_rate=1e-2).fit(X, y)
    first, last = model.history_[0], model.history_[-1]
    assert last["loss"] < first["loss"] - 1 and last["prior_loss"] < first["prior_loss"] - 0.5
    assert 2 < last["perplexity"] <= 12.01
    assert ((model.reconstruct(X) - X) ** 2).mean() < 0.5 * X.var(0).mean()
    assert (model.class_scores(X).argmax(1) == y).mean() > 0.9  # the prior knows which codes a class has
    Z = model.sample(300, 1, random_state=0)
    np.testing.assert_allclose(Z.mean(0), X[y == 1].mean(0), atol=0.8)


def test_the_codebook_follows_the_encoder():
    X, _ = rows(400)
    model = VQVAE(**{**TINY, "n_codes": 6, "code_dim": 2, "epochs": 30, "learning_rate": 1e-2}).fit(X)
    net = model.networks_["autoencoder"]
    z, codes = net.encode(model.scaling_.forward("", X)), model.encode(X).reshape(-1)
    for j in range(6):
        assert (codes == j).sum() > 12  # a hundredth of all: none is dead
        np.testing.assert_allclose(net.quantiser.codebook()[j], z[codes == j].mean(0), atol=0.15 * z.std())


@pytest.mark.parametrize(
    ("name", "loss", "prior_loss", "used"), [("vqvae", 6.33304, 4.045, 6.73908), ("fsq", 5.26945, 5.438, 8.12799)]
)
def test_a_seeded_run_reaches_known_values(name, loss, prior_loss, used):
    X, y = rows()
    last = MODELS[name](epochs=5, learning_rate=1e-2).fit(X, y).history_[-1]
    assert last["loss"] == pytest.approx(loss, rel=1e-3) and last["perplexity"] == pytest.approx(used, rel=1e-3)
    # keys and queries of the prior begin without a gradient, where Adam makes rounding errors into steps
    assert last["prior_loss"] == pytest.approx(prior_loss, rel=0.02)


@both
def test_codes_go_both_ways(make):
    X, _ = rows()
    model = make().fit(X)
    codes = model.encode(X)
    assert codes.shape == (96, 3) and codes.dtype == np.int64
    np.testing.assert_array_equal(model.decode(codes), model.reconstruct(X))
    np.testing.assert_allclose(model.inverse_transform(model.transform(X)), model.reconstruct(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.interpolate(X[0], X[1], 3)[-1], model.reconstruct(X[1:2])[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"0 ... \d+ of shape \(n, 3\)"):
        model.decode(codes + 100)
    with pytest.raises(ValueError, match=r"\(n, 3\)"):
        model.decode(codes[:, :2])


@both
def test_images(make):
    X = np.random.default_rng(0).integers(0, 256, (12, 17, 16, 3)).astype(np.uint8)
    model = make(channels=(4, 8), epochs=1).fit(X)
    assert model.encode(X).shape == (12, 5, 4)
    assert model.reconstruct(X).shape == X.shape and model.reconstruct(X).dtype == np.uint8
    assert model.sample(2).shape == (2, 17, 16, 3)


@both
def test_a_score_is_a_bound(make):
    """sum_x exp(score(x)) over all x there are is at most 1."""
    X = np.random.default_rng(0).integers(0, 2, (60, 4))
    model = make(likelihood="bernoulli", epochs=20, learning_rate=1e-2).fit(X)
    every = np.stack(np.meshgrid(*[np.arange(2)] * 4), -1).reshape(-1, 4)
    assert 0.01 < np.exp(model.score_samples(every)).sum() <= 1


@both
def test_a_sample_depends_on_its_place_and_class_only(make):
    X, y = rows()
    model = make().fit(X, y)
    many, few = model.sample(9, 1, random_state=3), model.sample(4, [0, 1, 2, 1], random_state=3)
    np.testing.assert_allclose(many[[1, 3]], few[[1, 3]], rtol=1e-5, atol=1e-6)


@both
def test_save_and_load(make, tmp_path):
    X, y = rows()
    model = make().fit(X, y)
    model.save(tmp_path)
    again = type(model).load(tmp_path)
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
    np.testing.assert_array_equal(again.sample(7, random_state=1), model.sample(7, random_state=1))
    again.partial_fit(X, y)


@both
def test_a_killed_run_that_is_resumed_ends_with_the_same_bits(make, tmp_path):
    X, y = rows()
    whole = make().fit(X, y)

    class Kill(Exception):
        pass

    def kill(model, entry):
        if entry["epoch"] == 2:
            raise Kill

    kw = dict(checkpoint=tmp_path / "run", checkpoint_every=5)
    with pytest.raises(Kill):
        make(**kw, callbacks=[kill]).fit(X, y)
    resumed = make(**kw).fit(X, y, resume=tmp_path / "run")
    for a, b in zip(nn.state(whole.networks_).values(), nn.state(resumed.networks_).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "kw", "message"),
    [
        (VQVAE, dict(n_codes=1), "n_codes"),
        (VQVAE, dict(decay=1.5), "decay"),
        (VQVAE, dict(commitment=-1.0), "commitment"),
        (VQVAE, dict(positions=0), "positions"),
        (FSQ, dict(levels=(3, 1)), r"levels\[1\]"),
    ],
)
def test_refusals(make, kw, message):
    with pytest.raises(ValueError, match=message):
        make(**{**TINY, **kw}).fit(rows()[0])
