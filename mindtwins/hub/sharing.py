"""A model as a folder that others can use: its weights, what they state, and a model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mindspore import nn

from mindtwins import __version__
from mindtwins.checkpoint import TRAINING_STATE, Checkpoint, load_checkpoint, save_checkpoint
from mindtwins.console import tell
from mindtwins.conversion.kinds import Kinds, ModelKind, identified
from mindtwins.errors import UserError
from mindtwins.files import atomic_write, read_file
from mindtwins.hub.fetching import PUBLISHED, WEIGHTS, first_line, hub_client
from mindtwins.hub.pretrained import CONFIG, load_pretrained

CARD = "README.md"

# Of what a checkpoint states, what using its weights takes and where they are from: a training's
# own also have its recipe, with the paths of a machine.
_PUBLIC = (
    *("format_version", "task", "variant", "dialect", "classes", "preprocessing", "data"),
    *("postprocessing", "source", "widened_from", "filled"),
)

# Of the authors' weights, and of timm's copies of them.
_PUBLISHED_LICENSE = "apache-2.0"


def save_folder(
    kinds: Kinds,
    source: nn.Cell | Checkpoint | str | os.PathLike,
    folder: str | os.PathLike,
    report: str | os.PathLike | None = None,
    license: str | None = None,
    name: str | None = None,
) -> None:
    """Write a model's folder; each file is there whole or not at all.

    Args:
        kinds: the kinds of models that it may be of, by task.
        source: a model as `load_model` gives it, with the weights that it has now, or a checkpoint.
        folder: made if it is not there. Files of the same names in it are replaced.
        report: what a conversion with --verify wrote with --report, for the card's parity table.
        license: of the weights, as the hub abbreviates it; left out, that of the authors' weights
            where these are theirs.
        name: what the card calls the model; left out, as the folder.

    Raises:
        UserError: it is no model of these kinds, the report is of another, or a file cannot be
            written.
    """
    folder = Path(folder).expanduser()
    if report is not None and isinstance(source, nn.Cell):
        raise UserError(
            f"{report} is of a file, and a model may have other weights by now: save the file"
        )
    checkpoint = _as_checkpoint(kinds, source, folder)
    verified = _verification(report, checkpoint) if report is not None else []
    kind = kinds[checkpoint.stated["task"]]
    card = write_card(kind, checkpoint, name or folder.resolve().name, verified, license)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
    save_checkpoint(folder / WEIGHTS, checkpoint.tensors, checkpoint.stated)
    config = {"library_name": "mindtwins", "library_version": __version__, **checkpoint.stated}
    for file, text in ((CONFIG, json.dumps(config, indent=2) + "\n"), (CARD, card)):
        with atomic_write(folder / file) as stream:
            stream.write(text.encode())


def upload(
    kinds: Kinds,
    source: nn.Cell | Checkpoint | str | os.PathLike,
    repository: str,
    report: str | os.PathLike | None = None,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Put a model into a repository of the hub, which is made if it is not there.

    Args:
        source: as for `save_folder`, or a folder that it wrote, whose card is uploaded as it is
            but for the name by which it says that the model is loaded.
        repository: "owner/name".
        private: whether a new repository is.
        token: of the hub; left out, huggingface_hub's own (HF_TOKEN, `hf auth login`).

    Returns:
        Where it is now.

    Raises:
        UserError: as `save_folder`, or the hub cannot be reached or does not let it be written.
    """
    hub = hub_client()
    with tempfile.TemporaryDirectory(prefix="mindtwins-") as temporary:
        folder = Path(temporary)
        if isinstance(source, str | os.PathLike) and Path(source).expanduser().is_dir():
            if report is not None or license is not None:
                raise UserError(
                    f"{source} has a model card already: give report and license to save_pretrained"
                )
            _copy_folder(kinds, Path(source).expanduser(), folder, repository)
        else:
            save_folder(kinds, source, folder, report, license, repository)
        api = hub.HfApi(token=token)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                allow_patterns=[WEIGHTS, CONFIG, CARD],
                commit_message=f"Model of MindTwins {__version__}",
            )
        # As with downloads: the errors below the client's own change with its versions.
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            advice = ""
            if status in (401, 403) or isinstance(error, hub.errors.LocalTokenNotFoundError):
                advice = ": set HF_TOKEN to a token that may write there"
            raise UserError(
                f"cannot put {repository} on {hub.constants.ENDPOINT} ({first_line(error)}){advice}"
            ) from error
    return f"{hub.constants.ENDPOINT}/{repository}"


def _copy_folder(kinds: Kinds, source: Path, target: Path, repository: str) -> None:
    """Copy the files of a model's folder, to be loaded from a repository.

    Raises:
        UserError: one is not there, or the weights are damaged.
    """
    if missing := [name for name in (WEIGHTS, CONFIG, CARD) if not (source / name).is_file()]:
        raise UserError(f"{source} lacks {missing[0]}: write the folder with save_pretrained")
    load_pretrained(kinds, source)  # checks the seal
    for name in (WEIGHTS, CONFIG):
        shutil.copyfile(source / name, target / name)
    card = (source / CARD).read_text(encoding="utf-8")
    card = card.replace(_loading(source.resolve().name), _loading(repository))
    (target / CARD).write_text(card, encoding="utf-8")


