"""Commands on files, without a node: the pipeline, the check of results, trying it out."""

import argparse
from functools import partial
from pathlib import Path
from typing import Final

from dicom_node.commands.answering import EXIT_FAILED, as_json, say
from dicom_node.commands.opening import settings_of
from dicom_node.commands.parsing import RESEARCH_USE_ONLY, Commands, add

SHOWN: Final = (
    "outcome", "reason", "diagnosis", "confidence", "conclusion", "text", "area_mm2", "area_px", "volume_ml",
    "end_diastolic_ml", "end_systolic_ml", "ejection_fraction_percent", "files",
)  # fmt: skip


def register(commands: Commands) -> None:
    """Add `check`, `run`, `make-dicom`, `samples` and `demo`."""
    check_parser = add(commands, "check", check, "whether results keep the rules that they are sent by")
    check_parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="SEG and SR; images beside them are compared"
    )
    run_parser = add(commands, "run", run, "the same pipeline on DICOM files, without a server")
    run_parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="DICOM files or folders")
    run_parser.add_argument("--out", type=Path, required=True, help="folder for SEG, SR and summary")
    run_parser.add_argument("--model", help="model package; otherwise the rules choose")
    run_parser.add_argument("--query", help="clinical question; otherwise the rules choose")
    run_parser.add_argument("--json", action="store_true", help="one JSON document")
    make_parser = add(commands, "make-dicom", make_dicom, "wrap PNG or JPEG into DICOM, for trying the node")
    make_parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="PNG or JPEG files")
    make_parser.add_argument("--modality", required=True, help="US, ES, DX, MR, CT or XC")
    make_parser.add_argument("--body-part", required=True, help="Body Part Examined, e.g. BREAST")
    make_parser.add_argument("--patient", default="", help="patient name to write; synthetic by default")
    make_parser.add_argument("--out", type=Path, required=True, help="folder for the DICOM files")
    samples_parser = add(commands, "samples", samples, "write the synthetic sample studies")
    samples_parser.add_argument("--out", type=Path, required=True, help="folder for the DICOM files")
    demo_parser = add(commands, "demo", demo, "a node, a PACS and three studies on this machine")
    demo_parser.add_argument("--once", action="store_true", help="end by itself; status 0 if all came back")
    demo_parser.add_argument(
        "--study", type=Path, help="DICOM folder, or PNG or JPEG files, instead of the samples"
    )
    demo_parser.add_argument("--viewer", type=Path, help="folder of OHIF's static site")


def check(options: argparse.Namespace) -> int:
    """What of the files breaks a rule; status 1 when something does."""
    from dicom_node.air.check_files import check_files

    checked = check_files(options.files)
    for entry in checked:
        print("\n".join(f"{entry.name}: {word}" for word in entry.broken or ("keeps every rule",)))
    if not checked:
        return say("there is no SEG and no SR among the files", EXIT_FAILED)
    return EXIT_FAILED if any(entry.broken for entry in checked) else 0


def run(options: argparse.Namespace) -> int:
    """The pipeline on files, without a server; status 1 when a series has no result."""
    from dicom_node.frames import display_frames
    from dicom_node.predictors import Predictors
    from dicom_node.run_folder import RunOptions, run_paths
    from dicom_node.services import open_decoders

    settings = settings_of(options)
    with open_decoders(settings) as decoders:
        run_options = RunOptions(
            open_predictor=Predictors(settings).open,
            routes=settings.routes,
            model=options.model,
            query=options.query,
            decode=partial(decoders.each, display_frames),
        )
        summaries = run_paths(options.paths, options.out, run_options)
    print(as_json(summaries) if options.json else _table_of_summaries(summaries))
    return 0 if any("sop_instance_uids" in summary for summary in summaries) else EXIT_FAILED


def make_dicom(options: argparse.Namespace) -> int:
    """Wrap images into DICOM."""
    from dicom_node import make_dicom as maker

    patient = maker.Patient(name=options.patient) if options.patient else maker.Patient()
    details = maker.SeriesDetails(modality=options.modality, body_part=options.body_part, patient=patient)
    try:
        paths = maker.make_dicom(options.images, options.out, details)
    except maker.BadImage as error:
        return say(str(error), EXIT_FAILED)
    print("\n".join(str(path) for path in paths))
    return 0


def samples(options: argparse.Namespace) -> int:
    """Write the synthetic sample studies."""
    from dicom_node.samples import write_samples

    for sample in write_samples(options.out):
        print(f"{sample.title}: {len(sample.paths)} instances in {sample.folder}")
    return 0


def demo(options: argparse.Namespace) -> int:
    """A node, a PACS and three studies."""
    from dicom_node.demo import run_demo

    return run_demo(options)


def _table_of_summaries(summaries: "list[dict[str, object]]") -> str:
    """One block a series: what was found, where the files are, or why there is nothing."""
    lines = []
    for summary in summaries:
        lines.append(
            f"{summary.get('modality', '-')} {summary.get('series_instance_uid') or summary.get('file')}"
        )
        lines += [f"  {key:<12}{summary[key]}" for key in SHOWN if summary.get(key) is not None]
    return "\n".join([*lines, RESEARCH_USE_ONLY])
