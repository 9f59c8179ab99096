"""The rules of the house, run by a machine; each is shown to fail on a bad sample first."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path, PurePosixPath

import pytest
import yaml
from pydantic import BaseModel

from scripts import readme_map, readme_results
from tests.conftest import REPOSITORY
from tests.house import rules
from tests.order import LONGEST, TOGETHER

PACKAGES = ("dicom_node", "inference", "storage", "migrations")
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = ("README.md", "deploy/README.md")
CONTRACTS = PYPROJECT["tool"]["importlinter"]["contracts"]


def modules(*folders: str) -> Iterator[tuple[PurePosixPath, str]]:
    """Path below the repository and text of every Python file in `folders`."""
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield PurePosixPath(path.relative_to(REPOSITORY).as_posix()), path.read_text(encoding="utf-8")


# --- sizes, errors, names, prints ------------------------------------------------------------------

LONG_FUNCTION = "def long() -> None:\n" + "    step()\n" * 50
EIGHT_PARAMETERS = "def wide(self, a, b, c, d, *, e, f, g, h): ...\n"
SWALLOWED = "try:\n    work()\nexcept (ValueError, Exception):\n    pass\n"

BAD_SAMPLES = [
    (rules.short_functions, "storage/jobs.py", LONG_FUNCTION),
    (
        rules.short_functions,
        "storage/jobs.py",
        "class Room:\n    async " + LONG_FUNCTION.replace("\n", "\n    "),
    ),
    (rules.short_files, "storage/jobs.py", "step()\n" * 601),
    (rules.few_parameters, "storage/jobs.py", EIGHT_PARAMETERS),
    (rules.narrow_excepts, "storage/jobs.py", SWALLOWED),
    (rules.narrow_excepts, "storage/jobs.py", "try:\n    work()\nexcept:\n    pass\n"),
    (rules.narrow_excepts, "dicom_node/tasks.py", SWALLOWED + SWALLOWED),
    (rules.named_rooms, "dicom_node/web/utils.py", ""),
    (rules.named_rooms, "dicom_node/common/times.py", ""),
    (rules.no_prints, "dicom_node/receive.py", "print('here')\n"),
    (rules.introduces_itself, "storage/jobs.py", "import this\n"),
]

GOOD_SAMPLES = [
    (rules.short_functions, "storage/jobs.py", LONG_FUNCTION.replace("    step()\n", "    # why\n\n", 1)),
    (
        rules.short_functions,
        "storage/jobs.py",
        LONG_FUNCTION.replace("    step()\n", '    """Says\n    so."""\n', 1),
    ),
    (rules.short_files, "storage/jobs.py", "step()\n" * 600),
    (rules.few_parameters, "storage/jobs.py", EIGHT_PARAMETERS.replace(", h", "")),
    (rules.narrow_excepts, "dicom_node/tasks.py", SWALLOWED),
    (rules.narrow_excepts, "storage/jobs.py", SWALLOWED.replace("pass", "close()\n    raise")),
    (rules.named_rooms, "dicom_node/database.py", ""),
    (rules.no_prints, "dicom_node/commands/work.py", "print('here')\n"),
    (rules.introduces_itself, "storage/jobs.py", '"""Job state machine."""\n'),
]


@pytest.mark.parametrize(("rule", "path", "source"), BAD_SAMPLES)
def test_a_rule_finds_its_bad_sample(rule: rules.Rule, path: str, source: str) -> None:
    assert rule(PurePosixPath(path), source)


@pytest.mark.parametrize(("rule", "path", "source"), GOOD_SAMPLES)
def test_a_rule_lets_good_code_pass(rule: rules.Rule, path: str, source: str) -> None:
    assert rule(PurePosixPath(path), source) == []


def test_every_rule_has_a_bad_sample() -> None:
    assert {rule for rule, _, _ in BAD_SAMPLES} == set(rules.RULES)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_packages_keep_the_rule(rule: rules.Rule) -> None:
    complaints = [complaint for path, source in modules(*PACKAGES) for complaint in rule(path, source)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("rule", [rules.short_functions, rules.short_files, rules.named_rooms])
def test_tests_and_scripts_keep_the_sizes_too(rule: rules.Rule) -> None:
    complaints = [
        complaint for path, source in modules("tests", "scripts") for complaint in rule(path, source)
    ]
    assert not complaints, "\n".join(complaints)


def test_the_files_that_begin_first_exist() -> None:
    named = {*LONGEST, *TOGETHER, *TOGETHER.values()}
    assert [path for path in sorted(named) if not (REPOSITORY / path).is_file()] == []


def test_the_boundaries_exist() -> None:
    assert [path for path in rules.BOUNDARIES if not (REPOSITORY / path).is_file()] == []


# --- import directions -----------------------------------------------------------------------------


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of this repository's pyproject.toml on the packages in `folder`."""
    command = [Path(sys.executable).with_name("lint-imports"), "--config", REPOSITORY / "pyproject.toml"]
    return subprocess.run(
        [*command, "--no-cache", "--no-logo"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def verdicts(output: str) -> dict[str, str]:
    """Name of each contract -> KEPT or BROKEN."""
    found = re.findall(r"^(.+?) (KEPT|BROKEN)\b", output, re.MULTILINE)
    return dict(found)


def test_imports_go_one_way() -> None:
    finished = lint_imports(REPOSITORY)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert set(verdicts(finished.stdout).values()) == {"KEPT"}


def test_every_import_contract_can_break(tmp_path: Path) -> None:
    """Empty packages of the same names, with one forbidden import for each contract."""
    for contract in CONTRACTS:
        for name in [*contract["source_modules"], *contract["forbidden_modules"]]:
            if name.split(".")[0] in PACKAGES:
                make_module(tmp_path, name)
    for contract in CONTRACTS:
        source, forbidden = contract["source_modules"][-1], contract["forbidden_modules"][-1]
        with (tmp_path / source.replace(".", "/") / "__init__.py").open("a", encoding="utf-8") as module:
            module.write(f"import {forbidden}\n")
    found = verdicts(lint_imports(tmp_path).stdout)
    assert found == {contract["name"]: "BROKEN" for contract in CONTRACTS}


def make_module(root: Path, name: str) -> None:
    """An empty package for every part of a dotted name."""
    folder = root
    for part in name.split("."):
        folder = folder / part
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()


# What a running process really loads, imports inside functions and of third parties included.
LOADED = [
    ("dicom_node.tasks", ["torch", "transformers", "segment_anything", "dicom_node.web", "pytest"]),
    (
        "inference.runtime",
        ["torch", "transformers", "onnx", "pydicom", "sqlalchemy", "storage", "dicom_node"],
    ),
    ("dicom_node.dimse.listener", ["torch", "onnxruntime", "tokenizers", "celery", "inference.runtime"]),
    ("dicom_node.web.app", ["torch", "onnxruntime", "tokenizers", "celery", "inference.runtime"]),
]


def loaded_of(module: str, unwanted: list[str]) -> str:
    """Which of `unwanted` are loaded once `module` is imported, in a new process."""
    program = f"import sys, {module}; print(sorted(set({unwanted!r}) & set(sys.modules)))"
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


@pytest.mark.parametrize(("module", "unwanted"), LOADED, ids=[module for module, _ in LOADED])
def test_a_process_loads_only_what_it_needs(module: str, unwanted: list[str]) -> None:
    assert loaded_of(module, unwanted) == "[]"


def test_a_loaded_module_would_be_seen() -> None:
    assert loaded_of("json.decoder", ["json", "torch"]) == "['json']"


# --- README, settings, dependencies ----------------------------------------------------------------


def test_the_readme_map_agrees_with_the_code() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert readme == readme_map.replace_section(readme, readme_map.render(REPOSITORY)), (
        "run: python scripts/readme_map.py --write"
    )


def test_the_readme_map_notices_a_changed_docstring(tmp_path: Path) -> None:
    module = tmp_path / "storage" / "jobs.py"
    module.parent.mkdir()
    module.write_text('"""Job state machine."""\n', encoding="utf-8")
    before = readme_map.render(tmp_path)
    module.write_text('"""Something else."""\n', encoding="utf-8")
    assert "Job state machine." in before
    assert readme_map.render(tmp_path) != before


def test_the_readme_gives_the_measured_accuracy() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = readme_results.render(REPOSITORY)
    assert readme == readme_map.replace_section(readme, section, readme_results.MARKERS), (
        "run: python scripts/readme_results.py --write"
    )


def test_the_accuracy_table_shows_every_model_and_the_majority(tmp_path: Path) -> None:
    score = {"mean": 0.8125, "low": 0.79, "high": 0.8333}
    for name, scores in {
        readme_results.MAIN: {"images": 189, "dice": score, "majority_accuracy": 0.68},
        readme_results.OTHERS[0]: {"images": 189},
    }.items():
        folder = tmp_path / readme_results.PACKAGES / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"datasets": {"busbra": scores}}))
    table = readme_results.render(tmp_path)
    assert "| busbra | 189 | 0.812 (0.790-0.833) | - | - | - | 0.680 |" in table


