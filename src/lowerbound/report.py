"""`report.html`: a run folder as one page that needs no network.

What was run, its numbers with their units, its pictures, and how to load it. The page is a function of the folder's files and
of nothing else, so whoever changes one of them (a training, an evaluation) writes it anew.
"""

from __future__ import annotations

import shlex
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra.errors import HydraException
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from lowerbound import folder as files
from lowerbound.defaults import Difference, differences
from lowerbound.errors import reading
from lowerbound.sizes import require_room
from lowerbound.trust import check_words
from lowerbound.wording import EVIDENCE, MEANINGS, evidence_cells, plain, unit, words, written

CAPTIONS = {
    "learning_curves": "Training and validation, over optimizer steps",
    "reconstructions": "Data and what the model makes of their codes",
    "filled_in": "Hidden entries and what the model fills in",
    "samples": "Draws of the model",
    "components": "The components of the mixture",
    "latent_plane": "Codes of validation data",
    "loadings": "The columns of W",
    "eigenvalue_spectrum": "Variances of data and model, and the noise",
    "kl_per_dimension": "What each latent dimension carries, validation data",
    "interpolation": "From code to code, on a straight and on a spherical way",
    "latent_traversal": "One latent dimension at a time",
    "importance_weighted_curve": "The bound against its number of samples, over what else is known of log p(x)",
    "collapse": "Which latent dimensions are used, and which have collapsed, test data",
}


BROAD = 1.5  # times its height


def write_report(folder: Path) -> Path | None:
    """Write the page of a finished run; None, and nothing, where there are no results.

    Returns:
        Where it is.
    """
    results = files.read_json(folder / files.RESULTS)
    if results is None:
        return None
    page = (
        environment()
        .get_template("run.html")
        .render(
            title=results.get("name", folder.resolve().name),
            folder=folder.resolve().name,
            place=repr(f"path/to/{folder.resolve().name}"),
            results=results,
            command=command(folder),
            is_plain=is_plain(folder),
            differences=changed(folder),
            facts=facts(results),
            numbers=numbers(results),
            headings=EVIDENCE,
            evaluation=evaluation(folder),
            pictures=pictures(folder / files.FIGURES),
            is_loadable=(folder / files.WEIGHTS).is_file(),
        )
    )
    path = folder / files.REPORT
    files.write_whole(path, page)
    return path


def environment() -> Environment:
    """The templates of this package; what is filled in is escaped, and what is missing is an error."""
    return Environment(loader=PackageLoader("lowerbound"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def command(folder: Path) -> str | None:
    """The command line that makes such a run; None: it is not kept, or holds what a page cannot show."""
    overrides = files.read_overrides(folder)
    if overrides is None or any(plain(word) != word for word in overrides):
        return None
    return shlex.join(["lowerbound-train", *overrides])


def is_plain(folder: Path) -> bool:
    """Whether that line does no more than choose and set values, and can be repeated by whoever has the folder from somebody else."""
    try:
        check_words(files.read_overrides(folder) or [])
    except (ValueError, HydraException):
        return False
    return True


def changed(folder: Path) -> list[Difference]:
    """How the configuration differs from the default one."""
    path = folder / files.CONFIG
    chosen = [word.lstrip("+~").partition("=")[0] for word in files.read_overrides(folder) or []]
    with reading(path):
        return differences(files.read_config(path), chosen) if path.is_file() else []


def facts(results: Mapping[str, Any]) -> dict[str, str]:
    """What was run, and on what, by name."""
    data = dict(results.get("data", {}))
    counts = ", ".join(
        f"{data[part]:,} {name}" for part, name in (("train", "training"), ("val", "validation"), ("test", "test")) if part in data
    )
    steps = f"{results.get('optimizer_steps', 0):,} optimizer steps in {results['epochs']:,} epochs" if "epochs" in results else ""
    precision = f", precision {results['precision']}" if "precision" in results else ""
    seconds = results.get("seconds")
    told = {
        "data": f"{data.get('kind', '')}: {counts}; {data.get('dim', '?')} numbers each" if counts else str(data.get("kind", "")),
        "prepared by": ", ".join(data.get("preparation", [])),
        "parameters": f"{results['parameters']:,}" if "parameters" in results else "",
        "learnt by": steps,
        "time": "" if seconds is None else f"{seconds:,.1f} s, {results.get('images_per_second', 0):,.0f} data per second",
        "device": f"{results.get('devices', 1)} x {results['device']}{precision}" if "device" in results else "",
        "versions": ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items()),
        "commit": results.get("git_commit") or "",
    }
    return {name: text for name, text in told.items() if text}


def numbers(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The numbers of validation, test and studies: a line for each quantity, with its unit and what it is."""
    rank = {name: i for i, name in enumerate(MEANINGS)}
    keys = sorted((key for key in results if key.startswith(("val/", "test/", "study/"))), key=lambda key: rank.get(key.split("/")[1], 99))
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        part, _, name = key.partition("/")
        is_study = part == "study"
        own = {
            "name": words(name),
            "unit": unit(name).strip(),
            "meaning": "of the study of this run" if is_study else MEANINGS.get(name, ""),
        }
        line = found.setdefault(key if is_study else name, own)
        line["test" if part == "study" else part] = written(results[key]).strip()
    return [{"val": "", "test": ""} | line for line in found.values()]


def as_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same as headings and cells."""
    headings = ["name", "val", "test", "unit", "meaning"]
    return headings, [[line[heading] for heading in headings] for line in numbers(results)]


def evaluation(folder: Path) -> dict[str, Any] | None:
    """What `lowerbound-evaluate` found, with the lines of its table as text; None where it was not asked."""
    found = files.read_json(folder / files.EVALUATION)
    found = found and {"baselines": [], "verdict": None, "warnings": [], "sentences": []} | found
    return found and found | {"rows": [evidence_cells(row) for row in found["evidence"] + found["baselines"]]}


def pictures(folder: Path) -> list[dict[str, str]]:
    """The pictures of a folder as data URIs with their captions: those that are known first, in the order of `CAPTIONS`."""
    order = {name: i for i, name in enumerate(CAPTIONS)}
    paths = sorted(filter(Path.is_file, folder.glob("*.png")), key=lambda path: (order.get(path.stem, len(order)), path.stem))
    return [picture(path, CAPTIONS.get(path.stem, words(path.stem))) for path in paths]


def picture(path: Path, caption: str) -> dict[str, str]:
    """A picture for a page; one that is much wider than high gets the page's whole width."""
    with opened(path) as image:
        kind = "broad" if image.width > BROAD * image.height else "usual"
    return {"name": path.stem, "caption": caption, "uri": data_uri(path), "kind": kind}


def opened(path: Path) -> Image.Image:
    """A PNG file; others are not even looked at: some kinds of pictures are programs, whatever their file is called.

    Raises:
        ValueError: it is none, or larger than a picture is.
    """
    try:
        require_room(path, 4 * path.stat().st_size)  # a page holds it as text, twice
        return Image.open(path, formats=["PNG"])
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no PNG picture: {error}") from error


def pixels_of(path: Path) -> np.ndarray:
    """The pixels ``[H, W, 3]`` of a PNG file.

    Raises:
        ValueError: it is none.
    """
    with opened(path) as image:
        try:
            return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is no PNG picture: {error}") from error


def data_uri(path: Path) -> str:
    """A PNG file as text that a page can hold."""
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
