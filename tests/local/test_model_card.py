"""What a model says about itself on the Hugging Face hub: what is recorded, and no more."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from flowcore.inference import InferenceOptions
from flowcore.networks import PWCNetConfig
from jobs import export_model
from jobs.export_model import ExportModel
from jobs.parsing import UsageError, parse
from pipelines import run_store, tracking
from pipelines.checkpoints import load_model, save_model
from pipelines.model_card import model_card, shipped_page
from pipelines.models import SHIPPED_FOLDER
from pipelines.recorded import ModelRecord, model_record

CONFIG = PWCNetConfig(encoder_widths=(4, 4, 8), decoder_widths=(8, 8), context_widths=(8,), radius=1)


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return run_store.tracking_uri()


def trained(store: str) -> str:
    """The id of a run that trained a model, which two evaluations judged."""
    inputs = {"videos": "s3://films/walks", "init": "hf://ann/teacher@main"}
    with tracking.start("distill", parameters={}, inputs=inputs) as run:
        run.summary({"final/step": 400, "train/loss": 0.5})
    for epe in (3.0, 2.5):
        with tracking.start("evaluate", parameters={}) as evaluation:
            evaluation.link("model", run.run_id)
            evaluation.summary({"sintel/clean/epe/all": epe, "sintel/clean/pairs": 7, "final/epe": epe})
    # It says nothing of the network as it is.
    with tracking.start("evaluate", parameters={"inference": InferenceOptions(refinement=20)}) as sharper:
        sharper.link("model", run.run_id)
        sharper.summary({"sintel/clean/epe/all": 2.0, "sintel/clean/pairs": 7, "final/epe": 2.0})
    with tracking.start("evaluate", parameters={}) as other:
        other.summary({"sintel/clean/epe/all": 9.0})
    return run.run_id


def exported(tmp_path: Path, provenance: dict[str, str], licence: str = "mit") -> Path:
    save_model(tmp_path / "model", CONFIG.build(), provenance)
    output = tmp_path / "for-the-hub"
    export_model.main(
        ExportModel(model=str(tmp_path / "model"), output=str(output), format="hub", license=licence)
    )
    return output


def told_of(options: type[ExportModel], arguments: list[str]) -> str:
    with pytest.raises(UsageError) as caught:
        parse(options, arguments, program="export", description="")
    return str(caught.value)


def header(readme: str) -> dict[str, object]:
    _, text, _ = readme.split("---\n", 2)
    values: dict[str, object] = yaml.safe_load(text)
    return values


def test_a_folder_for_the_hub_is_a_model_with_what_its_run_and_evaluations_recorded(
    tmp_path: Path, store: str
) -> None:
    output = exported(
        tmp_path, {"stage": "distill", "recipe": "video", "generation": "1", "run_id": trained(store)}
    )
    assert load_model(output)[1].digest == load_model(tmp_path / "model")[1].digest
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "model.json",
        "model.safetensors",
    ]
    readme = (output / "README.md").read_text()
    assert header(readme) == {
        "license": "mit",
        "library_name": "distillflow",
        "tags": ["optical-flow", "distillflow"],
        "base_model": ["ann/teacher"],
    }
    for row in (
        "| `recipe` | `video` |",
        "| `distillations` | `1` |",
        "| `videos, read from` | `s3://films/walks` |",
        "| `step` | `400` |",
        # The latest evaluation's.
        "| `sintel/clean/epe/all` | `2.5` |",
    ):
        assert row in readme
    assert "train/loss" not in readme
    # It has a row already.
    assert "final/epe" not in readme


def test_a_model_whose_run_is_recorded_elsewhere_says_what_its_card_does(tmp_path: Path, store: str) -> None:
    assert model_record("0" * 32) is None
    readme = (exported(tmp_path, {"stage": "distill", "run_id": "0" * 32}) / "README.md").read_text()
    assert "| `stage` | `distill` |" in readme
    assert "None is recorded." in readme
    assert "base_model" not in header(readme)


def test_no_store_is_made_to_look_a_model_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/absent.db")
    assert model_record("0" * 32) is None
    assert not list(tmp_path.iterdir())


def test_a_network_that_comes_with_the_software_has_its_own_page_on_the_hub(tmp_path: Path) -> None:
    output = tmp_path / "laptop"
    export_model.main(ExportModel(model="distillflow:laptop", output=str(output), format="hub"))
    readme = (output / "README.md").read_text()
    assert (SHIPPED_FOLDER / "laptop" / "README.md").read_text().strip() in readme
    assert "None is recorded." not in readme
    assert header(readme)["library_name"] == "distillflow"


def test_a_page_that_lies_beside_a_model_of_others_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("Upload your keys, too.")
    assert "keys" not in (exported(tmp_path, {}) / "README.md").read_text()


@pytest.mark.parametrize("folder", sorted(SHIPPED_FOLDER.iterdir()), ids=lambda folder: folder.name)
def test_a_network_that_comes_with_the_software_says_what_it_is(folder: Path) -> None:
    page = shipped_page(folder)
    assert page is not None
    titles = re.findall("^#+ (.*)", page, re.MULTILINE)
    assert titles[:3] == [f"distillflow:{folder.name}", "What it learnt from", "Errors"]
    assert titles[-1] == "Make it again"


def test_what_is_recorded_adds_no_line_to_the_readme_and_no_secret(tmp_path: Path) -> None:
    save_model(tmp_path, CONFIG.build(), {"where": "a|b`\n# c"})
    record = ModelRecord(inputs={"videos": "s3://key:hush@films\n---"}, final={}, errors={})
    readme = model_card(*load_model(tmp_path), record, "mit")
    assert "| `where` | `a?b?\\n# c` |" in readme
    assert "hush" not in readme
    assert readme.count("\n---\n") == 1


def test_a_folder_of_anything_else_is_refused_and_stays(tmp_path: Path, store: str) -> None:
    output = tmp_path / "for-the-hub"
    for name in ("README.md", "model.safetensors", "notes.txt"):
        output.mkdir()
        (output / name).write_text("mine")
        with pytest.raises(ValueError, match=f"for-the-hub holds {name}, which isn't of an export"):
            exported(tmp_path, {})
        assert [(path.name, path.read_text()) for path in output.iterdir()] == [(name, "mine")]
        shutil.rmtree(output)


def test_an_earlier_export_is_replaced(tmp_path: Path, store: str) -> None:
    (tmp_path / "for-the-hub").mkdir()
    (tmp_path / "for-the-hub" / ".gitattributes").touch()
    exported(tmp_path, {"stage": "train_teacher"})
    readme = (exported(tmp_path, {"stage": "distill"}) / "README.md").read_text()
    assert "| `stage` | `distill` |" in readme


def test_an_export_that_fails_leaves_no_readme(tmp_path: Path, store: str) -> None:
    # A folder where the card is to be written.
    (tmp_path / "for-the-hub" / "model.json").mkdir(parents=True)
    with pytest.raises(OSError, match="Is a directory"):
        exported(tmp_path, {})
    assert not (tmp_path / "for-the-hub" / "README.md").exists()


def test_a_licence_without_a_readme_is_refused() -> None:
    for other in ("graph", "ptlflow"):
        told = told_of(ExportModel, ["--model", "a", "--output", "b", "--license", "mit", "--format", other])
        assert told == "--license mit is for the README of --format hub; add --format hub"


def test_a_licence_that_could_not_be_the_hub_s_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be an identifier of the hub's"):
        exported(tmp_path, {}, licence="mit\ntags: x")
    assert not (tmp_path / "for-the-hub").exists()
