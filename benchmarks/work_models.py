"""Work of whole models: training steps, forward to averaged weights, and sampling. See work.py for what work is.

A contender gets our first weights, the same batches and, as long as it is judged, the same noise: ours is drawn inside
from keys, so a rival is given the numbers of those keys; afterwards it draws its own. What is judged is the loss of
every one of the first steps, against a float64 twin in torch (torch_models.py), which all cases therefore need. The
error is that of the first loss, or a hundredth of the largest of the curve if that is more: a tolerance of 1e-5 is 1e-5
for one step and 1e-3 for a curve. Sampling is judged by its samples.

No weight is zero at first, as some are before training: what they hide could not be compared. Not here: data, epochs,
and what models do around a step.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from work import Family, normal, relative

BATCHES = 4  # that are trained on in turn
FOLDER = "GENERANT_BENCHMARK_FOLDER"  # of the contenders of one case


def awakened(network: Any) -> Any:
    """The network, its parameters that are zero replaced by normal numbers of standard deviation 0.05."""
    from generant import nn

    for i, parameter in enumerate(nn.named_parameters(network).values()):
        if not parameter.any():
            parameter[...] = normal(parameter.shape, 1000 + i, 0.05)
    return network


def losses_of(work: Any, a: Any, step: Any) -> Any:
    """A call that does step(k), a tuple of losses, and returns those of the steps that are judged, the first.

    k counts on where inputs serve again: what is set up anew for the timing is past the steps whose noise is given.
    """
    a.steps, losses = getattr(a, "steps", 0), []

    def call():
        found = step(a.steps)
        if a.steps < work.checked_calls:
            losses.append(found)
        a.steps += 1
        return losses

    return call


def recorded(a: Any, step: Any, state: Any, **options: Any) -> Any:
    """Ours: the step as a plan, which the note tells of but does not keep alive."""
    from generant import recording

    found = recording.record(step, state, **options)
    a.recorded = weakref.ref(found)
    return found


@dataclass(frozen=True)
class Model(Family):
    """Weights, batches and noise, and how losses are judged. A subclass has network(), ours() and a twin."""

    tolerance, keeps, clip, decay = 1e-5, True, float("inf"), None

    def lacks(self):
        return "" if find_spec("torch") else "torch is not installed, whose float64 is the reference"

    def weights(self):
        """Path -> array of the first weights."""
        from generant import nn

        return nn.state(self.network())

    def learner(self, network):
        """Ours: the network in one buffer with Adam, the clipping and the average of this work."""
        from generant import nn, optim

        def adam(parameters):
            return optim.Adam(parameters, lr=self.lr, beta1=self.beta1, beta2=self.beta2)

        average = None if self.decay is None else lambda p: optim.EMA(p, decay=self.decay)
        return nn.Learner(network, adam, clip=self.clip, ema=average)

    def note(self, result, a):
        if not hasattr(a, "recorded"):
            return ""
        plans = list(a.recorded().plans.values())
        return "; ".join(f"plan of {plan.arena / 1e6:.3g} MB, without {plan.eager / 1e6:.3g} MB" for plan, _ in plans)

    def exact(self, a):
        """What the float64 twin says. Where the runner lends a folder, the first contender leaves it to the others."""
        import torch_models

        kept = Path(os.environ[FOLDER], "exact.npy") if FOLDER in os.environ else None
        if kept is not None and kept.exists():
            return np.load(kept)
        found = torch_models.exact(a, self)
        if kept is not None:
            np.save(kept, found)
        return found

    def error(self, result, a):
        exact = self.exact(a)
        losses = np.array([[float(v) for v in step] for step in result], np.float64)
        if losses.shape != exact.shape or not np.isfinite(losses).all():
            return float("inf")
        off = np.abs(losses / exact - 1).max(axis=1)
        return float(max(off[0], off.max() / 100))

    lr, beta1, beta2 = 1e-3, 0.9, 0.999


@dataclass(frozen=True)
class MlpTraining(Model):
    """Three layers, silu, the mean squared error, Adam: what is left where the arithmetic is small."""

    n: int = 256
    width: int = 128
    checked_calls = 20

    def small(self):
        return replace(self, n=16, width=32)

    def network(self):
        from generant import nn, random

        return awakened(nn.MLP(self.width, self.width, random.Stream(0), hidden=(self.width,) * 2))

    def inputs(self):
        shape = (BATCHES, self.n, self.width)
        return SimpleNamespace(x=normal(shape), target=normal(shape, 1), weights=self.weights())

    def ours(self, a):
        from generant import nn, ops

        learner = self.learner(self.network())

        def loss(net, x, target):
            return ops.mse(net(x), target)

        def step(state, x, target):
            value, gradients = nn.value_and_grad(loss)(learner.network(state), x, target)
            learner.update(state, gradients)
            return (value,)

        plan = recorded(a, step, learner.state)
        return losses_of(self, a, lambda k: plan(a.x[k % BATCHES], a.target[k % BATCHES]))


@dataclass(frozen=True)
class VaeTraining(Model):
    """The negative bound of a VAE with Bernoulli likelihood on the UCI digits, Adam."""

    n: int = 256
    latent: int = 16
    hidden: tuple = (256, 128)
    d = 64
    checked_calls = 20

    def small(self):
        return replace(self, n=16, latent=4, hidden=(32, 16))

    def network(self):
        from generant import nn, random

        stream = random.Stream(0)
        encoder = nn.MLP(self.d, 2 * self.latent, stream, hidden=self.hidden)
        return awakened({"encoder": encoder, "decoder": nn.MLP(self.latent, self.d, stream, hidden=self.hidden[::-1])})

    def inputs(self):
        from generant import random
        from generant.data import digits

        x, keys = digits().train, random.Stream(1)
        x = np.resize(x, (BATCHES, self.n, self.d))
        noise = [random.normal(keys.at(k), (self.n, self.latent)) for k in range(self.checked_calls)]
        return SimpleNamespace(x=x, noise=noise, keys=keys, weights=self.weights())

    def ours(self, a):
        from generant import nn, ops

        learner, shape = self.learner(self.network()), (self.n, self.latent)

        def bound(net, x, key):
            mu, logvar = ops.split(net["encoder"](x), sections=2)
            z = ops.add(mu, ops.mul(ops.exp(ops.affine(logvar, scale=0.5)), ops.normal(key, shape=shape)))
            surprise = ops.bce_with_logits(net["decoder"](z), x)
            return ops.add(ops.affine(surprise, scale=float(self.d)), ops.mean(ops.gaussian_kl(mu, logvar)))

        def step(state, x, key):
            value, gradients = nn.value_and_grad(bound)(learner.network(state), x, key)
            learner.update(state, gradients)
            return (value,)

        plan = recorded(a, step, learner.state)
        return losses_of(self, a, lambda k: plan(a.x[k % BATCHES], a.keys.at(k)))


@dataclass(frozen=True)
class GanTraining(Model):
    """A step of the discriminator, then one of the generator: non-saturating loss, R1 on the data, Adam for both.

    Radford et al. (2016) without normalisation; Mescheder et al. (2018). The generator gets z of its own.
    """

    n: int = 64
    size: int = 28
    latent: int = 100
    width: int = 64
    gamma = 10.0
    lr, beta1 = 2e-4, 0.5
    checked_calls = 20

    def small(self):
        return replace(self, n=4, size=8, latent=8, width=4)

    def network(self):
        from generant import nn, random

        stream, shape = random.Stream(0), (self.size, self.size, 1)
        generator = nn.DCGANGenerator(self.latent, shape, stream, width=self.width)
        discriminator = nn.DCGANDiscriminator(shape, stream, width=self.width)
        return awakened({"generator": generator, "discriminator": discriminator})

    def inputs(self):
        from generant import random

        x, keys = normal((BATCHES, self.n, self.size, self.size, 1), scale=0.5), random.Stream(1)
        noise = [random.normal(keys.at(i), (self.n, self.latent)) for i in range(2 * self.checked_calls)]
        return SimpleNamespace(x=x, noise=noise, keys=keys, weights=self.weights())

    def ours(self, a):
        from generant import nn, ops
        from generant.models import adversarial

        learners = {name: self.learner(part) for name, part in self.network().items()}
        g_learner, d_learner = learners["generator"], learners["discriminator"]
        loss, shape = adversarial.LOSSES["non_saturating"], (self.n, self.latent)

        def of_discriminator(d, real, fake):
            logits, penalty = adversarial.logits_and_penalty(d, real)
            return ops.add(loss.discriminator(logits, d(fake)), ops.affine(penalty, scale=self.gamma / 2))

        def of_generator(g, d, key):
            return loss.generator(d(g(ops.normal(key, shape=shape))))

        def step(state, real, key, other):
            g = g_learner.network(state["generator"])
            fake = g(ops.normal(key, shape=shape))
            d = d_learner.network(state["discriminator"])
            d_loss, gradients = nn.value_and_grad(of_discriminator)(d, real, fake)
            d_learner.update(state["discriminator"], gradients)
            d = d_learner.network(state["discriminator"])
            g_loss, gradients = nn.value_and_grad(of_generator)(g, d, other)
            g_learner.update(state["generator"], gradients)
            return d_loss, g_loss

        plan = recorded(a, step, {name: learner.state for name, learner in learners.items()})
        return losses_of(self, a, lambda k: plan(a.x[k % BATCHES], a.keys.at(2 * k), a.keys.at(2 * k + 1)))


@dataclass(frozen=True)
class DenoiserTraining(Model):
    """The loss of Karras et al. (2022) with levels and noise drawn in the step, clipping, Adam and an average."""

    n: int
    size: int
    c: int
    channels: tuple
    blocks: int = 1
    attention: tuple = (-1,)
    features: str = "fourier"
    steps: int = 20
    lr: float = 1e-3
    clip, decay = 1.0, 0.999

    @property
    def checked_calls(self):
        return self.steps

    def small(self):
        return replace(self, n=4, size=min(self.size, 8), channels=(8, 16), attention=(-1,), steps=3)

    def network(self):
        from generant import nn, random

        return awakened(nn.UNet2D(self.c, random.Stream(0), **self.options()))

    def options(self):
        """Of the network, ours and torch's."""
        names = "channels", "blocks", "attention", "features"
        return {name: getattr(self, name) for name in names}

    def batches(self):
        return normal((BATCHES, self.n, self.size, self.size, self.c), scale=0.5)

    def inputs(self):
        from generant import diffusion, random

        edm, x, levels, keys = diffusion.Edm(), self.batches(), random.Stream(1), random.Stream(2)
        sigma = [edm.training_sigmas(levels.at(k), self.n) for k in range(self.checked_calls)]
        noise = [random.normal(keys.at(k), x.shape[1:]) for k in range(self.checked_calls)]
        return SimpleNamespace(x=x, sigma=sigma, noise=noise, levels=levels, keys=keys, weights=self.weights())

    def ours(self, a):
        from generant import diffusion, nn, ops

        learner, edm = self.learner(self.network()), diffusion.Edm()
        weight = np.ones(self.n, np.float32)

        def loss(net, x, key, in_x, in_z, c_noise, b_x, b_z, weight):
            said = net(ops.q_sample(x, in_x, in_z, key), c_noise)
            return ops.mean(ops.denoising_loss(said, x, b_x, b_z, weight, key))

        def step(state, *inputs):
            value, gradients = nn.value_and_grad(loss)(learner.network(state), *inputs)
            learner.update(state, gradients)
            return (value,)

        plan = recorded(a, step, learner.state)

        def numbered(k):
            sigma = edm.training_sigmas(a.levels.at(k), self.n)
            in_x, in_z, b_x, b_z = (c.astype(np.float32) for c in edm.mixtures(sigma))
            c_noise = edm.scalings(sigma)[3].astype(np.float32)
            learner.prepare()
            return plan(a.x[k % BATCHES], a.keys.at(k), in_x, in_z, c_noise, b_x, b_z, weight)

        return losses_of(self, a, numbered)