def broken_links(page: Path) -> list[str]:
    """Relative links and pictures of a Markdown page that lead nowhere."""
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    return [target for target in targets if "://" not in target and not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    assert broken_links(REPOSITORY / page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("![a](gone.png) [b](page.md) [c](https://example.org/)", encoding="utf-8")
    assert broken_links(page) == ["gone.png"]


def unknown_commands(page: str) -> set[str]:
    """Words after `dicom-node` in a page that are no command of it."""
    from dicom_node.__main__ import build_parser

    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "==SUPPRESS==")
    return set(re.findall(r"dicom-node ([a-z][a-z-]+)", page)) - set(commands)


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_name_commands_that_exist(page: str) -> None:
    assert unknown_commands((REPOSITORY / page).read_text(encoding="utf-8")) == set()


def test_an_unknown_command_is_found() -> None:
    assert unknown_commands("`dicom-node serve` and `dicom-node fly --home DIR`") == {"fly"}


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_show_configuration_that_loads(page: str, tmp_path: Path) -> None:
    from dicom_node.settings import load_settings

    blocks = re.findall(r"```toml\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        config = tmp_path / "node.toml"
        config.write_text(block, encoding="utf-8")
        load_settings(tmp_path, config)


def test_compose_starts_commands_that_exist_with_settings_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dicom_node.__main__ import build_parser
    from dicom_node.settings import load_settings

    services = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]
    ours = {name: service for name, service in services.items() if "command" in service}
    assert set(ours) == {"migrate", "scp", "web", "sweep", "deliver", "worker"}
    for service in ours.values():
        for name, value in service["environment"].items():
            monkeypatch.setenv(name, re.sub(r"\$\{.*?\}", "secret", value))
        build_parser().parse_args(service["command"])
        assert load_settings(tmp_path).dimse.host == "0.0.0.0"


def setting_paths(model: type[BaseModel], section: str = "") -> Iterator[tuple[str, str]]:
    """(section, key) of every setting; sections are nested models."""
    for key, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from setting_paths(inner, f"{section}.{key}".strip("."))
        else:
            yield section, key


def documented(example: str) -> set[tuple[str, str]]:
    """(section, key) of every line `key = ...` of a TOML text, commented out or not."""
    section, found = "", set()
    for line in example.splitlines():
        text = line.lstrip("# ").strip()
        if header := re.fullmatch(r"\[{1,2}([a-z_.]+)\]{1,2}", text):
            section = header[1]
            found.add(("", section))
        elif key := re.match(r"([a-z_0-9]+)\s*=", text):
            found.add((section, key[1]))
    return found


def undocumented(example: str) -> list[tuple[str, str]]:
    """Settings that an example configuration does not mention; `home` comes from the command line."""
    from dicom_node.settings import NodeSettings

    return sorted(set(setting_paths(NodeSettings)) - documented(example) - {("", "home")})


def test_every_setting_is_documented() -> None:
    example = (REPOSITORY / "deploy" / "node.example.toml").read_text(encoding="utf-8")
    assert undocumented(example) == []


def test_an_undocumented_setting_is_found() -> None:
    example = (REPOSITORY / "deploy" / "node.example.toml").read_text(encoding="utf-8")
    without_port = re.sub(r"^#?\s*ae_title =.*$", "", example, flags=re.MULTILINE)
    assert ("dimse", "ae_title") in undocumented(without_port)


SERVING = ("dicom_node", "storage", "migrations", "inference/runtime")
PLUGINS = {
    "httptools",
    "uvloop",
    "websockets",
    "pyjpegls",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
}  # pydicom and uvicorn load them
OPTIONAL = {"storage/postgresql.py": "postgres", "storage/s3.py": "s3"}  # module -> the extra it needs
COMES_WITH = {
    "botocore": "boto3",
    "pydantic-core": "pydantic",
    "onnxruntime": "onnxruntime",
}  # the latter from the extras cpu and gpu


def imported_distributions(sources: Iterable[str]) -> set[str]:
    """Names of the installed distributions that some modules import; ours and Python's own left out."""
    names = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(str(node.module).split(".")[0])
    known = packages_distributions()
    foreign = names - set(sys.stdlib_module_names) - set(PACKAGES)
    return {known.get(name, [name])[0].lower().replace("_", "-") for name in foreign}


def names_of(requirements: Iterable[str]) -> set[str]:
    """`{"redis"}` for `["redis>=8"]`."""
    return {re.split(r"[<>=\[]", line)[0] for line in requirements}


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    serving = [source for path, source in modules(*SERVING) if str(path) not in OPTIONAL]
    serving += [path.read_text(encoding="utf-8") for path in (REPOSITORY / "inference").glob("*.py")]
    imported = {COMES_WITH.get(name, name) for name in imported_distributions(serving)} - {"onnxruntime"}
    assert imported == names_of(PYPROJECT["project"]["dependencies"]) - PLUGINS


def test_what_an_extra_brings_is_imported_by_its_module_alone() -> None:
    always = names_of(PYPROJECT["project"]["dependencies"])
    for name, extra in OPTIONAL.items():
        source = (REPOSITORY / name).read_text(encoding="utf-8")
        imported = {COMES_WITH.get(found, found) for found in imported_distributions([source])}
        assert imported - always == names_of(PYPROJECT["project"]["optional-dependencies"][extra])


def test_an_undeclared_import_is_found() -> None:
    assert imported_distributions(["import os\nimport torch.nn\n", "from storage import jobs\n"]) == {"torch"}


def pins(lock: str) -> dict[str, str]:
    """Package -> version of a lock file."""
    text = (REPOSITORY / "locks" / lock).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;\\\n]+)", text, re.MULTILINE))


