"""What a denoiser is fitted to: which target, at which noise levels, with which weight.

One idea: a loss is three independent choices. The target is a linear combination of data and noise (targets), the
levels are drawn from a key (times), and the weight is a function of the level on the loss of the denoised D
(weightings), converted exactly to the loss of what the network predicts. Not here: the ops underneath, which add the
noise and take the loss without storing either (ops.q_sample, ops.denoising_loss), and training loops.
"""

from .edm import Edm
from .importance import ImportanceSampler
from .learned_sigma import hybrid_loss, variational_terms
from .objective import Objective
from .pairing import ot_pairing
from .targets import Target, target
from .times import TIMES, flow_level, logit_normal, lognormal, mode, uniform
from .uncertainty import Uncertainty, uncertain
from .weightings import WEIGHTINGS

__all__ = [
    "TIMES", "WEIGHTINGS", "Edm", "ImportanceSampler", "Objective", "Target", "Uncertainty", "flow_level",
    "hybrid_loss", "logit_normal", "lognormal", "mode", "ot_pairing", "target", "uncertain", "uniform",
    "variational_terms",
]  # fmt: skip
