"""The losses of adversarial training: functions of logits (n,), and penalties on a discriminator's gradient.

A loss is a pair of scalars, what the discriminator minimises and what the generator minimises; `LOSSES` has them by
name. A penalty differentiates the discriminator in its input and is differentiated again in the weights, which nested
traces give for nothing. Everything is made of ops, for arrays and traced arrays alike. Means are over samples, so a
loss does not depend on the batch size. Not here: networks (generant.nn), training (generant.models), and the maximum
mean discrepancy, which needs no discriminator (moment_matching.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .. import autograd, ops

__all__ = [
    "LOSSES", "Loss", "gradient_penalty", "hinge_discriminator", "hinge_generator", "least_squares_discriminator",
    "least_squares_generator", "logits_and_penalty", "non_saturating_discriminator", "non_saturating_generator", "r1",
    "r2", "relativistic_discriminator", "relativistic_generator", "wasserstein_discriminator", "wasserstein_generator",
]  # fmt: skip

TINY = 1e-12  # under the root of |g|: its derivative is finite where a discriminator is constant


class Loss(NamedTuple):
    """discriminator(real_logits, fake_logits) and generator(fake_logits, real_logits), each a scalar to minimise.

    Only a loss with `paired` reads real_logits in the generator's step; elsewhere None may stand for them, and the
    forward pass over real samples is saved.
    """

    discriminator: Callable[[Any, Any], Any]
    generator: Callable[..., Any]
    paired: bool = False


def _mean_softplus(x: Any, scale: float = 1.0) -> Any:
    return ops.mean(ops.softplus(x if scale == 1.0 else ops.affine(x, scale=scale)))


def _gap(function: str, a: Any, b: Any) -> Any:
    """a - b, sample by sample."""
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(f"{function}: real and fake logits come in pairs, got shapes {a.shape} and {b.shape}")
    return ops.sub(a, b)


def relativistic_discriminator(real: Any, fake: Any) -> Any:
    """mean_i softplus(fake_i - real_i): every real sample is to look more real than the fake one it is paired with.

    real, fake (n,) logits of equally many samples. Returns a scalar, log 2 where nothing is told apart. Raises
    ValueError for other shapes. Jolicoeur-Martineau (2018), sec. 4.1; the loss of R3GAN, Huang et al. (2024), eq. 2.
    """
    return _mean_softplus(_gap("relativistic", fake, real))


def relativistic_generator(fake: Any, real: Any) -> Any:
    """mean_i softplus(real_i - fake_i): the discriminator's loss with the parts exchanged.

    real, fake (n,) logits. No generator gains by moving all mass to one good mode: each sample is compared with data
    (Sun et al. 2020).
    """
    return _mean_softplus(_gap("relativistic", real, fake))


def non_saturating_discriminator(real: Any, fake: Any) -> Any:
    """mean softplus(-real) + mean softplus(fake): -log D(x) - log(1 - D(G(z))) for D = sigmoid(logit).

    real, fake (n,) logits. Returns a scalar, 2 log 2 where nothing is told apart. Goodfellow et al. (2014), eq. 1.
    """
    return ops.add(_mean_softplus(real, -1.0), _mean_softplus(fake))


def non_saturating_generator(fake: Any, real: Any = None) -> Any:
    """mean softplus(-fake) = -log D(G(z)), whose gradient does not vanish where D is sure. Goodfellow et al. (2014)."""
    return _mean_softplus(fake, -1.0)


def least_squares_discriminator(real: Any, fake: Any) -> Any:
    """mean (real - 1)^2 / 2 + mean fake^2 / 2.

    real, fake (n,) logits. Returns a scalar. Mao et al. (2017), eq. 9 (a = 0, b = c = 1).
    """
    distance = ops.mean(ops.square(ops.affine(real, shift=-1.0)))
    return ops.affine(ops.add(distance, ops.mean(ops.square(fake))), scale=0.5)


def least_squares_generator(fake: Any, real: Any = None) -> Any:
    """mean (fake - 1)^2 / 2. Mao et al. (2017), eq. 9."""
    return ops.affine(ops.mean(ops.square(ops.affine(fake, shift=-1.0))), scale=0.5)


def hinge_discriminator(real: Any, fake: Any) -> Any:
    """mean max(1 - real, 0) + mean max(1 + fake, 0).

    real, fake (n,) logits. Returns a scalar. Lim and Ye (2017), sec. 2; the loss of spectrally normalised networks.
    """
    missed = ops.mean(ops.relu(ops.affine(real, scale=-1.0, shift=1.0)))
    return ops.add(missed, ops.mean(ops.relu(ops.affine(fake, shift=1.0))))


def hinge_generator(fake: Any, real: Any = None) -> Any:
    """-mean fake. Lim and Ye (2017)."""
    return ops.affine(ops.mean(fake), scale=-1.0)


def wasserstein_discriminator(real: Any, fake: Any) -> Any:
    """mean fake - mean real: minus the distance estimate of a 1-Lipschitz critic, kept so by gradient_penalty.

    real, fake (n,) critic values. Returns a scalar. Arjovsky et al. (2017), eq. 2.
    """
    return ops.sub(ops.mean(fake), ops.mean(real))


def wasserstein_generator(fake: Any, real: Any = None) -> Any:
    """-mean fake. Arjovsky et al. (2017), algorithm 1."""
    return ops.affine(ops.mean(fake), scale=-1.0)


LOSSES: dict[str, Loss] = {
    "relativistic": Loss(relativistic_discriminator, relativistic_generator, paired=True),
    "non_saturating": Loss(non_saturating_discriminator, non_saturating_generator),
    "least_squares": Loss(least_squares_discriminator, least_squares_generator),
    "hinge": Loss(hinge_discriminator, hinge_generator),
    "wasserstein": Loss(wasserstein_discriminator, wasserstein_generator),
}


# ---- penalties ------------------------------------------------------------------------------------------------------


def _logits_and_squares(discriminator: Callable, x: Any, labels: Any) -> tuple[Any, Any]:
    """D(x) (n,) and |grad_x D(x_i)|^2 (n,), from one forward pass."""
    logits, pull = autograd.vjp(lambda x: discriminator(x) if labels is None else discriminator(x, labels), x)
    slope = pull(ops.full_like(logits, value=1.0))[0]
    if slope is None:  # a discriminator that does not look at x
        return logits, ops.full_like(logits, value=0.0)
    return logits, ops.sum(ops.square(slope), axis=tuple(range(1, len(x.shape))))


def logits_and_penalty(discriminator: Callable, x: Any, labels: Any = None) -> tuple[Any, Any]:
    """(D(x) (n,), mean_i |grad_x D(x_i)|^2): the logits a loss needs and r1 or r2 from the same forward pass.

    A step that calls r1 beside the loss runs the discriminator forwards and backwards once more for the same numbers.
    """
    logits, squares = _logits_and_squares(discriminator, x, labels)
    return logits, ops.mean(squares)


def r1(discriminator: Callable, real: Any, labels: Any = None) -> Any:
    """mean_i |grad_x D(real_i)|^2: the zero-centred penalty on data. The loss adds gamma / 2 times it.

    discriminator(x[, labels]) -> logits (n,); real (n, ...); labels (n,) int64 or None. Returns a scalar,
    differentiable in the weights. A discriminator that mixes samples (minibatch_stddev) is differentiated through that
    too, as in published code. Mescheder, Geiger, Nowozin (2018), eq. 9.
    """
    return logits_and_penalty(discriminator, real, labels)[1]


def r2(discriminator: Callable, fake: Any, labels: Any = None) -> Any:
    """mean_i |grad_x D(fake_i)|^2: r1 on generated samples. The loss adds gamma / 2 times it.

    Mescheder, Geiger, Nowozin (2018), eq. 10; both together in R3GAN, Huang et al. (2024), sec. 2.2.
    """
    return logits_and_penalty(discriminator, fake, labels)[1]


def gradient_penalty(
    discriminator: Callable, real: Any, fake: Any, u: Any, labels: Any = None, *, center: float = 1.0
) -> Any:
    """mean_i (|grad_x D(x_i)| - center)^2 at x_i = u_i real_i + (1 - u_i) fake_i, times lambda_gp (10) in the loss.

    discriminator(x[, labels]) -> logits (n,); real, fake (n, ...); u (n,) uniform numbers in [0, 1]; labels (n,) int64
    or None. Returns a scalar, differentiable in the weights. center=1 is WGAN-GP, Gulrajani et al. (2017), eq. 3;
    center=0 the zero-centred penalty of Thanh-Tung et al. (2019). Raises ValueError for shapes that do not fit.
    """
    if tuple(real.shape) != tuple(fake.shape) or tuple(u.shape) != (real.shape[0],):
        raise ValueError(
            f"gradient_penalty: real, fake (n, ...) and u (n,) must fit, got {real.shape}, {fake.shape} and {u.shape}"
        )
    mix = ops.reshape(u, shape=(real.shape[0],) + (1,) * (len(real.shape) - 1))
    x = ops.add(fake, ops.mul(mix, ops.sub(real, fake)))
    squares = _logits_and_squares(discriminator, x, labels)[1]
    if center == 0:
        return ops.mean(squares)
    length = ops.sqrt(ops.affine(squares, shift=TINY))
    return ops.mean(ops.square(ops.affine(length, shift=-center)))
