"""The order of the rooms: who may import whom (docs/architecture.md)."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

PACKAGES = ("mlseg_jax", "input_pipeline", "configs", "tests", "benchmarks")

# From the ground up. A room imports from its own floor's other rooms never, from those
# below always.
FLOORS = (
    ("typing", "errors"),
    ("distributed",),
    ("label_selection",),
    ("settings",),
    ("models",),
    # Losses count pixels as metrics do.
    ("metrics",),
    ("losses",),
    ("runs",),
    ("inference",),
    ("pretrained",),
    ("tasks",),
    ("training",),
    ("fitting",),
    ("prediction",),
    ("planning", "doctor"),
    ("reporting",),
    ("export",),
    ("serving",),
    ("cli",),
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}

# The rooms of `input_pipeline`, in the same way; its front door stands above all.
PIPELINE_FLOORS = (
    ("info",),
    ("segments",),
    ("files",),
    ("augmentation",),
    ("preparation",),
    ("datasets",),
)
PIPELINE_FLOOR = {room: i for i, rooms in enumerate(PIPELINE_FLOORS) for room in rooms}
FRONT_DOOR = len(PIPELINE_FLOORS)


def imports(path):
    """Dotted names of what a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imports(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        for name in imports(path):
            yield path.relative_to(ROOT), name


def room_of(path_or_name):
    """``mlseg_jax/models/mlseg.py`` and ``mlseg_jax.models.mlseg``: ``models``."""
    parts = str(path_or_name).removesuffix(".py").replace("/", ".").split(".")
    return parts[1] if len(parts) > 1 else ""


def as_file(name):
    """The file that a dotted name is from, for the message."""
    path = name.replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__init__.py"):
        if (ROOT / candidate).exists():
            return candidate
    return f"{path.rpartition('/')[0]}.py"


def test_every_room_has_a_floor_and_says_what_it_is_for():
    rooms = {p.stem for p in (ROOT / "mlseg_jax").iterdir() if p.suffix == ".py"}
    folders = [
        p for p in (ROOT / "mlseg_jax").iterdir() if (p / "__init__.py").exists()
    ]
    assert rooms - {"__init__"} | {p.name for p in folders} <= FLOOR.keys()
    for package in ("mlseg_jax", "input_pipeline"):
        for path in (ROOT / package).rglob("__init__.py"):
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), path
            # A door, and no second home: the front one, and that of a folder of lists.
            assert len(tree.body) == 1 or path.parent.name in ("mlseg_jax", "names")


def test_programs_inside_strings_import_what_there_is():
    wrong = []
    for path in sorted(
        p for package in PACKAGES for p in (ROOT / package).rglob("*.py")
    ):
        for name in re.findall(
            r"^from ((?:mlseg_jax|input_pipeline)\.[\w.]+) import",
            path.read_text(),
            re.M,
        ):
            place = ROOT / name.replace(".", "/")
            if not (place.is_dir() or place.with_suffix(".py").exists()):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_rooms_import_only_from_rooms_below():
    wrong = []
    for path, name in all_imports("mlseg_jax"):
        if not name.startswith("mlseg_jax.") or path.name == "__init__.py":
            continue
        own, other = room_of(path), room_of(name)
        if own != other and FLOOR[other] >= FLOOR[own]:
            wrong.append(f"{path} imports {as_file(name)}")
    assert not wrong, "\n".join(wrong)


def test_the_library_never_imports_its_recipes():
    for package in ("mlseg_jax", "input_pipeline"):
        for path, name in all_imports(package):
            assert name.split(".")[0] != "configs", f"{path} imports {as_file(name)}"


def test_the_input_pipeline_needs_little_of_the_library():
    wrong = []
    for path, name in all_imports("input_pipeline"):
        if name.startswith("mlseg_jax.") and room_of(name) not in ("typing", "errors"):
            wrong.append(f"{path} imports {as_file(name)}")
        if name.startswith("input_pipeline."):
            own, other = room_of(path), room_of(name)
            floor = PIPELINE_FLOOR.get(own, FRONT_DOOR)
            if own != other and PIPELINE_FLOOR.get(other, FRONT_DOOR) > floor:
                wrong.append(f"{path} imports {as_file(name)}")
    assert not wrong, "\n".join(wrong)


def test_test_files_have_names_of_their_own():
    """For pytest, which imports them by these names."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_longer_than_350_lines(package):
    paths = (ROOT / package).rglob("*.py")
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in paths}
    assert not {path: n for path, n in lengths.items() if n > 350}
