"""The order of the packages, and who may know what."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from mindtwins.__main__ import COMMANDS
from mindtwins.tasks import EXPORTS, KINDS, SERVICES, TASKS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mindtwins"

# From below to above: a module imports from its own row and from those before it. Names are files
# or folders of the package. What stands in one row with others does not know them.
ORDER = (
    ("console", "huge_pages"),
    ("errors",),
    ("files", "cli", "formats", "interruptible"),
    ("tensor_files",),
    ("checkpoint",),
    ("config",),
    ("layers",),
    ("models",),
    ("execution",),
    ("data", "distribution"),
    ("training",),
    ("reference",),
    ("conversion", "export", "serving"),
    ("hub",),
    (*TASKS,),
    ("tasks",),
    ("commands",),
    ("__main__",),
)
ROW = {name: row for row, names in enumerate(ORDER) for name in names}

# Alone in knowing of torch: the reference, what compares with it, and the reader of torch's files.
KNOW_TORCH = {"reference", "conversion/verify.py", "conversion/torch_files.py"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def owner(path: Path) -> str:
    """The file or folder of the package that a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and module of every import, also within functions and in type annotations."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def test_every_module_has_its_row():
    assert {owner(path) for path in modules()} - {"__init__"} == set(ROW)


def test_imports_point_down_only():
    wrong = []
    for path in modules():
        mine = owner(path)
        if mine == "__init__":
            continue
        for line, name in imports(path):
            parts = name.split(".")
            if parts[0] != "mindtwins" or parts[1:2] in ([], [mine], ["__version__"]):
                continue
            if ROW[parts[1]] >= ROW[mine]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_torch_is_known_to_few():
    for path in modules():
        place = str(path.relative_to(PACKAGE))
        if not any(place == known or place.startswith(f"{known}/") for known in KNOW_TORCH):
            typing_only = type_checking_lines(path)
            named = [
                line
                for line, name in imports(path)
                if name.split(".")[0] == "torch" and line not in typing_only
            ]
            assert not named, f"{place} imports torch in line {named}"


def type_checking_lines(path: Path) -> set[int]:
    """Lines under `if TYPE_CHECKING`, which never run."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines


# Where a task's name may stand: its folder, the list of tasks, and the options.
# (The reference mirrors the folders.)
NAME_TASKS = {*TASKS, "tasks", "config/options.py", "reference"}
# Not within the name of a project such as MMSegmentation.
NAMES = re.compile(rf"(?<!mm)(?<!ss)(?<!MM)({'|'.join(TASKS)})")


def code_words(path: Path) -> list[tuple[int, str]]:
    """Names and texts of the code, without comments and docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    kinds = {tokenize.NAME, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return [
        (token.start[0], token.string)
        for token in tokens
        if token.type in kinds and token.start[0] not in docstrings
    ]


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").glob("*.py")), ids=lambda p: p.stem)
def test_commands_know_no_task(path: Path):
    for line, name in imports(path):
        parts = name.split(".")
        known = parts[0] == "mindtwins" and parts[1] in TASKS
        assert not known, f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_script(name: str):
    text = (ROOT / COMMANDS[name].script).read_text()
    assert f"from mindtwins.commands.{name.replace('-', '_')} import main\n" in text
    assert text.endswith("    run_cli(main)\n")


def test_the_package_sends_nobody_to_a_script():
    """Which an installed package does not have: its messages and help name the console command."""
    script = re.compile(rf"\b({'|'.join(Path(c.script).stem for c in COMMANDS.values())})\.py\b")
    wrong = [
        f"{path.relative_to(PACKAGE)}:{number} {line.strip()}"
        for path in modules()
        if path != PACKAGE / "__main__.py"  # the table of commands, and what is the same
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if script.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_task_is_named_outside_its_folder():
    wrong = []
    for path in modules():
        place = str(path.relative_to(PACKAGE))
        if owner(path) in NAME_TASKS or place in NAME_TASKS:
            continue
        wrong += [f"{place}:{line} {word}" for line, word in code_words(path) if NAMES.search(word)]
    assert not wrong, "\n".join(wrong)


def test_a_task_names_no_other():
    for task in TASKS:
        others = [name for name in TASKS if name != task]
        for path in (PACKAGE / task).glob("*.py"):
            for line, name in imports(path):
                assert name.split(".")[1:2] not in [[other] for other in others], f"{path}:{line}"


def test_tasks_have_the_same_shape():
    """What each of them needs has the same file name in every folder."""
    needed = {"task.py", "kind.py", "layouts.py", "loader.py", "loss.py", "transforms.py"}
    needed |= {"metrics.py", "evaluator.py", "predict.py"}
    for task in TASKS:
        own = {path.name for path in (PACKAGE / task).glob("*.py")}
        assert needed <= own, task
        # What is not built for every task yet.
        assert (task in EXPORTS) == ("export.py" in own), task
        assert (task in SERVICES) == ("service.py" in own), task
    assert list(KINDS) == list(TASKS)
