"""What a reader should know of converted weights, beside them."""

import json
import pathlib

import ml_collections

from input_pipeline.info import DatasetInfo
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.pretrained.format import Format
from mlseg_jax.pretrained.read import WeightFile
from mlseg_jax.runs.workdir import CARD

TEXT = "model_card.md"


def write_card(
    workdir: str,
    config: ml_collections.ConfigDict,
    info: DatasetInfo,
    model: FunctionalModel,
    file: WeightFile,
    source: Format,
    notes: list[str],
) -> None:
    """Writes ``model_card.md``, and the same facts as ``model_card.json``."""
    facts = {
        "source_file": file.name,
        "sha256": file.sha256,
        "source": source.title,
        "licence": source.licence,
        "architecture": {
            name: part.to_dict()
            for name, part in config.model.items()
            if isinstance(part, ml_collections.ConfigDict)
        },
        "parameters": model.num_parameters,
        "input": {
            "channels": "RGB, 0 to 255",
            "pixel_mean": list(config.data.pixel_mean),
            "pixel_std": list(config.data.pixel_std),
            "trained_on": list(config.data.crop_size),
        },
        "selection": config.selection.to_dict(),
        "num_classes": info.num_classes,
        "classes": list(info.class_names),
        "notes": notes,
    }
    folder = pathlib.Path(workdir)
    (folder / CARD).write_text(json.dumps(facts, indent=2) + "\n")
    (folder / TEXT).write_text(_as_text(facts))


def _as_text(facts: dict) -> str:
    names = [part["name"] for part in facts["architecture"].values() if "name" in part]
    mean, std = facts["input"]["pixel_mean"], facts["input"]["pixel_std"]
    rows = {
        "source file": facts["source_file"],
        "SHA-256": facts["sha256"],
        "what it is": facts["source"],
        "licence": facts["licence"],
        "architecture": " + ".join(names),
        "parameters": f"{facts['parameters']:,}",
        "input": f"RGB of 0 to 255, minus {mean}, divided by {std}",
        "classes": f"{facts['num_classes']}",
        "selection": f"{facts['selection']['name']}, K = {facts['selection']['k']}",
    }
    lines = ["# Converted weights", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "## What was done", ""]
    notes = facts["notes"] or ["Every array fits as it is."]
    lines += [f"- {note}" for note in notes]
    lines += ["", "## Classes", "", ", ".join(facts["classes"])]
    return "\n".join(lines) + "\n"