@dataclass(frozen=True)
class Denoising(DenoiserTraining):
    """The network alone, once."""

    tolerance, checked_calls = 1e-4, 3  # the first records, the second is compared with the network itself

    def inputs(self):
        x, c_noise = self.batches()[0], normal(self.n, 1)
        return SimpleNamespace(x=x, c_noise=c_noise, weights=self.weights())

    def planned(self, a):
        """Ours: the network as a plan, network(x, c_noise)."""
        from generant import nn

        network = self.network()
        arrays = nn.state(network)

        def call(state, x, c_noise):
            return nn.look_alike(network, {id(array): state[path] for path, array in arrays.items()})(x, c_noise)

        return recorded(a, call, arrays, frozen=arrays)

    def ours(self, a):
        network = self.planned(a)
        return lambda: network(a.x, a.c_noise)

    def error(self, result, a):
        return relative(result, self.exact(a))


@dataclass(frozen=True)
class Sampling(Denoising):
    """Euler's steps from sigma 80 to 0.002, then to 0: from noise to images."""

    n_steps: int = 5

    def sigmas(self):
        from generant.diffusion import karras_sigmas

        return karras_sigmas(self.n_steps)

    def inputs(self):
        x = normal(self.batches().shape[1:], 1, 80.0)
        return SimpleNamespace(x=x, sigmas=self.sigmas(), weights=self.weights())

    def ours(self, a):
        from generant import diffusion

        edm, network, plan = diffusion.Edm(), self.planned(a), diffusion.SAMPLERS["euler"](a.sigmas)
        predict = edm.predictor(lambda x, c_noise, labels: network(x, c_noise))
        return lambda: diffusion.sample(predict, a.x, plan, prediction=edm)
