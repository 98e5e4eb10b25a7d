"""Results as text: lines for the terminal, and the README's tables from the committed JSON."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

MARKS = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
UNITS = {
    "s": ((1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
}
COLUMNS = (
    "work", "generant", "of peak", "rivals as documented", "rivals at their best known setting",
    "memory: ours, first rival", "error",
)


def quantity(value: float | None, unit: str) -> str:
    """Seconds or bytes with three digits and a prefix."""
    if value is None:
        return "-"
    scale, name = next((u for u in UNITS[unit] if value >= u[0]), UNITS[unit][-1])
    return f"{value / scale:.3g} {name}" if value < 999.5 * scale else f"{value / scale:.0f} {name}"


def summary(entry: dict) -> list[dict]:
    """One row per contender, ours first: median and min time, how many times our time that is, fraction of peak."""
    rows: list[dict] = []
    for name, c in entry["contenders"].items():
        row = {"name": name, "failed": None, "memory": None, "error": None, **c}
        if row["failed"]:
            row["failed"] = row["failed"].splitlines()[0].replace("|", "/")
        if c["seconds"]:
            row["median"], row["min"] = statistics.median(c["seconds"]), min(c["seconds"])
            row["of_peak"] = entry["peak_seconds"] / row["median"] if "peak_seconds" in entry else None
            row["ratio"] = row["median"] / rows[0]["median"] if rows and "median" in rows[0] else None
            row["goal"] = entry["goals"].get(name)
        rows.append(row)
    return rows


def limits(entry: dict, ours: dict) -> list[str]:
    """Our absolute goals, and whether they are met."""
    wanted = entry["limits"]
    texts = []
    if (most := wanted["seconds"]) is not None:
        texts.append((f"<= {quantity(most, 's')}", ours["median"] <= most))
    if (most := wanted["memory"]) is not None and ours["memory"] is not None:
        texts.append((f"<= {quantity(most, 'B')}", ours["memory"] <= most))
    if (least := wanted["peak"]) is not None and ours["of_peak"] is not None:
        texts.append((f">= {least:.0%} of peak", ours["of_peak"] >= least))
    return [f"goal {text}, {'met' if met else 'MISSED'}" for text, met in texts]


def verdict(row: dict) -> str:
    """How many times our time a rival takes, and whether that is the goal; nothing for ours."""
    if row.get("ratio") is None:
        return ""
    notes = ["slower than it"] if row["ratio"] < 0.995 else []
    if row["goal"]:
        notes.append(f"goal {row['goal']:.3g}x, {'met' if row['ratio'] >= row['goal'] else 'MISSED'}")
    times = f"{row['ratio']:.2f}x" if row["ratio"] < 10 else f"{row['ratio']:.0f}x"
    return times + (f" ({'; '.join(notes)})" if notes else "")


def report(name: str, entry: dict) -> str:
    """A case as lines of text, one per contender."""
    lines = [name]
    for row in summary(entry):
        if row["failed"] or not row["seconds"]:
            lines.append(f"    {row['name']:<24} FAILED: {row['failed']}")
            continue
        cells = [f"min {quantity(row['min'], 's'):>8}  median {quantity(row['median'], 's'):>8}"]
        if row["error"] is not None:
            cells.append(f"memory {quantity(row['memory'], 'B'):>8}  error {row['error']:.1e}{entry['unit']}")
        if row["of_peak"]:
            cells.append(f"{row['of_peak']:4.0%} of {entry['peak']} peak")
        cells += limits(entry, row) if row["kind"] == "ours" else [verdict(row)]
        lines.append(f"    {row['name']:<24} {'  '.join(cells)}".rstrip())
    return "\n".join(lines)


def table(results: dict) -> str:
    """The README's table of one result file."""
    m, settings = results["machine"], results["settings"]
    dates = sorted({e["date"] for e in results["cases"].values()})
    rounds = sorted({len(c["seconds"]) for e in results["cases"].values() for c in e["contenders"].values()} - {0})
    loads = sorted(e["load"] for e in results["cases"].values())
    versions = ", ".join(f"{package} {v}" for package, v in m["versions"].items())
    lines = [
        f"{m['cpu']} (family/model {m['family']}), {m['cores']} cores, {', '.join(m['isa'])}; {m['system']};",
        f"Python {m['python']}, {versions}; " + ", ".join(f"{k} {v}" for k, v in results["config"].items()) + ".",
        f"{settings['threads']} threads for everyone, medians of {' or '.join(map(str, rounds))} rounds, {dates[-1]};",
        f"load average before a case {loads[0]:.1f} to {loads[-1]:.1f}, which the cases before it raise.",
        "2x: the rival takes twice our time. Memory: the peak of one warm call, its result included. Peak: the rate",
        "measured here of fused multiply-adds (FMA), or of a copy of as many bytes as the work has to move (copy).",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for name, entry in results["cases"].items():
        ours, *rivals = summary(entry)
        cells = ["FAILED: " + ours["failed"]] + [""] * 5 if ours["failed"] else _cells(entry, ours, rivals)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(entry: dict, ours: dict, rivals: list[dict]) -> list[str]:
    def of_kind(kind: str) -> str:
        texts = [(r["name"], "FAILED" if r["failed"] else verdict(r)) for r in rivals if r["kind"] == kind]
        return "<br>".join(f"{n} {'**' + t + '**' if 'slower' in t or 'MISSED' in t else t}" for n, t in texts)

    return [
        "<br>".join([quantity(ours["median"], "s"), *limits(entry, ours)]),
        f"{ours['of_peak']:.0%} {entry['peak']}" if ours["of_peak"] else "",
        of_kind("documented"),
        of_kind("best"),
        ", ".join(quantity(r["memory"], "B") for r in [ours, *rivals[:1]]) if ours["memory"] is not None else "",
        f"{ours['error']:.1e}{entry['unit']}" if ours["error"] is not None else "",
    ]


def write_readme(path: Path) -> None:
    """Put the tables of results/*.json between the two marks."""
    text = path.read_text(encoding="utf-8")
    if not all(text.count(mark) == 1 for mark in MARKS):
        raise SystemExit(f"{path}: wanted the lines {MARKS[0]} and {MARKS[1]} once each")
    head, tail = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    files = sorted(Path(__file__).with_name("results").glob("*.json"))
    parts = [head + MARKS[0], *(table(json.loads(f.read_text())) for f in files), MARKS[1] + tail]
    path.write_text("\n\n".join(parts), encoding="utf-8")
