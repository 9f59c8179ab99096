"""The house rules that no linter knows: each takes a path and its text, and gives complaints."""

import ast
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

Rule = Callable[[PurePosixPath, str], list[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef

CODE_LINES_PER_FUNCTION = 50
LINES_PER_FILE = 600
PARAMETERS = 7

BANNED_NAMES = frozenset({"utils", "util", "common", "helpers", "helper", "core", "base", "manager", "misc"})

# Where any error at all may be caught: it is logged there and answered with a failure.
BOUNDARIES = {
    "dicom_node/dimse/listener.py": 1,
    "dicom_node/steady.py": 1,
    "dicom_node/web/app.py": 1,
    "dicom_node/tasks.py": 1,
}

# Where a person reads what a command prints.
PRINTING = (
    "dicom_node/audit/commands.py",
    "dicom_node/bench/pipeline.py",
    "dicom_node/commands/",
    "dicom_node/demo.py",
    "dicom_node/doctor.py",
    "dicom_node/web/login/commands.py",
    "inference/export/",
    "inference/runtime/benchmark.py",
    "inference/training/",
    "scripts/",
)


def functions(source: str) -> Iterator[Function]:
    """Every function and method of a module, nested ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            yield node


def code_lines(function: Function, source: str) -> int:
    """Lines of a function that hold code: no docstring, no comment, no blank, no decorator."""
    docstrings = set[int]()
    for node in ast.walk(function):
        if isinstance(node, Function | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = source.splitlines()
    numbers = range(function.lineno, (function.end_lineno or function.lineno) + 1)
    texts = [lines[number - 1].strip() for number in numbers if number not in docstrings]
    return sum(1 for text in texts if text and not text.startswith("#"))


def short_functions(path: PurePosixPath, source: str) -> list[str]:
    """A function has at most 50 lines of code."""
    sizes = [(function, code_lines(function, source)) for function in functions(source)]
    wall = CODE_LINES_PER_FUNCTION
    return [
        f"{path}:{function.lineno} {function.name} has {size} lines of code; {wall} is the wall"
        for function, size in sizes
        if size > wall
    ]


def short_files(path: PurePosixPath, source: str) -> list[str]:
    """A file has at most 600 lines."""
    size = len(source.splitlines())
    return [f"{path} has {size} lines; {LINES_PER_FILE} is the wall"] if size > LINES_PER_FILE else []


def few_parameters(path: PurePosixPath, source: str) -> list[str]:
    """A function takes at most 7 parameters besides self."""
    complaints = []
    for function in functions(source):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        count = len([argument for argument in named if argument.arg not in {"self", "cls"}])
        if count > PARAMETERS:
            complaints.append(
                f"{path}:{function.lineno} {function.name} takes {count} parameters; {PARAMETERS} is the wall"
            )
    return complaints


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Say whether a handler catches every error: bare, Exception or BaseException."""
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(name, ast.Name) and name.id in {"Exception", "BaseException"} for name in caught)


def swallows_all(handler: ast.ExceptHandler) -> bool:
    """Say whether a broad handler ends without raising again: cleaning up and re-raising is no swallowing."""
    last = handler.body[-1]
    return is_broad(handler) and not (isinstance(last, ast.Raise) and last.exc is None)


def narrow_excepts(path: PurePosixPath, source: str) -> list[str]:
    """Only the four boundaries catch every error, once each."""
    handlers = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)]
    broad = [handler for handler in handlers if swallows_all(handler)]
    allowed = BOUNDARIES.get(str(path), 0)
    if len(broad) <= allowed:
        return []
    return [
        f"{path}:{handler.lineno} catches every error; {allowed} allowed in this file" for handler in broad
    ]


def named_rooms(path: PurePosixPath, source: str) -> list[str]:
    """No room is named so that everything fits into it."""
    names = {*path.parent.parts, path.stem} & BANNED_NAMES
    return [f"{path}: {name} says nothing about what is inside" for name in sorted(names)]


def no_prints(path: PurePosixPath, source: str) -> list[str]:
    """Only commands print; everything else logs."""
    if str(path).startswith(PRINTING):
        return []
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    return [f"{path}:{call.lineno} prints; a process that serves writes logs" for call in prints]


def introduces_itself(path: PurePosixPath, source: str) -> list[str]:
    """A module says in its first line what it is: that line is its line in the README."""
    docstring = ast.get_docstring(ast.parse(source))
    return [] if docstring else [f"{path} has no docstring to put into the README map"]


RULES: tuple[Rule, ...] = (
    short_functions,
    short_files,
    few_parameters,
    narrow_excepts,
    named_rooms,
    no_prints,
    introduces_itself,
)
