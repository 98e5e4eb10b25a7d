"""GAN and GMMN as estimators: what a step runs, what a sample depends on, what is learned, survives and is told.

Seen to fail: with no average, the same batch for each of the critic's steps, the same step of the discriminator taken
twice, gamma constant, rows drawn whatever they weigh, the vectors of spectral normalisation at rest, the warning
repeated, images not kept within their range, and the discriminator's gradient penalty computed where gamma is 0.
"""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

import generant
from generant import nn, ops
from generant.models import GAN, GMMN, NotFittedError
from generant.models.adversarial import LOSSES, non_saturating_discriminator, non_saturating_generator, r1, r2
from generant.models.diversity import modes_found
from generant.random import split

pytestmark = pytest.mark.filterwarnings("ignore:GAN.fit. epoch:RuntimeWarning")

SMALL = {"hidden": (12, 14), "latent_dim": 6, "latent_signs": 2, "frequencies": 4, "epochs": 3, "batch_size": 32,
         "random_state": 0}  # fmt: skip
PLAIN = {k: v for k, v in SMALL.items() if k != "frequencies"}


class Killed(Exception):
    pass


def blobs(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Two classes around (3, 10) and (-3, -10), of deviation 0.5."""
    y = np.arange(n) % 2
    z = np.random.default_rng(0).standard_normal((n, 2))
    return np.where(y[:, None] == 0, [3.0, 10.0] + 0.5 * z, [-3.0, -10.0] + 0.5 * z), y


def weights(model) -> dict[str, np.ndarray]:
    return {f"{k}.{path}": a for k, network in model.networks_.items() for path, a in nn.state(network).items()}


def calls(model) -> list[tuple[str, list]]:
    """(op, shapes of its results) of every call of the recorded step."""
    ((plan, _),) = model._training.step.plans.values()
    specs = plan.layout.specs
    return [(c.op.name, [tuple(specs[o].shape) for o in c.outs if o is not None]) for c in plan.layout.calls]


# ---- what a step runs ----


def test_a_step_runs_no_kernel_twice_and_none_of_the_generators_backward_for_the_discriminator():
    model = GAN(**SMALL).fit(blobs()[0])
    run = calls(model)
    forward = [name for name, shapes in run if name == "linear_act" and shapes[0] == (32, 12)]
    assert len(forward) == 2 + 4  # generator: once for either step; discriminator: real and fake, for either step
    first = [name for name, shapes in run if name == "matmul_dw" and shapes == [(6, 12)]]
    assert len(first) == 1  # the gradient of the generator's first weight
    last = [name for name, shapes in run if name == "matmul_dw" and shapes == [(14, 2)]]
    assert len(last) == 1
    assert [name for name, _ in run].count("adam_") == 2
    assert [name for name, _ in run].count("ema_") == 1


def test_a_step_is_the_discriminators_and_then_the_generators():
    X, _ = blobs(32)
    model = GAN(**{**SMALL, "epochs": 1}, loss="non_saturating", gamma=0.5, ema_decay=0.0).fit(X)
    start = model._networks(model._stream(0))
    g, d = start["generator"], start["discriminator"]
    model._training.first, x = 0, model.scaling_.forward("test", X)
    _, key, *(_, _, key_z, _) = model._inputs(x, None, np.ones(32, np.float32), 0)
    fake = model._fake(g, 32, key_z, None)

    def discriminator_loss(d):
        loss = non_saturating_discriminator(d(x), d(fake))
        return ops.add(loss, ops.affine(ops.add(r1(d, x), r2(d, fake)), scale=0.25))

    def update(network, gradients):
        """The first step of Adam, whose moments are the gradient's own."""
        for p, gradient in zip(nn.named_parameters(network).values(), gradients, strict=True):
            p -= np.float32(2e-3) * gradient / (np.abs(gradient) + np.float32(1e-8))

    update(d, nn.value_and_grad(discriminator_loss)(d)[1])
    update(g, nn.value_and_grad(lambda g: non_saturating_generator(d(model._fake(g, 32, key, None))))(g)[1])
    for name, network in start.items():
        for path, p in nn.named_parameters(network).items():
            np.testing.assert_allclose(weights(model)[f"{name}.{path}"], p, rtol=1e-4, atol=1e-5, err_msg=path)


def test_penalties_cost_nothing_where_they_are_off():
    counts = [len(calls(GAN(**SMALL, gamma=g).fit(blobs()[0]))) for g in (1.0, 0.0)]
    assert counts[1] < 0.7 * counts[0]


def test_the_critics_steps_have_batches_of_their_own():
    model = GAN(**SMALL, loss="wasserstein").fit(blobs()[0])
    assert model.n_iter_ == 3 * (200 // 160)
    assert [name for name, _ in calls(model)].count("adam_") == 6
    x = np.arange(160, dtype=np.float32)[:, None]
    _, key, *parts = model._inputs(x, None, np.ones(160, np.float32), 0)
    np.testing.assert_array_equal(np.concatenate(parts[::4]), x)
    keys = {tuple(k) for k in (key, *parts[2::4], *parts[3::4])}
    assert len(keys) == 11


def test_gamma_falls_and_then_stays():
    seen = []
    model = GAN(**{**SMALL, "epochs": 10}, gamma=2.0, gamma_final=0.02)
    model.callbacks = [lambda m, e: seen.append(2 * float(m._inputs(m._training.x, None, np.ones(200), m.n_iter_)[0]))]
    model.fit(blobs()[0])
    assert model._gamma_at(0) == pytest.approx(2.0) and seen[3] == pytest.approx(0.2, rel=0.5)
    assert (np.diff(seen) <= 0).all() and seen[-3:] == pytest.approx([0.02] * 3)


def test_rows_are_drawn_as_often_as_they_weigh():
    model, keys = GAN(**SMALL), split(np.array([1, 2], np.uint64), 2)
    drawn = np.bincount(model._drawn_rows(np.array([0.0, 1.0, 2.5, 0.5], np.float32), keys), minlength=4)
    assert drawn[0] == 0 and drawn.sum() == 4 and drawn[2] in (2, 3)
    np.testing.assert_array_equal(model._drawn_rows(np.full(5, 2.0, np.float32), keys), np.arange(5))


@pytest.mark.once
def test_rows_that_weigh_nothing_are_not_learned():
    X, y = blobs()
    model = GAN(**SMALL)
    model.set_params(hidden=(32, 32), epochs=60, watch_every=0).fit(X, sample_weight=(y == 0).astype(float))
    assert (model.sample(100, random_state=0)[:, 1] > 0).mean() > 0.95


# ---- what is learned ----


@pytest.mark.once
def test_modes_are_found_and_separate():
    centres = np.array([[0.0, 0.0], [0.0, 3.0], [3.0, 0.0], [3.0, 3.0]])
    z = np.random.default_rng(0).standard_normal((1000, 2))
    X = centres[np.arange(1000) % 4] + 0.1 * z
    model = GAN(hidden=(32, 32), epochs=400, random_state=0).fit(X)
    found, share = modes_found(model.sample(500, random_state=1), centres, 0.1)
    assert found == 4 and share > 0.95
    assert model.history_[-1]["recall"] > 0.6 and model.history_[-1]["diversity"] > 0.5


@pytest.mark.once
@pytest.mark.parametrize("kind", [GAN, GMMN])
def test_classes_are_learned(kind):
    X, y = blobs()
    small = {**SMALL, "frequencies": 0} if kind is GAN else PLAIN
    model = kind(**{**small, "hidden": (32, 32), "epochs": 80, "ema_decay": 0.95}).fit(X, y)
    for label, sign in ((0, 1), (1, -1)):
        fake = model.sample(100, label, random_state=1)
        np.testing.assert_array_equal(np.sign(fake[:, 1]), sign)
        np.testing.assert_allclose(fake.mean(0), [3 * sign, 10 * sign], atol=1.5)
    assert 0.3 < (model.sample(200, random_state=2)[:, 1] > 0).mean() < 0.7  # drawn as often as in training


OTHERS = [{"loss": loss} for loss in (*LOSSES, "mmd")] + [
    {"loss": "hinge", "spectral_norm": True}, {"stddev_group": 4}, {"gamma": 0.0, "lambda_gp": 1.0},
    {"latent_signs": 6}, {"latent_signs": 0, "frequencies": 0}, {"discriminator_learning_rate": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("change", OTHERS, ids=str)
def test_every_choice_trains(change):
    X, y = blobs()
    start, end = (GAN(**{**SMALL, **change, "epochs": n}).fit(X) for n in (1, 3))
    moved = {name.split(".")[0] for name, a in weights(end).items() if (a != weights(start)[name]).any()}
    assert moved == {"generator"} | ({"discriminator"} if change.get("discriminator_learning_rate") != 0 else set())
    if "spectral_norm" in change:  # the vectors of the power iteration follow the weights
        vectors = [name for name in weights(end) if name.endswith(".v")]
        assert any((weights(end)[name] != weights(start)[name]).any() for name in vectors)
    assert np.isfinite(end.sample(5)).all() and {"generator_loss", "penalty"} < set(end.history_[-1])
    if change.get("loss") != "mmd":
        assert GAN(**{**SMALL, **change, "epochs": 1}).fit(X, y).sample(3, [0, 1, 1]).shape == (3, 2)


@pytest.mark.parametrize("architecture", ["auto", "resnet", "mlp"])
def test_images_come_back_as_they_were(architecture):
    X = np.random.default_rng(0).integers(0, 255, (40, 6, 5)).astype(np.uint8)
    small = {**SMALL, "width": 4, "epochs": 1, "architecture": architecture}
    model = GAN(**small).fit(X)
    samples = model.sample(3)
    assert samples.shape == (3, 6, 5) and samples.dtype == np.uint8
    assert (samples >= X.min(0)).all() and (samples <= X.max(0)).all()
    found = type(model.networks_["generator"]).__name__
    assert found == {"auto": "DCGANGenerator", "resnet": "ResNetGenerator", "mlp": "MlpGenerator"}[architecture]
    del small["frequencies"]
    assert GMMN(**small).fit(X).sample(2).shape == (2, 6, 5)


# ---- what a sample depends on ----


@pytest.mark.parametrize("images", [False, True])
def test_a_sample_does_not_depend_on_those_beside_it(images, monkeypatch):
    X, y = blobs()
    if images:
        X = np.random.default_rng(0).standard_normal((40, 6, 5, 2))
        y = y[:40]
    model = GAN(**SMALL, width=4).fit(X, y)
    many = model.sample(40, y[:40], random_state=3)
    exact = generant.show_config()["backend"] != "definition"  # NumPy's products depend on the batch

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-4)

    same(model.sample(7, y[:7], random_state=3), many[:7])
    monkeypatch.setattr("generant.models.generative.CHUNK", 6)
    same(model.sample(40, y[:40], random_state=3), many)
    assert (model.sample(40, y[:40], random_state=4) != many).any()


def test_the_averaged_generator_is_the_model():
    X, _ = blobs()
    last, averaged = (GAN(**SMALL, ema_decay=decay).fit(X) for decay in (0.0, 0.9))
    a, b = weights(last), weights(averaged)
    assert {n.split(".")[0] for n in a if (a[n] != b[n]).any()} == {"generator"}


@pytest.mark.parametrize("kind", [GAN, GMMN])
def test_a_file_holds_the_model(kind, tmp_path):
    X, y = blobs()
    model = kind(**(SMALL if kind is GAN else PLAIN)).fit(X, y)
    model.save(tmp_path / "model")
    loaded = kind.load(tmp_path / "model")
    assert loaded.get_params()["hidden"] in ((12, 14), [12, 14])
    np.testing.assert_array_equal(loaded.sample(20, random_state=1), model.sample(20, random_state=1))
    assert loaded.history_[-1]["recall"] == model.history_[-1]["recall"]
    assert loaded.partial_fit(X, y).n_iter_ == model.n_iter_ + 200 // 32


@pytest.mark.parametrize("change", [{}, {"loss": "hinge", "spectral_norm": True}], ids=str)
def test_a_killed_run_resumed_has_the_bits_of_one_that_was_not(change, tmp_path):
    X, y = blobs()
    params = {**SMALL, **change, "watch_every": 2, "checkpoint_every": 8}

    def kill(model, entry):
        if entry["epoch"] == 2:
            raise Killed

    whole = GAN(**params, checkpoint=tmp_path / "a").fit(X, y)
    with pytest.raises(Killed):
        GAN(**params, checkpoint=tmp_path / "b", callbacks=[kill]).fit(X, y)
    resumed = GAN(**params, checkpoint=tmp_path / "b").fit(X, y, resume=tmp_path / "b")
    for name, array in weights(whole).items():
        np.testing.assert_array_equal(weights(resumed)[name], array, err_msg=name)
    for a, b in zip(whole.history_, resumed.history_, strict=True):
        assert {k: v for k, v in a.items() if "per_second" not in k} == {
            k: v for k, v in b.items() if "per_second" not in k
        }


# ---- what is told ----


@pytest.mark.once
def test_collapse_is_warned_of_once():
    def collapse(model, entry):
        if entry["epoch"] >= 30:
            model._training.state["generator"]["ema"]["average"][:] = 0

    model = GAN(**{**SMALL, "hidden": (32, 32), "epochs": 36, "ema_decay": 0.9}, watch_every=2, callbacks=[collapse])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.fit(blobs()[0])
    told = [str(w.message) for w in told if w.category is RuntimeWarning]
    assert len(told) == 1 and re.match(r"GAN\.fit: epoch 34: mode collapse: the nearest-neighbour", told[0])
    assert model.history_[29]["diversity"] > 0.5 > model.history_[-1]["diversity"]


def test_watching_takes_place_when_it_should_and_changes_nothing():
    X, _ = blobs()
    often, never = (GAN(**{**SMALL, "epochs": 5}, watch_every=n).fit(X) for n in (2, 0))
    assert [e["epoch"] for e in often.history_ if "recall" in e] == [2, 4, 5]
    assert not any("recall" in e for e in never.history_)
    for name, array in weights(often).items():
        np.testing.assert_array_equal(weights(never)[name], array)
    assert "recall" not in GAN(**SMALL, watch_every=1).fit(np.ones((40, 2))).history_[0]  # nothing to compare


def test_early_stopping_watches_the_distance_to_rows_held_out():
    X, y = blobs()
    model = GAN(**{**SMALL, "epochs": 20}, early_stopping=True, n_iter_no_change=2, tol=10.0).fit(X, y)
    assert len(model.history_) == 3 and np.isfinite(model.history_[-1]["validation_loss"])


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"loss": "chi2"}, ValueError, "loss must be one of relativistic, .*, mmd, got 'chi2'"),
        ({"architecture": "vit"}, ValueError, "architecture must be one of auto, mlp, dcgan, resnet, got 'vit'"),
        ({"architecture": "dcgan"}, ValueError, r"needs images, n h w or n h w c, got X of shape \(200, 2\)"),
        ({"latent_dim": 0}, ValueError, "latent_dim must be at least 1, got 0"),
        ({"latent_signs": 7}, ValueError, "latent_signs must be at most latent_dim, got 7"),
        ({"hidden": (8, 0)}, ValueError, "hidden must be at least 1, got 0"),
        ({"gamma": -1.0}, ValueError, "gamma must lie in"),
        ({"gamma_final": float("nan")}, ValueError, "gamma_final must lie in"),
        ({"gamma_final": 0.0}, ValueError, "gamma_final must be positive"),
        ({"lambda_gp": "10"}, TypeError, "lambda_gp must be a number"),
        ({"n_critic": 0}, ValueError, "n_critic must be at least 1, got 0"),
        ({"frequencies": 1.5}, TypeError, "frequencies must be an integer"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
    ],
)
def test_bad_parameters_are_refused_before_training(params, error, message):
    model = GAN(**{**SMALL, **params})
    with pytest.raises(error, match=f"GAN.*{message}"):
        model.fit(blobs()[0])
    assert not hasattr(model, "networks_")


def test_other_refusals():
    X, y = blobs()
    with pytest.raises(ValueError, match=r"GAN\.fit: the critic of loss 'mmd' knows no classes"):
        GAN(**SMALL, loss="mmd").fit(X, y)
    with pytest.raises(ValueError, match=r"GAN\.fit: X has 1 value\(s\) that are NaN"):
        GAN(**SMALL).fit(np.where(np.arange(400).reshape(200, 2) == 5, np.nan, X))
    with pytest.raises(NotFittedError, match=r"GAN\.sample"):
        GAN().sample(3)
    for params, message in (({"kernel": "box"}, "kernel must be one of"), ({"bandwidths": ()}, "bandwidths must name"),
                            ({"bandwidths": (0.0,)}, "bandwidths must lie in")):
        with pytest.raises(ValueError, match=f"GMMN: {message}"):
            GMMN(**{**PLAIN, **params}).fit(X)


@pytest.mark.parametrize("kind", [GAN, GMMN])
def test_parameters_are_stored_and_no_more(kind):
    model = kind(latent_dim=3, random_state=1)
    params = model.get_params()
    assert params["latent_dim"] == 3 and set(vars(model)) == set(params)
    assert kind(**params).get_params() == params
