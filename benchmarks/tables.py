"""Results as text: lines for the terminal, and the tables of docs/benchmarks.md from the committed JSON."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

MARKS = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
LAB_MARKS = "<!-- lab:begin -->", "<!-- lab:end -->"
UNITS = {
    "s": ((1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"), (1e-12, "ps")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
}
COLUMNS = (
    "work", "generant", "per pair", "of peak", "rivals as documented", "rivals at their best known setting",
    "memory: ours, first rival", "error",
)  # fmt: skip


def quantity(value: float | None, unit: str) -> str:
    """Seconds or bytes with three digits and a prefix."""
    if value is None:
        return "-"
    scale, name = next((u for u in UNITS[unit] if value >= u[0]), UNITS[unit][-1])
    return f"{value / scale:.3g} {name}" if value < 999.5 * scale else f"{value / scale:.0f} {name}"


def per_pair(value: float) -> str:
    """Seconds per pair, always in ns."""
    return f"{value * 1e9:.3g} ns"


def summary(entry: dict) -> list[dict]:
    """One row per contender, ours first: median and min time, how many times our time that is, fraction of peak."""
    rows: list[dict] = []
    for name, c in entry["contenders"].items():
        row = {"name": name, "failed": None, "missing": None, "memory": None, "error": None, "note": "", **c}
        if row["failed"]:
            row["failed"] = row["failed"].splitlines()[0].replace("|", "/")
        if c["seconds"]:
            row["median"], row["min"] = statistics.median(c["seconds"]), min(c["seconds"])
            row["of_peak"] = entry["peak_seconds"] / row["median"] if "peak_seconds" in entry else None
            row["pair"] = row["median"] / entry["pairs"] if entry.get("pairs") else None
            row["ratio"] = row["median"] / rows[0]["median"] if rows and "median" in rows[0] else None
            row["goal"] = entry["goals"].get(name)
            if entry.get("lean") and row["goal"] and row["memory"] and rows[0]["memory"] is not None:
                row["share"] = rows[0]["memory"] / row["memory"]
        rows.append(row)
    most = max(len(row["seconds"]) for row in rows)
    for row in rows:
        rounds = len(row["seconds"])
        row["fewer"] = f" [{rounds} round{'s' * (rounds > 1)}]" if 0 < rounds < most else ""
    return rows


def limits(entry: dict, ours: dict) -> list[str]:
    """Our absolute goals, and whether they are met."""
    wanted = entry["limits"]
    texts = []
    if (most := wanted["seconds"]) is not None:
        texts.append((f"<= {quantity(most, 's')}", ours["median"] <= most))
    if (most := wanted.get("pair")) is not None:
        texts.append((f"<= {per_pair(most)} per pair", ours["pair"] <= most))
    if (most := wanted["memory"]) is not None and ours["memory"] is not None:
        texts.append((f"<= {quantity(most, 'B')}", ours["memory"] <= most))
    if (least := wanted["peak"]) is not None and ours["of_peak"] is not None:
        texts.append((f">= {least:.0%} of peak", ours["of_peak"] >= least))
    if (most := wanted.get("error")) is not None:
        texts.append((f"<= {most:.2g}", ours["error"] <= most))
    return [f"goal {text}, {'met' if met else 'MISSED'}" for text, met in texts]


def verdict(row: dict) -> str:
    """How many times our time a rival takes, whether that is the goal, our share of its memory; nothing for ours."""
    if row.get("ratio") is None:
        return ""
    notes = ["slower than it"] if row["ratio"] < 0.995 else []
    if row["goal"]:
        notes.append(f"goal {row['goal']:.3g}x, {'met' if row['ratio'] >= row['goal'] else 'MISSED'}")
    if share := row.get("share"):
        notes.append(f"{share:.2f} of its memory, goal <= 1, {'met' if share <= 1 else 'MISSED'}")
    if compiled := row.get("compiled"):
        notes.append(f"compiled in {quantity(compiled, 's')}")
    times = f"{row['ratio']:.2f}x" if row["ratio"] < 10 else f"{row['ratio']:.0f}x"
    return times + (f" ({'; '.join(notes)})" if notes else "") + row["fewer"]


def shown_error(entry: dict, row: dict) -> str:
    if row["error"] is None:
        return ""
    return f"{row['error']:.1e}{entry['unit']}" + (f", {row['note']}" if row["note"] else "")


def of_peak(entry: dict, row: dict) -> str:
    """The fraction of the machine's peak, with a digit more where the goal is near."""
    if not row["of_peak"]:
        return ""
    goal = entry["limits"]["peak"]
    digits = 1 if goal and abs(row["of_peak"] - goal) < 0.005 else 0
    return f"{row['of_peak']:.{digits}%} {entry['peak']}"


