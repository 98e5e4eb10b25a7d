"""What the quality tables say of given figures, and that results survive an interruption: pytest benchmarks"""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import quality
import quality_tables as tables


def _results(name, **subjects):
    entry = lambda seeds: {"settings": {}, "seeds": {str(i): {"seconds": 1.0, **s} for i, s in enumerate(seeds)}}
    return {"set": name, "subjects": {k.replace("_", " "): entry(v) for k, v in subjects.items()}}


def test_a_row_has_means_and_spreads_and_leaves_out_what_was_not_measured():
    found = _results("digits", VAE=[{"svc": 0.96, "fit_seconds": 10.0}, {"svc": 0.98, "fit_seconds": 20.0}])
    row = tables.table(found)[-1].split("|")
    assert [c.strip() for c in row[1:6]] == ["VAE", "2", "", "0.9700 ± 0.0141", ""] and row[-3].strip() == "15"


def test_goals_are_met_missed_or_not_measured():
    found = _results(
        "digits", VAE=[{"accuracy": 0.985, "svc": 0.96, "nats": 90.0}], GAN=[{"svc": 0.94}],
        Diffusion=[{"accuracy": 0.97, "svc": 0.98, "nats": 70.0}], Gaussian_mixture=[{"nats": 91.0}],
    )  # fmt: skip
    accuracy, best, each, nats = tables.digits_goals(found)
    assert "Diffusion 0.9700, **MISSED**" in accuracy and "Diffusion 0.9800, met" in best
    assert "GAN 0.9400" in each and "**MISSED**" in each
    assert "goal >= 91.0: VAE 90.0, **MISSED**" in nats
    assert "not measured" in tables.digits_goals(_results("digits", VAE=[{"svc": 0.96}]))[0]


def test_a_likelihood_is_equal_within_the_spread_of_seeds():
    ours = [{"nll": 80.0}, {"nll": 80.4}]
    of = lambda *theirs: tables.mnist_goals(
        {**_results("mnist", VAE_of_binary_pixels=ours, its_twin_in_torch=[{"nll": v} for v in theirs])}
    )
    assert "0.20 apart, spread 0.40" in of(80.3, 80.5)[0] and "met." in of(80.3, 80.5)[0]
    assert "MISSED" in of(81.0, 81.1)[0] and "not measured" in of(80.0)[0]


def test_every_seed_counts_for_the_modes():
    good = {"modes": 25, "near": 0.97}
    assert "10 of 10 seeds" in tables.toys_goals(_results("toys", **{"GAN: grid25": [good] * 10}))[0]
    found = tables.toys_goals(_results("toys", **{"GAN: grid25": [good] * 9 + [{"modes": 25, "near": 0.94}]}))[0]
    assert "9 of 10 seeds, 25 modes and 94.0% at the least, **MISSED**" in found


def test_results_are_on_disk_after_each_fit_and_forgotten_with_their_settings(tmp_path):
    path = tmp_path / "digits.json"
    quality.Results(path, "digits").add("VAE", {"hidden": (2, 1)}, 0, {"svc": 0.5}, ["VAE"])
    again = quality.Results(path, "digits")
    assert again.has("VAE", {"hidden": (2, 1)}, 0) and not again.has("VAE", {"hidden": (2, 1)}, 1)
    again.add("VAE", {"hidden": (3, 1)}, 1, {"svc": 0.6}, ["VAE"])
    assert list(json.loads(path.read_text())["subjects"]["VAE"]["seeds"]) == ["1"]


def test_the_torch_twin_has_as_many_parameters():
    pytest.importorskip("torch")
    import torch_vae

    from generant import models, nn

    x, y = quality.sets.np.zeros((10, 28, 28), "f4"), quality.sets.np.arange(10)
    kept = {k: v for k, v in quality.NLL.items() if k != "model"} | {"epochs": 1, "batch_size": 5}
    ours = models.VAE(**kept, random_state=0).fit(x, y).networks_["vae"]
    theirs = torch_vae.trained(x, y, kept, 0)
    assert sum(p.size for p in nn.named_parameters(ours).values()) == sum(p.numel() for p in theirs.parameters())
    assert torch_vae.importance_nll(theirs, x[:2], y[:2], 3) > 0
