"""`generant lab`: what it measures, prints and writes.

Seen to fail: with status 0 whatever is missed, with samplers that add noise among the orders, with the denoiser in
place of the consistency map, with options that are not passed on, with plans of more calls than were allowed.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import io
from generant.cli import lab, main
from generant.diffusion.samplers import SAMPLERS, euler, lms, unipc

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def few(monkeypatch):
    """Few samplers, so that a run takes a moment."""

    def choose(**samplers):
        monkeypatch.setattr(
            lab, "_every_sampler", lambda: iter([(title, name, call) for title, (name, call) in samplers.items()])
        )

    return choose


def test_every_sampler_has_a_row_and_stated_options_are_used():
    rows = list(lab._every_sampler())
    assert {name for _, name, _ in rows} == {*SAMPLERS, "flow_euler", "flow_heun", "flow_rk4"}
    assert len({title for title, _, _ in rows}) == len(rows)
    calls = {title: call for title, _, call in rows}
    levels = np.geomspace(20.0, 0.05, 9)
    assert calls["unipc(order=3)"](levels) == unipc(levels, order=3)
    assert calls["ddim(eta=1.0)"](levels).stochastic and not calls["ddim"](levels).stochastic
    assert calls["flow_heun"](levels).form == "flow"


def test_orders_are_fitted_printed_and_written(tmp_path, capsys, few):
    few(euler=("euler", euler), unipc=("unipc", unipc), ddpm=("ddpm", SAMPLERS["ddpm"]))
    assert main(["lab", "orders", "--quick", "--out", str(tmp_path)]) == 0
    found = io.load_json(tmp_path / "orders.json")
    assert [row["sampler"] for row in found["samplers"]] == ["euler", "unipc"]  # ddpm adds noise
    for row, order in zip(found["samplers"], (1, 3), strict=True):
        assert row["order"] == order and row["fitted"] == pytest.approx(order, abs=0.1) and row["reached"]
        assert len(row["errors"]) == len(found["ns"])
    assert (tmp_path / "orders.png").read_bytes().startswith(PNG)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["orders.json", "orders.png"]
    printed = capsys.readouterr().out
    assert "euler" in printed and "by more than 0.25: none" in printed


def test_an_order_that_is_missed_is_named_and_the_status_is_1(tmp_path, capsys, few):
    from generant.diffusion.plan import Plan

    def boastful(sigmas):
        plan = euler(sigmas)
        return Plan("boastful", plan.stages, order=2, final=plan.final)

    few(boastful=("boastful", boastful))
    assert main(["lab", "orders", "--quick", "--out", str(tmp_path)]) == 1
    assert "by more than 0.25: boastful" in capsys.readouterr().out
    assert io.load_json(tmp_path / "orders.json")["samplers"][0]["reached"] is False


def test_samplers_are_scored_printed_and_written(tmp_path, capsys, few):
    few(
        euler=("euler", euler), lms=("lms", lms), unipc=("unipc", unipc), ddpm=("ddpm", SAMPLERS["ddpm"]),
        consistency=("consistency", SAMPLERS["consistency"]),
    )  # fmt: skip
    assert main(["lab", "samplers", "--quick", "--out", str(tmp_path)]) == 0
    rows = {row["sampler"]: row for row in io.load_json(tmp_path / "samplers.json")["samplers"]}
    assert rows["lms"]["w2"][0] is None  # its start alone takes more than 10 calls
    assert rows["ddpm"]["noise"] and not rows["euler"]["noise"]
    for name in ("euler", "ddpm", "unipc"):
        w2 = rows[name]["w2"]
        assert w2[0] > w2[1] > w2[2] > 0
    ratio = rows["euler"]["w2"][1] / rows["euler"]["w2"][2]
    assert ratio == pytest.approx(2, abs=0.1)  # order 1
    assert max(rows["consistency"]["w2"]) < 1e-3  # the exact map, up to what sigma_min leaves
    assert all(row["calls"] <= 40 and row["ms_per_step"] > 0 for row in rows.values())
    assert (tmp_path / "samplers.png").read_bytes().startswith(PNG)
    assert "W2, 10 calls" in capsys.readouterr().out


def test_the_data_have_variance_1():
    data = lab._data()
    assert np.trace(data.cov) == pytest.approx(1, rel=1e-12)
    values = np.linalg.eigvalsh(data.cov)
    assert np.sqrt(values[-1] / values[0]) == pytest.approx(1 / 0.03, rel=1e-9)


def test_without_matplotlib_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lab, "find_spec", lambda name: None)
    assert main(["lab", "orders", "--out", str(tmp_path / "new")]) == 2
    assert "pip install 'generant[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_bad_usage_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["lab", "everything"])
    assert stop.value.code == 2 and "invalid choice" in capsys.readouterr().err
