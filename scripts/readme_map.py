"""Write or check the README's map: one line a module, the first line of its docstring."""

import ast
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("dicom_node", "inference", "storage", "migrations")
BEGIN, END = "<!-- map: made by scripts/readme_map.py -->", "<!-- end of map -->"


def first_line(path: Path) -> str:
    """The first line of a module's docstring; empty where there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return docstring.splitlines()[0].strip() if docstring else ""


def render(repository: Path) -> str:
    """The map as Markdown: a block for each folder that holds modules."""
    blocks = []
    folders = {path.parent for package in PACKAGES for path in (repository / package).rglob("*.py")}
    for folder in sorted(folders):
        paths = sorted(folder.glob("*.py"))
        width = max(len(path.name) for path in paths)
        lines = [f"{folder.relative_to(repository).as_posix()}/"]
        lines += [f"  {path.name:<{width}}  {first_line(path)}".rstrip() for path in paths]
        blocks.append("\n".join(lines))
    return "```text\n" + "\n\n".join(blocks) + "\n```"


def replace_section(text: str, section: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """`text` with `section` between the two marker lines; raises ValueError where they are missing."""
    begin, end = markers
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the README has no line {begin!r} followed by {end!r}")
    return pattern.sub(lambda _: f"{begin}\n{section}\n{end}", text)


def run(section: str, markers: tuple[str, str], arguments: list[str]) -> int:
    """Write the section into the README, or with --check say whether it is there already."""
    readme = REPOSITORY / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = replace_section(before, section, markers)
    if arguments == ["--write"]:
        readme.write_text(after, encoding="utf-8")
    elif arguments == ["--check"]:
        if before != after:
            print(f"README.md is behind: run `python {Path(sys.argv[0]).name} --write`", file=sys.stderr)
            return 1
    else:
        print("say --write or --check", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(render(REPOSITORY), (BEGIN, END), sys.argv[1:]))