def _loading(name: str) -> str:
    """How a card says that its model is loaded."""
    return f"model = mindtwins.load_model({name!r})"


def _as_checkpoint(
    kinds: Kinds, source: nn.Cell | Checkpoint | str | os.PathLike, folder: Path
) -> Checkpoint:
    """The weights alone, proven to be of the model that the metadata states."""
    if isinstance(source, nn.Cell):
        metadata = getattr(source, "metadata", None)
        if metadata is None:
            raise UserError(
                "this model does not say what it is: build it with mindtwins.load_model, or give"
                " its checkpoint"
            )
        tensors = {parameter.name: parameter.asnumpy() for parameter in source.get_parameters()}
        checkpoint = Checkpoint(tensors, metadata, folder)
    elif isinstance(source, Checkpoint):
        checkpoint = identified(kinds, source)
    else:
        checkpoint = identified(kinds, load_checkpoint(source))
    checkpoint = checkpoint.without(TRAINING_STATE)
    kind = kinds[checkpoint.stated["task"]]
    kind.create(checkpoint)
    stated = {
        key: value
        for key, value in checkpoint.stated.items()
        if key in (*_PUBLIC, *kind.architecture_keys)
    }
    return replace(checkpoint, metadata=stated)


def _verification(report: str | os.PathLike, checkpoint: Checkpoint) -> list[dict]:
    """The rows of a conversion's report, which has to be of this model's source."""
    try:
        stated = json.loads(read_file(report))
        rows, of = stated["verification"], stated["metadata"]["source"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{report} is no report of a conversion (mindtwins convert --report)"
        ) from error
    if of != checkpoint.stated.get("source", {}).get("sha256"):
        raise UserError(f"{report} is of another model than {checkpoint.path}")
    if not rows:
        raise UserError(f"{report} compares nothing: convert with --verify and --report")
    return rows


def write_card(
    kind: ModelKind, checkpoint: Checkpoint, name: str, verified: list[dict], license: str | None
) -> str:
    """A model card: front matter for the hub, and what a reader has to know.

    Args:
        checkpoint: of known metadata, weights alone.
        name: what the model is called.
        verified: rows of a conversion's report; none if there is none.
        license: of the weights; None where only their origin says it.
    """
    stated = checkpoint.stated
    source = stated.get("source", {})
    if license is None and source.get("repository") in PUBLISHED.values():
        license = _PUBLISHED_LICENSE
    if license is None:
        tell(f"the card of {name} states no license: give it as license=")
    variant, task = stated["variant"], stated["task"]
    count = sum(a.size for n, a in checkpoint.tensors.items() if ".bn.moving_" not in n)
    front = [
        "---",
        *([f"license: {license}"] if license else []),
        "library_name: mindtwins",
        f"pipeline_tag: {kind.pipeline}",
        "tags:",
        "- mindspore",
        "- twins",
        f"- {variant}",
        "---",
    ]
    facts = {
        "model": variant,
        "task": task,
        "parameters": f"{count:,}",
        "classes": stated.get("num_classes"),
        "input channels": stated.get("in_channels", 3),
        **_flat("preprocessing", stated.get("preprocessing")),
        **_flat("convention", stated.get("dialect")),
        **_flat("postprocessing", stated.get("postprocessing")),
        "converted from": source.get("repository") or source.get("file"),
        "its sha256": source.get("sha256"),
        "its names": source.get("layout"),
        "license of the weights": license or "not stated",
    }
    return "\n".join(
        [
            *front,
            "",
            f"# {name}",
            "",
            f"A Twins {variant} (https://arxiv.org/abs/2104.13840) for image {task} on MindSpore.",
            "",
            "```python",
            "import mindtwins",
            _loading(name),
            kind.example,
            "```",
            "",
            *_table(("", ""), [(key, value) for key, value in facts.items() if value is not None]),
            "",
            f"`{WEIGHTS}` is sealed: it states all of this itself, with a SHA-256 of its content;"
            f" `{CONFIG}` repeats it for people.",
            "",
            "## Parity with PyTorch",
            "",
            *_parity(verified),
            "",
        ]
    )


def _flat(title: str, values: Mapping | None) -> dict[str, object]:
    return {f"{title}: {key}": value for key, value in (values or {}).items()}


def _parity(rows: list[dict]) -> list[str]:
    if not rows:
        return ["Not measured for this card."]
    header = ("weights", "output", "max abs / std", "PyTorch's own rounding")
    return [
        "Largest differences between this model and a plain PyTorch one with the same weights, on",
        "two photographs:",
        "",
        *_table(
            header,
            [
                (
                    row["weights"],
                    row["stage"],
                    f"{row['max_abs']:.1e}",
                    f"{row['max_abs_floor']:.1e}",
                )
                for row in rows
            ],
        ),
    ]


def _table(header: tuple, rows: list[tuple]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]
