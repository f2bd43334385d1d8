"""What `accelerator.py` has found, as Markdown."""

from collections.abc import Mapping, Sequence

GIB = 2**30


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value / GIB:.2f}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{1e3 * value:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


STEP = {
    "C": ("C", str),
    "batch": ("images a chip", str),
    "images_per_second": ("images/s a chip", _number),
    "seconds": ("ms a step", _ms),
    "planned_seconds": ("at least, by plan", _ms),
    "mfu": ("MFU", _share),
    "ceiling_share": ("of the product", _share),
    "peak_bytes": ("peak GiB", _gib),
    "compiled_bytes": ("by its compiler", _gib),
    "planned_bytes": ("by plan", _gib),
    "compile_seconds": ("compiled in s", _number),
    "torch": ("PyTorch", str),
}
PARITY = {
    "what": ("against the processor", str),
    "kernel": ("way", str),
    "difference": ("difference", _number),
    "allowed": ("allowed", _number),
    "holds": ("", lambda holds: "" if holds else "**DIFFERS**"),
}
DEVICE = {
    "what": ("", str),
    "flops": ("TFLOP/s", lambda f: _number(f / 1e12)),
    "peak_share": ("of the published peak", _share),
}
OTHER = {
    "what": ("", str),
    "images_per_second": ("images/s", _number),
    "share": ("share", _share),
    "threads": ("threads", str),
    "seconds": ("seconds", _number),
    "mIoU": ("mIoU", _number),
    "oracle_mIoU": ("with true labels", _number),
    "operation": ("operation", str),
    "seconds_a_step": ("ms a step", _ms),
}
FORECAST = {
    "case": ("case", str),
    "topology": ("planned as", str),
    "planned_batch": ("images a chip", str),
    "bytes": ("GiB", _gib),
    "seconds": ("ms at least", _ms),
    "batch": ("so the batch is", str),
}
STEPS = ("train", "complete", "pytorch", "predict", "deeplabv3", "mask2former")
TITLES = {
    "device": "The device, and its matrix product",
    "parity": "The same values as on the processor",
    "steps": "Training steps and prediction",
    "input": "Fed with JPEG files",
    "demo": "The demonstration, trained to its score",
    "profile": "Where a step's time goes (C = 1,284)",
    "forecast": "Forecasts by `plan`",
}


def line(result: Mapping) -> str:
    """What the terminal says when a part has ended."""
    words = result.get("error") or result.get("left_out")
    if words:
        return words
    rate = result["rows"][0].get("images_per_second") if result["rows"] else None
    rate = f", {rate:.4g} images/s" if rate else ""
    return f"{len(result['rows'])} rows in {result['seconds']:.0f} s{rate}"


def _heading(result: Mapping, facts: Mapping) -> list[str]:
    """``facts``: the first row of the part `device`; empty without that part."""
    machine = result["machine"]
    name = runtime = "a device that was not asked"
    if facts:
        name = f"{facts['count']} x {facts['kind']}"
        runtime = f"JAX {facts['jax']}, {facts['runtime']}"
    lines = [f"# {name}, {machine['time']}", ""]
    if result["dry"]:
        lines += ["**Tiny shapes on a processor: the figures mean nothing.**", ""]
    dry = " --dry" * result["dry"]
    return [
        *lines,
        f"`python benchmarks/accelerator.py{dry} --minutes={result['minutes']:g}`; "
        f"{runtime}, Python {machine['python']}, {machine['cores']} cores of "
        f"{machine['cpu']}.",
    ]


def page(result: Mapping) -> str:
    """All tables, and what failed, was left out or not reached."""
    parts = {part["part"]: part for part in result["parts"]}
    facts = next(iter(parts.get("device", {"rows": []})["rows"]), {})
    lines = _heading(result, facts)
    groups: dict[str, list] = {title: [] for title in TITLES}
    for part in result["parts"]:
        first = part["part"].split()[0]
        group = "steps" if first in STEPS else first
        for row in part["rows"]:
            groups[group].append(
                {"part": part["part"]} | row if group == "steps" else row
            )
    groups["forecast"] = result["forecast"]
    peak = facts.get("peak_flops")
    groups["device"] = [
        row | {"peak_share": row["flops"] / peak if peak else None}
        for row in groups["device"]
        if "flops" in row
    ]
    columns = dict.fromkeys(TITLES, OTHER) | {
        "device": DEVICE,
        "parity": PARITY,
        "steps": {"part": ("part", str)} | STEP,
        "forecast": FORECAST,
    }
    for group, title in TITLES.items():
        if groups[group]:
            lines += ["", f"## {title}", "", *table(groups[group], columns[group])]
    said = [
        f"- {name}: {words}" for name, part in parts.items() for words in _words(part)
    ]
    if said:
        lines += ["", "## What was otherwise", "", *said]
    if result["not_reached"]:
        lines += ["", f"Not reached in time: {', '.join(result['not_reached'])}."]
    return "\n".join(lines) + "\n"


def _words(part: Mapping) -> list[str]:
    found = [part[key] for key in ("error", "left_out") if key in part]
    return found + [row["fell_back"] for row in part["rows"] if row.get("fell_back")]


def table(rows: Sequence[Mapping], columns: Mapping) -> list[str]:
    """Those columns that some row has a value in."""
    used = {
        key: column
        for key, column in columns.items()
        if any(row.get(key) is not None for row in rows)
    }
    lines = ["| " + " | ".join(title for title, _ in used.values()) + " |"]
    lines.append("|---" * len(used) + "|")
    for row in rows:
        cells = [
            "" if row.get(key) is None else form(row[key])
            for key, (_, form) in used.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
