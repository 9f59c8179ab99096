import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from dicom_node.forms.form import Form
from dicom_node.settings import BadConfiguration, NodeSettings, load_settings
from dicom_node.settings_example import example_toml

DESTINATION = "[[destinations]]\nname = 'a'\nae_title = 'A'\nhost = 'h'\nport = 104\n"


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_are_those_of_the_issue(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert (settings.dimse.ae_title, settings.dimse.host, settings.dimse.port) == (
        "SIM4SEG",
        "127.0.0.1",
        11112,
    )
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 8080)
    assert settings.completion.quiet_period_s == 10
    assert settings.storage.files_root == tmp_path / "files"
    assert settings.storage.database_url == f"sqlite:///{tmp_path / 'node.sqlite'}"


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config(tmp_path, "[dimse]\nport = 2000\nae_title = 'FROMFILE'\n")
    monkeypatch.setenv("DICOM_NODE_DIMSE__PORT", "2001")
    settings = load_settings(tmp_path)
    assert (settings.dimse.port, settings.dimse.ae_title) == (2001, "FROMFILE")


def test_lists_in_the_environment_are_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "DICOM_NODE_DESTINATIONS", '[{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}]'
    )
    assert load_settings(tmp_path).destinations[0].ae_title == "PACS"


def test_a_destination_gets_seg_and_sr_unless_it_says_otherwise(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, config(tmp_path, DESTINATION))
    assert settings.destinations[0].forms == (Form.SEG, Form.SR)
    settings = load_settings(tmp_path, config(tmp_path, DESTINATION + "forms = ['SC', 'SEG_FRACTIONAL']"))
    assert settings.destinations[0].forms == (Form.SC, Form.SEG_FRACTIONAL)


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    with pytest.raises(ValidationError):
        settings.dimse.port = 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[dimse]\nport = 70000", "dimse.port"),
        ("[dimse]\nprot = 1", "dimse.prot: there is no setting of this name"),
        ("[dimes]\nport = 1", "dimes: there is no setting of this name"),
        ("[dimse]\nae_title = 'SEVENTEEN LETTERS'", "dimse.ae_title"),
        ("[[routes]]\nname = 'a'\nmodel = 'm'\nquery = 'q'\ndescription = '('", "routes.0.description"),
        (
            "[[routes]]\nname = 'a'\nmodel = 'm'\nquery = 'q'\ndescription = '" + "a" * 201 + "'",
            "routes.0.description",
        ),
        ("[completion]\nquiet_period_s = 'soon'", "completion.quiet_period_s"),
        ("[storage]\ndatabase_url = 'mysql://x'", "storage.database_url"),
        ("home = '/tmp'", "home: cannot stand in the file"),
        ("[[destinations]]\nname = 'a'\n", "destinations.0.ae_title"),
        (DESTINATION + "forms = ['SEG', 'VIDEO']", "destinations.0.forms.1"),
        (DESTINATION + "forms = []", "destinations.0.forms"),
        (DESTINATION + "forms = ['SEG', 'SEG_LABELMAP']", "destinations.0.forms: name one of SEG"),
        (DESTINATION + "forms = ['SR', 'SR']", "destinations.0.forms: the form SR stands there twice"),
        ("dimse = 3", "dimse"),
        ("[dimse", "is not TOML"),
    ],
)
def test_a_bad_configuration_is_one_sentence_naming_the_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        load_settings(tmp_path, config(tmp_path, text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_secret_is_not_repeated(tmp_path: Path) -> None:
    path = config(tmp_path, "[storage]\ndatabase_url = 'mysql://user:hunter2@x'")
    with pytest.raises(BadConfiguration) as caught:
        load_settings(tmp_path, path)
    assert "hunter2" not in str(caught.value)
    settings = load_settings(tmp_path, config(tmp_path, "[broker]\nurl = 'redis://:hunter2@localhost/0'"))
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("variable", ["DICOM_NODE_DISME__PORT", "DICOM_NODE_HOME__X", "DICOM_NODE_PORT"])
def test_unknown_variables_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(BadConfiguration, match=variable):
        load_settings(tmp_path)


def test_a_missing_file_is_refused_only_when_it_was_named(tmp_path: Path) -> None:
    load_settings(tmp_path)
    with pytest.raises(BadConfiguration, match="cannot be read"):
        load_settings(tmp_path, tmp_path / "absent.toml")


def test_names_are_unique(tmp_path: Path) -> None:
    entry = "[[peers]]\nname = 'a'\nae_title = 'A'\nhost = 'h'\nport = 1\n"
    with pytest.raises(BadConfiguration, match="stands there twice"):
        load_settings(tmp_path, config(tmp_path, entry * 2))


def described(model: type[BaseModel], path: str = "") -> list[str]:
    """Every setting below `model` that nothing is said about."""
    silent = []
    for name, field in model.model_fields.items():
        if not field.description:
            silent.append(path + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            silent += described(field.annotation, f"{path}{name}.")
    return silent


def test_every_setting_is_described() -> None:
    assert described(NodeSettings) == []


def test_the_example_file_is_the_generated_one(repository: Path) -> None:
    written = (repository / "deploy" / "node.example.toml").read_text(encoding="utf-8")
    assert written == example_toml(), "run `python -m dicom_node.settings_example`"


def test_the_example_is_what_happens_without_it(tmp_path: Path) -> None:
    assert load_settings(tmp_path, config(tmp_path, example_toml())) == load_settings(tmp_path)


def test_the_example_stays_valid_when_everything_is_uncommented(tmp_path: Path) -> None:
    lines = [
        line[1:] if line[:1] == "#" and line[1:2] != " " else line for line in example_toml().splitlines()
    ]
    text = "\n".join(lines).replace("HOME/", f"/{tmp_path.name}/")
    assert tomllib.loads(text)["dimse"]["port"] == 11112
    settings = load_settings(tmp_path, config(tmp_path, text))
    assert settings.routes == load_settings(tmp_path, config(tmp_path, "")).routes
