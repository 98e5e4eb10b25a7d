"""What is measured at which size, and the goals: data that the printed tables are checked against."""

from __future__ import annotations

from case import Case, family
from cases_diffusion import DIFFUSION
from cases_models import MODELS
from cases_network import NETWORK
from work import (
    Adam,
    Ancestral,
    Chain,
    Ddim,
    Heun,
    Import,
    Launch,
    LinearBf16,
    LinearSilu,
    Matmul,
    Normals,
    QSample,
    Small,
)
from work_metrics import (
    FrechetFeatures,
    FrechetMoments,
    FrechetSelf,
    Kid,
    KidAccuracy,
    KidAll,
    KidExact,
    Prdc,
    Sinkhorn,
    SinkhornDivergence,
)
from work_pairwise import (
    KernelMatvec,
    KernelSum,
    Knn,
    LogSumExp,
    MmdGradient,
    Nearest,
    OffsetDistances,
    SelfKnn,
    SmallPairs,
)

IMAGES, SMALL = (64, 3, 64, 64), (1, 3, 32, 32)
SHAPES = [(128, 256, 256), (500, 256, 256), (128, 784, 512)]
N, NS = 10_000, 1e-9
FLAT = {"goals": {"torch": 20, "KeOps": 10}, "pair": 0.35 * NS, "memory": 32e6}
WIDE = {"goals": {"torch": 9, "torch in chunks": 2.5, "KeOps": 25}, "pair": 1.0 * NS, "memory": 32e6}
CASES = [
    *family(
        "Products",
        *(Case(f"matmul {n}", Matmul(n, n, n), {"torch": 1.1, "numpy": 1.0}, peak=0.88) for n in (1024, 2048, 4096)),
        *(Case("matmul {}x{}x{}".format(*s), Matmul(*s), {"torch": 1.0, "numpy": 1.0}) for s in SHAPES),
        *(Case("linear+silu {}x{}x{}".format(*s), LinearSilu(*s), {"torch": 1.4}) for s in SHAPES),
        Case("linear, bf16, 2048", LinearBf16(2048, 2048, 2048), {"generant float32": 1.6}),
    ),
    *NETWORK,
    *family(
        "Random numbers and diffusion steps",
        Case("normal 16 M", Normals(1 << 24), {"torch": 8, "numpy": 15}),
        Case("q_sample 64x3x64x64", QSample(IMAGES), {"torch": 8}),
        Case("noisy step 64x3x64x64", Ancestral(IMAGES), {"torch": 8}),
        Case("DDIM step 64x3x64x64", Ddim(IMAGES), {"torch": 4}),
        Case("Heun step 64x3x64x64", Heun(IMAGES), {"torch": 2.5}),
        Case("noisy step 1x3x32x32", Ancestral(SMALL), {"torch": 5}),
        Case("DDIM step 1x3x32x32", Ddim(SMALL), {"torch": 5}),
        Case("Heun step 1x3x32x32", Heun(SMALL), {"torch": 5}),
    ),
    *DIFFUSION,
    *MODELS,
    *family(
        "Optimiser",
        Case("Adam 40 x 64x64", Adam(40, (64, 64)), {"torch": 25, "torch fused": 8}),
        Case("Adam 10 M", Adam(1, (10_000_000,)), {"torch fused": 1.0}),
    ),
    *family(
        "Sums over all pairs, Gaussian kernel",
        *(
            Case(f"{name} 10k x 10k, d={d}", work(N, d), **(WIDE if d == 64 else FLAT))
            for name, work in (("kernel_sum", KernelSum), ("kernel_matvec", KernelMatvec), ("logsumexp", LogSumExp))
            for d in (2, 3, 64)
        ),
        Case("MMD^2, 5 bandwidths, and gradient, 4096 x 4096, d=64", MmdGradient(4096, 64), {"torch": 25}, memory=32e6),
    ),
    *family(
        "Searches over all pairs",
        Case("knn k=5 10k x 10k, d=2", Knn(N, 2), {"sklearn brute": 4}),
        Case("knn k=5 10k x 10k, d=64", Knn(N, 64), {"sklearn brute": 4}),
        Case("knn k=5 10k x 10k, d=512", Knn(N, 512), {"sklearn brute": 2.5}),
        Case("knn k=5 of 10k in themselves, d=64", SelfKnn(N, 64), {"sklearn brute": 7}),
        Case("nearest of 512 for 65,536, d=64", Nearest(65_536, 64), {"torch": 5, "sklearn": 5}),
    ),
    *family(
        "Scores from features",
        Case("prdc 10k x 2048", Prdc(N, 2048), {"prdc": 5}, memory=200e6),
        Case("kid 100 x 1000, d=2048", Kid(N, 2048), {"torch": 1.6, "numpy": 1.0}),
        Case("frechet_distance of moments, d=2048", FrechetMoments(2048), {"scipy sqrtm": 5}),
    ),
    *family(
        "Entropic transport, log domain",
        Case("sinkhorn 2000 x 2000, 100 iterations, d=2", Sinkhorn(2000, 2), {"POT": 45}),
        Case("sinkhorn 2000 x 2000, 100 iterations, d=64", Sinkhorn(2000, 64), {"POT": 12}),
    ),
    *family(
        "Overhead",
        Case("launch of no work", Launch(), seconds=0.3e-6),
        Case("tanh (4, 8)", Small("tanh"), seconds=2.5e-6),
        Case("add (4, 8)", Small("add"), seconds=2.5e-6),
        *(
            Case(f"{op} 16 x 16", SmallPairs(op), seconds=15e-6)
            for op in ("kernel_sum", "kernel_matvec", "logsumexp", "softmax_matmul", "argmin", "knn")
        ),
        Case("value and gradient, 20 x (linear, tanh)", Chain(), {"torch": 1 / 0.6}),
        Case("import generant", Import("generant"), seconds=10e-3),
        Case("import generant.ops", Import("generant.ops")),
    ),
    *family(
        "Accuracy from float32 data, largest relative error unless said otherwise",
        *(
            Case(f"distance to the nearest of 2000, d=64, offset {o}", OffsetDistances(o), error=1e-6, timed=False)
            for o in (0, 10, 100, 1000)
        ),
        Case("KID, n=500, d=2048", KidAccuracy(500, 2048), error=2e-10, timed=False),
        Case("KID, n=2000, d=2048", KidAccuracy(2000, 2048), error=2e-10, timed=False),
        Case('KID with precision="exact", n=500, d=2048', KidExact(500, 2048), error=1e-7, timed=False),
        Case("Frechet distance of a sample and itself, 3000 x 256", FrechetSelf(3000, 256), error=1e-12, timed=False),
        Case("Frechet distance of a sample and itself, 200 x 256", FrechetSelf(200, 256), error=1e-12, timed=False),
    ),
    *family(
        "Large, every call made once",
        Case("prdc 50k x 2048", Prdc(50_000, 2048), seconds=300, memory=600e6, once=True),
        Case("kid of all pairs, 50k x 2048", KidAll(50_000, 2048), once=True),
        Case(
            "frechet_distance of 50k x 2048 features",
            FrechetFeatures(50_000, 2048),
            {"np.cov, scipy sqrtm": 2.5},
            once=True,
        ),
        Case(
            "sinkhorn divergence 10k x 10k, d=64",
            SinkhornDivergence(N, 64),
            {"geomloss tensorized": 6, "geomloss KeOps": 60},
            once=True,
        ),
    ),
]
