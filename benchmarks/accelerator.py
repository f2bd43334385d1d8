"""What an accelerator does with this library, in so many minutes; nothing to prepare.

    python benchmarks/accelerator.py --minutes=8 --output=DIR
    python benchmarks/accelerator.py --dry --output=DIR        # tiny, on CPU

Parts run in order of worth (`PARTS`), each in a process of its own, so that one that
runs out of memory or hangs ends alone; its log is ``DIR/parts/NAME.log``. What it has
found so far, and a sentence where it failed, is in DIR as one JSON file and one page of
tables, written anew after each part. It ends by itself after ``--minutes`` and names
what it did not reach. ``--parts="device,train 1284"`` runs some.

Batches are those that ``plan`` forecasts to fit (`accelerator_cases.BATCH` at most),
compiled on the processor beside the first parts; a step that runs out of memory is
tried once more with half. ``docs/accelerators.md`` says how to read the tables.

Needs no JAX itself: a TPU belongs to one process at a time.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import accelerator_table  # noqa: E402
import measure  # noqa: E402

WORKER = pathlib.Path(__file__).with_name("accelerator_parts.py")

LEAST_SECONDS = 15.0
"""No part is begun with less time left."""

FORECAST_SECONDS = 90.0
"""How long a part waits for its forecast, which is made beside the parts before it."""


@dataclasses.dataclass(frozen=True)
class Part:
    """``name`` is a function of `accelerator_parts` and perhaps an argument of it.

    Attributes:
      name: such as ``train 1284``.
      seconds: after which it is ended.
      forecast: the case whose batch it takes; "" without any.
    """

    name: str
    seconds: float
    forecast: str = ""


PARTS = (
    Part("device", 90),
    Part("parity", 120),
    Part("train 1284", 150, "train 1284"),
    Part("train 150", 120, "train 150"),
    Part("train 10000", 150, "train 10000"),
    Part("complete 1284", 120, "train 1284"),
    Part("pytorch 1284", 150, "train 1284"),
    Part("predict 1284", 90),
    Part("predict 150", 90),
    Part("predict 10000", 90),
    Part("complete 10000", 120, "train 10000"),
    Part("deeplabv3", 120, "deeplabv3"),
    Part("mask2former", 180, "mask2former"),
    Part("input", 120, "train 150"),
    Part("demo", 240),
    Part("profile", 120, "train 1284"),
)
FORECAST = Part("forecast", 600)


class Run:
    """Parts of one call; ``worker`` is the command that runs one."""

    def __init__(self, output: pathlib.Path, minutes: float, worker: list[str]):
        self.output, self.worker = output, worker
        self.minutes = minutes
        self.end = time.monotonic() + 60 * minutes
        self.results: list[dict] = []
        (output / "parts").mkdir(parents=True, exist_ok=True)
        for rows in (output / "parts").glob("*.json"):  # Of an earlier call.
            rows.unlink()

    def run(self, parts: list[Part]) -> dict:
        """All parts, or as many as there is time for; writes after each."""
        forecast, waiting = None, list(parts)
        try:
            while waiting and self.end - time.monotonic() > LEAST_SECONDS:
                part = waiting.pop(0)
                if part.forecast and forecast is None:
                    forecast = self.start(FORECAST)
                if part.forecast:
                    self.await_forecast(forecast, part.forecast)
                print(f"{part.name} ...", end=" ", flush=True)
                self.results.append(self.finish(part, self.start(part)))
                print(accelerator_table.line(self.results[-1]), flush=True)
                if part.name == "device" and any(p.forecast for p in waiting):
                    forecast = forecast or self.start(FORECAST)
                self.write([p.name for p in waiting])
        finally:
            if forecast is not None:
                _kill(forecast)
        return self.write([p.name for p in waiting])

    def start(self, part: Part) -> subprocess.Popen:
        """Its process, in a session of its own, so that it ends with all it started."""
        self._rows_file(part.name).unlink(missing_ok=True)
        # Of two parts that run the same program the second need not compile it.
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(self.output / "compiled")}
        with self._file(part.name, "log").open("w") as log:
            return subprocess.Popen(
                [*self.worker, part.name, str(self.output)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=compiled | os.environ,
                start_new_session=True,
            )

    def finish(self, part: Part, process: subprocess.Popen) -> dict:
        begin, late = time.monotonic(), False
        left = self.end - begin
        try:
            process.wait(max(min(part.seconds, left), 1.0))
        except subprocess.TimeoutExpired:
            late = True
        finally:  # Also where this process is ended.
            _kill(process)
        result = {"part": part.name, "seconds": round(time.monotonic() - begin, 1)}
        result |= self.read(part.name)
        if late:
            reason = "the minutes are over" if left < part.seconds else "it hangs"
            result["error"] = f"It was ended after {result['seconds']:.0f} s: {reason}."
        elif process.returncode and "error" not in result:
            result["error"] = self._last_words(part, process.returncode)
        return result

    def read(self, name: str) -> dict:
        """The rows, and the sentence, that a part has written so far."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads(self._rows_file(name).read_text())
        return {"rows": []}

    def await_forecast(self, process: subprocess.Popen, case: str) -> None:
        until = min(time.monotonic() + FORECAST_SECONDS, self.end - LEAST_SECONDS)
        while time.monotonic() < until and process.poll() is None:
            if any(row["case"] == case for row in self.read("forecast")["rows"]):
                return
            time.sleep(0.5)

    def write(self, not_reached: list[str]) -> dict:
        rows = self.read("forecast")
        result = {
            "minutes": self.minutes,
            "dry": "--dry" in self.worker,
            "machine": measure.machine(),
            "parts": self.results,
            "forecast": rows["rows"],
            "not_reached": not_reached,
        }
        measure.write_json(str(self.output / "accelerator.json"), result)
        page = self.output / "accelerator.md"
        page.write_text(accelerator_table.page(result))
        return result

    def _file(self, name: str, ending: str) -> pathlib.Path:
        return self.output / "parts" / f"{name.replace(' ', '_')}.{ending}"

    def _rows_file(self, name: str) -> pathlib.Path:
        return self._file(name, "json")

    def _last_words(self, part: Part, code: int) -> str:
        lines = self._file(part.name, "log").read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no word")
        how = f"with code {code}" if code > 0 else f"by {signal.Signals(-code).name}"
        return f"Its process ended {how}: {last.strip()[:300]}"


def _kill(process: subprocess.Popen) -> None:
    """The process, if it still runs, and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def choose(names: str) -> list[Part]:
    """The parts of a list of names; all of them for an empty one."""
    if not names:
        return list(PARTS)
    known = {part.name: part for part in PARTS}
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(
            f"error: There is no part {unknown[0]!r}; choose of {', '.join(known)}."
        )
    return [known[name] for name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="a folder")
    parser.add_argument("--parts", default="", help="some of them, by comma")
    parser.add_argument("--dry", action="store_true", help="tiny shapes, on CPU")
    parser.add_argument("--torch-python", default=sys.executable, help="has PyTorch")
    args = parser.parse_args()
    worker = [sys.executable, str(WORKER), f"--torch-python={args.torch_python}"]
    worker += ["--dry"] * args.dry
    # As Ctrl-C does: parts are ended as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run = Run(args.output.resolve(), args.minutes, worker)
    parts = choose(args.parts)
    if args.dry:  # A processor may be busy, and slow to compile.
        parts = [dataclasses.replace(p, seconds=5 * p.seconds) for p in parts]
    result = run.run(parts)
    for name in result["not_reached"]:
        print(f"not reached: {name}")
    print(args.output / "accelerator.md")


if __name__ == "__main__":
    main()