def test_the_default_install_has_no_torch_and_no_tools() -> None:
    assert (
        set(pins("default.txt")) & {"torch", "transformers", "onnx", "onnxruntime-gpu", "pytest", "ruff"}
        == set()
    )
    assert "onnxruntime" in pins("default.txt")


@pytest.mark.parametrize("lock", ["default.txt", "node.txt", "worker.txt"])
def test_the_locks_agree(lock: str) -> None:
    everything = pins("dev.txt")
    assert {name: version for name, version in pins(lock).items() if everything.get(name) != version} == {}


def test_every_pin_has_a_hash() -> None:
    for lock in sorted({path.name for path in (REPOSITORY / "locks").glob("*.txt")} - {"torch.txt"}):
        text = (REPOSITORY / "locks" / lock).read_text(encoding="utf-8")
        blocks = re.split(r"\n(?=\S)", text)
        assert [block for block in blocks if block.strip() and "--hash=sha256:" not in block] == []


def test_one_onnx_runtime_is_installed() -> None:
    """The CPU and the GPU build overwrite each other's files, and pip does not notice."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(distribution(name).name)
        except PackageNotFoundError:
            continue
    assert len(found) == 1


def test_no_module_is_left_out_of_the_package() -> None:
    """setuptools finds a folder only where it is named in pyproject.toml and holds __init__.py."""
    folders = {path.parent for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")}
    scripts_only = {REPOSITORY / "migrations", REPOSITORY / "migrations" / "versions"}
    assert [str(folder) for folder in folders - scripts_only if not (folder / "__init__.py").is_file()] == []


def test_the_version_agrees() -> None:
    source = (REPOSITORY / "dicom_node" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{PYPROJECT["project"]["version"]}"' in source