def report(name: str, entry: dict) -> str:
    """A case as lines of text, one per contender."""
    lines = [name]
    for row in summary(entry):
        if row["missing"] or row["failed"] or (entry["timed"] and not row["seconds"]):
            what = f"not measured: {row['missing']}" if row["missing"] else f"FAILED: {row['failed']}"
            lines.append(f"    {row['name']:<24} {what}")
            continue
        cells = []
        if row["seconds"]:
            cells.append(f"min {quantity(row['min'], 's'):>8}  median {quantity(row['median'], 's'):>8}{row['fewer']}")
            if row["pair"]:
                cells.append(f"{per_pair(row['pair']):>8} per pair")
            cells.append(f"memory {quantity(row['memory'], 'B'):>8}")
            if row["of_peak"]:
                cells.append(f"{row['of_peak']:4.0%} of {entry['peak']} peak")
        if row["error"] is not None:
            cells.append(f"error {shown_error(entry, row)}")
        cells += limits(entry, row) if row["kind"] == "ours" else [verdict({**row, "fewer": ""})]
        lines.append(f"    {row['name']:<24} {'  '.join(cells)}".rstrip())
    return "\n".join(lines)


MEANING = """2x: the rival takes twice our time. Memory: the peak of one call, its result included; of a model, all that
it keeps (weights, gradients, optimiser, average, plans) and the peak of a step. Peak: the rate
measured here of fused multiply-adds (FMA), or of a copy of as many bytes as the work has to move (copy); a convolution
counts the products of its definition, of which fewer are made. Errors are against float64, those of scores and
transport at a smaller size; rms: the root mean square of the error over that of the result, or 6 % of the largest error
if that is more. Not compared: rivals that are not installed."""


def measured_on(results: dict) -> str:
    """The machine and the versions."""
    m = results["machine"]
    versions = ", ".join(f"{package} {v}" for package, v in m["versions"].items())
    return (
        f"{m['cpu']} (family/model {m['family']}), {m['cores']} cores, {', '.join(m['isa'])}; {m['system']};\n"
        f"Python {m['python']}, {versions};\n" + ", ".join(f"{k} {v}" for k, v in results["config"].items()) + "."
    )


def measured_how(results: dict) -> str:
    """Threads, rounds, date and load."""
    settings, entries = results["settings"], results["cases"].values()
    dates = sorted({e["date"] for e in entries})
    counts = [max(len(c["seconds"]) for c in e["contenders"].values()) for e in entries]
    rounds = sorted(set(counts) - {0})
    loads = sorted(e["load"] for e in entries)
    how = "one call of each" if rounds == [1] else f"medians of {' or '.join(map(str, rounds))} rounds"
    if any(0 < len(c["seconds"]) < n for e, n in zip(entries, counts, strict=True) for c in e["contenders"].values()):
        how += " unless another number is given"
    return (
        f"{settings['threads']} threads for everyone, {how}, {dates[-1]};\n"
        f"load average before a case {loads[0]:.1f} to {loads[-1]:.1f}, which the cases before it raise."
    )


def families(results: dict) -> dict[str, dict]:
    """Family -> its cases, of one result file."""
    found: dict[str, dict] = {}
    for name, entry in results["cases"].items():
        found.setdefault(entry.get("family", ""), {})[name] = entry
    return found


def means(entries: dict) -> dict[str, list[tuple[str, str]]]:
    """Kind of rival -> (rival, verdict) on the geometric means over a family that has goals of them; of a rival that is
    not in all of it, only that a goal is missed."""
    goals = next((e["mean"] for e in entries.values() if e.get("mean")), {})
    if not goals:
        return {}
    ratios: dict[tuple[str, str], list[float]] = {}
    for entry in entries.values():
        for row in summary(entry)[1:]:
            ratios.setdefault((row["kind"], row["name"]), []).extend([row["ratio"]] if row.get("ratio") else [])
    texts: dict[str, list[tuple[str, str]]] = {}
    for (kind, name), of in ratios.items():
        goal = goals.get(name)
        if len(of) == len(entries):
            row = {"ratio": statistics.geometric_mean(of), "goal": goal, "fewer": ""}
            texts.setdefault(kind, []).append((name, verdict(row)))
        elif goal:
            texts.setdefault(kind, []).append((name, f"in {len(of)} only (goal {goal:.3g}x, MISSED)"))
    return texts


def tables(results: dict) -> list[str]:
    """A table per family of one result file."""
    return [table(title, entries) for title, entries in families(results).items()]


