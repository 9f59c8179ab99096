"""Commands about this machine: its models, their engines, what is missing."""

import argparse

from dicom_node.commands.answering import EXIT_FAILED, as_json, say
from dicom_node.commands.opening import settings_of
from dicom_node.commands.parsing import Commands, add


def register(commands: Commands) -> None:
    """Add `models`, `prepare` and `doctor`."""
    add(commands, "models", models, "the model packages, and whether their files are as they were made")
    prepare_parser = add(commands, "prepare", prepare, "measure which engines run the models best here")
    prepare_parser.add_argument("models", nargs="*", metavar="MODEL", help="packages; otherwise the rules'")
    prepare_parser.add_argument("--rounds", type=int, default=5, help="measured images of each engine")
    prepare_parser.add_argument("--json", action="store_true", help="one JSON document")
    add(commands, "doctor", doctor, "what is wrong with this installation, and what to do")


def models(options: argparse.Namespace) -> int:
    """List the model packages; status 1 when one is broken."""
    from inference.runtime import list_models

    settings = settings_of(options)
    found = list_models(settings.inference)
    if not found:
        return say(f"there is no model package in {settings.inference.model_repository}", EXIT_FAILED)
    for model in found:
        print(f"{model.name:<24} {model.version:<10} {model.problem or 'ok'}")
    return EXIT_FAILED if any(model.problem for model in found) else 0


def prepare(options: argparse.Namespace) -> int:
    """Prepare the engines that inference.engines = "prepared" will run."""
    from dicom_node.prepare import evidence_of, prepare_models, text_of

    made = prepare_models(settings_of(options), options.models, max(1, options.rounds))
    print(as_json(evidence_of(made)) if options.json else text_of(made))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Say what is wrong with this installation; status 1 when something is."""
    from dicom_node.doctor import examine

    return 0 if examine(settings_of(options)) else EXIT_FAILED
