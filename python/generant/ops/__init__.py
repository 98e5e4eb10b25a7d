"""The ops: functions of NumPy arrays (or torch CPU tensors, or traced arrays), each declared once in its family's file.

Everything that is not an array is keyword-only. Ops are differentiable to any order unless they say otherwise.
"""

from ._table import TABLE
from .activation import *
from .arithmetic import *
from .attention import *
from .batch_norm import *
from .conv import *
from .diffusion import *
from .flat import *
from .gather import *
from .group_norm import *
from .kernel_matvec import *
from .layout import *
from .logsumexp import *
from .loss import *
from .matmul import *
from .neighbours import *
from .norm import *
from .norm_conv import *
from .optim import *
from .pairwise import *
from .random import *
from .reduce import *
from .resample import *
from .softmax import *
from .transport import *
from .upsample_conv import *
from .winograd import *

globals().update(TABLE)  # rows that are generated (silu_bwd, ...) are ops like any other
__all__ = sorted([*TABLE, "pack_"])
