"""What prose names exists: files in pages and docstrings, names in backticks."""

import ast
import collections
import functools
import io
import pathlib
import re
import subprocess
import tokenize

import pytest
from test_architecture import FLOORS
from tiny import ROOT

PACKAGES = ("mlseg_jax", "input_pipeline", "configs")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "launch", "docs")
FILES = [
    *(path for path in ROOT.iterdir() if path.is_file()),
    *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*")),
]
SOURCES = [path for path in FILES if path.suffix == ".py"]
PAGES = [path for path in FILES if path.suffix == ".md"]
KNOWN = {f"/{path.relative_to(ROOT).as_posix()}" for path in FILES}

A_FILE = re.compile(r"[\w./-]*\w\.(?:py|md|sh|yaml|html)\b")
A_CITATION = re.compile(r"(reference/)?([Mm]ethod|masks)\.md")
"""Of the pages on the paper, on its release and on mask classification."""
A_PLACE = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*")
NOT_OURS = {
    # What runs and studies write.
    *("runs/demo/report.html", "report.html", "runs/study/study.md", "study.md"),
    "model_card.md",
    "workdir/report.html",
    *("exported/predict.py", "index.html"),
    # Examples, and files of other projects.
    *("my_script.py", "FILE.py", "configs/FILE.py", "configs/NAME.py"),
    "configs/pointwise.py",
    "mlseg_jax/models/decoders/pointwise.py",
    "mlseg_jax/cli/commands/NAME.py",
    *("register_ade20k_full.py", "register_ade20k_panoptic.py"),
    "labelme2voc.py",
}


@functools.cache
def prose(path):
    """All of a page; of a source comments, docstrings, strings that stand alone."""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    parts = [token.string for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts.append(str(node.value.value))
    return "\n".join(parts)


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", ["", *FOLDERS])
def test_files_that_are_named_exist(folder):
    wrong = []
    for path in SOURCES + PAGES:
        if (name_of(path).split("/")[0] if path.parent != ROOT else "") != folder:
            continue
        text = prose(path)
        for name in sorted(set(A_FILE.findall(text)) - NOT_OURS):
            # `layers/conv.py` is enough, where it is clear whose.
            is_there = any(known.endswith(f"/{name}") for known in KNOWN)
            if not is_there and not A_CITATION.fullmatch(name):
                wrong.append(f"{name_of(path)} names {name}")
        places = {place.rstrip(".") for place in A_PLACE.findall(text)}
        for name in sorted(places - NOT_OURS) if path.suffix == ".md" else ():
            if not (ROOT / name).exists():
                wrong.append(f"{name_of(path)} names {name}")
    assert not wrong, "\n".join(wrong)


def names_in(body):
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = getattr(node, "targets", None) or [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def defined_names():
    """What each package, module and class defines, by its name without the path."""
    names = collections.defaultdict(set)
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] not in PACKAGES:
            continue
        body = ast.parse(path.read_text()).body
        names[path.parent.name].add(path.stem)
        names[path.stem].update(names_in(body))
        for node in body:
            if isinstance(node, ast.ClassDef):
                names[node.name].update(names_in(node.body))
    return names


def test_names_in_backticks_are_defined_where_they_are_said_to_be():
    """`module.name` and `Class.name`; what others define (`lax.top_k`) is not known."""
    names, wrong = defined_names(), []
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] not in PACKAGES:
            continue
        for reference in re.findall(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)", prose(path)):
            *_, owner, name = ("", *reference.split("."))
            if owner in names and name not in names[owner]:
                wrong.append(f"{name_of(path)} names {reference}")
    assert not wrong, "\n".join(wrong)


def test_the_page_draws_every_room_in_order():
    page = (ROOT / "docs/architecture.md").read_text()
    drawing = page.partition("```mermaid")[2].partition("```")[0]
    places = []
    for rooms in FLOORS:
        there = [room for room in rooms if room_exists(room)]
        found = [drawing.find(room) for room in there]
        assert all(place >= 0 for place in found), there
        places += sorted(found)
    assert places == sorted(places)


def room_exists(room):
    path = ROOT / "mlseg_jax" / room
    return path.is_dir() or path.with_suffix(".py").exists()


def test_the_readme_names_every_page():
    text = (ROOT / "README.md").read_text()
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")]
    assert pages and not [name_of(page) for page in pages if name_of(page) not in text]


def test_packages_come_into_the_environment_that_is_meant():
    """A bare `pip` may be that of another, and what uv made once had none."""
    ours = [path for path in SOURCES if name_of(path).split("/")[0] in PACKAGES]
    pages = [path for path in PAGES if path.parent in (ROOT, ROOT / "docs")]
    bare = re.compile(r"(?<!-m )pip install")
    for path in [*ours, *pages, ROOT / "docs/quickstart.ipynb"]:
        assert not bare.search(path.read_text()), name_of(path)
    command = ["make", "-n", "setup", "VENV=/nowhere", "UV=uv"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert re.search(r"^uv venv .*--seed .*/nowhere$", said, re.M), said


def test_what_is_not_ours_is_still_named():
    text = "\n".join(prose(path) for path in SOURCES + PAGES)
    for name in NOT_OURS:
        assert pathlib.PurePath(name).name in text, name