def table(title: str, entries: dict) -> str:
    """One family: columns that nothing is in are left out."""
    rows = []
    for name, entry in entries.items():
        ours, *rivals = summary(entry)
        if ours["missing"] or ours["failed"]:
            what = f"not measured: {ours['missing']}" if ours["missing"] else f"FAILED: {ours['failed']}"
            rows.append([name, what])
        else:
            rows.append([name, *_cells(entry, ours, rivals)])
    if mean := means(entries):
        kinds = (mean.get(kind, []) for kind in ("documented", "best"))
        columns = ["<br>".join(f"{name} {marked(text)}" for name, text in texts) for texts in kinds]
        rows.append([f"geometric mean of {len(entries)}", "", "", "", *columns])
    rows = [row + [""] * (len(COLUMNS) - len(row)) for row in rows]
    used = [i for i in range(len(COLUMNS)) if i < 2 or any(row[i] for row in rows)]
    lines = [f"| {' | '.join(row[i] for i in used)} |" for row in [list(COLUMNS), *rows]]
    lines.insert(1, "|---" * len(used) + "|")
    return "\n".join([f"**{title}**", "", *lines] if title else lines)


def marked(text: str) -> str:
    """Bold where we are slower or miss a goal."""
    return f"**{text}**" if "slower" in text or "MISSED" in text else text


def _cells(entry: dict, ours: dict, rivals: list[dict]) -> list[str]:
    timed = entry.get("timed", True)

    def of_kind(kind: str) -> str:
        texts = []
        for r in rivals:
            if r["kind"] == kind and not r["missing"]:
                text = f"FAILED: {r['failed'][:60]}" if r["failed"] else verdict(r) if timed else shown_error(entry, r)
                texts.append(f"{r['name']} {marked(text)}")
        return "<br>".join(texts)

    met = [marked(t) for t in limits(entry, ours)]
    if not timed:
        return ["<br>".join([shown_error(entry, ours), *met]), "", "", of_kind("documented"), of_kind("best")]
    first = next((r for r in rivals if not r["missing"] and r["memory"] is not None), None)
    return [
        "<br>".join([quantity(ours["median"], "s") + ours["fewer"], *met]),
        per_pair(ours["pair"]) if ours["pair"] else "",
        of_peak(entry, ours),
        of_kind("documented"),
        of_kind("best"),
        ", ".join(quantity(r["memory"], "B") for r in [ours, first] if r) if ours["memory"] is not None else "",
        shown_error(entry, ours),
    ]


def between(path: Path, marks: tuple[str, str], blocks: list[str]) -> None:
    """Put blocks of text between the two marks of a file."""
    text = path.read_text(encoding="utf-8")
    if not all(text.count(mark) == 1 for mark in marks):
        raise SystemExit(f"{path}: wanted the lines {marks[0]} and {marks[1]} once each")
    head, tail = text.split(marks[0])[0], text.split(marks[1])[1]
    path.write_text("\n\n".join([head + marks[0], *blocks, marks[1] + tail]), encoding="utf-8")


def lab_table(folder: Path) -> str:
    """What `generant lab orders` and `generant lab samplers` wrote into a folder, as one table."""
    orders, samplers = (json.loads((folder / f"{name}.json").read_text()) for name in ("orders", "samplers"))
    fitted = {row["sampler"]: row for row in orders["samplers"]}
    calls = " | ".join(f"W2, {n} calls" for n in samplers["evaluations"])
    lines = [f"| sampler | order | fitted | on uneven levels | {calls} | ms per stage |"]
    lines.append("|---" * (5 + len(samplers["evaluations"])) + "|")
    for row in samplers["samplers"]:
        fit = fitted.get(row["sampler"])
        slopes = [f"{fit['fitted']:.2f}", f"{fit['fitted_uneven']:.2f}"] if fit else ["", ""]
        w2 = ["" if w is None else f"{w:.1e}" for w in row["w2"]]
        order = "" if row["order"] == 0 else f"{row['order']:g}"
        cells = [f"`{row['sampler']}`", order, *slopes, *w2, f"{row['ms_per_step']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_docs(path: Path) -> None:
    """Put the table of the analytic lab between its marks."""
    between(path, LAB_MARKS, [lab_table(Path(__file__).with_name("results") / "lab")])


def write_tables(path: Path) -> None:
    """Put the tables of results/*.json between the two marks."""
    files = sorted(Path(__file__).with_name("results").glob("*.json"))
    blocks: list[str] = [MEANING]
    for results in (json.loads(file.read_text()) for file in files):
        if (machine := measured_on(results)) not in blocks:
            blocks.append(machine)
        blocks += [measured_how(results), *tables(results)]
    between(path, MARKS, blocks)
