"""Models and label sets of the Hugging Face hub, from a server with its file layout."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer
from stored_pairs import shard, write_set

from flowcore.networks import PWCNetConfig
from pipelines import models
from pipelines.checkpoints import MOST_BYTES, load_model, save_model
from pipelines.pair_set import PairSet
from pipelines.storage import Folder, storage_of

CONFIG = PWCNetConfig(encoder_widths=(4, 4, 8), decoder_widths=(8, 8), context_widths=(8,), radius=1)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server
        server.shutdown()


def uploaded(hub: HubServer, folder: str = "") -> str:
    """The digest of a model in the repository ann/student, which has other files too."""
    repository = hub.root / "models" / "ann" / "student"
    digest = save_model(repository / folder, CONFIG.build(), {"stage": "distill"})
    for other in ("modeling.py", "pytorch_model.bin", "README.md"):
        (repository / folder / other).write_text("raise SystemExit\n")
    return digest


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
@pytest.mark.parametrize("folder", ["", "checkpoints/last"])
def test_a_model_of_the_hub_is_read_and_no_other_file_of_its_repository(
    hub: HubServer, revision: str, folder: str
) -> None:
    digest = uploaded(hub, folder)
    place = f"hf://ann/student{revision}" + (f"/{folder}" if folder else "")
    assert load_model(models.fetch_model(place))[1].digest == digest
    assert {name.rpartition("/")[2] for name in hub.sent} == {"model.json", "model.safetensors"}


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_what_is_made_from_a_model_of_the_hub_names_its_commit(hub: HubServer, revision: str) -> None:
    digest = uploaded(hub, "last")
    uri = models.absolute_model(f"hf://ann/student{revision}/last", "--init")
    assert uri == f"hf://ann/student@{COMMIT}/last"
    start = models.starting_point(uri, PWCNetConfig())
    assert start.uri == uri
    assert start.info is not None
    assert start.info.digest == digest


def test_a_model_at_a_commit_is_named_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    # nobody listens there
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    uri = f"hf://ann/student@{COMMIT}"
    assert models.absolute_model(uri, "--model") == uri
    with pytest.raises(ConnectionError, match="the hub can't be asked for hf://ann/student now"):
        models.absolute_model("hf://ann/student", "--model")


@pytest.mark.parametrize("place", ["hf://ann/teacher", "hf://ann/student@v2"])
def test_a_repository_or_revision_that_the_hub_has_not_is_named(hub: HubServer, place: str) -> None:
    uploaded(hub)
    with pytest.raises(FileNotFoundError, match=f"the hub has no {place}"):
        models.absolute_model(place, "--model")


def test_a_repository_without_a_model_is_named(hub: HubServer) -> None:
    (hub.root / "models" / "ann" / "empty").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="there is no model at hf://ann/empty"):
        models.fetch_model("hf://ann/empty")


@pytest.mark.parametrize("place", ["hf://student", "hf://ann/student@", "hf://spaces/ann/student@main"])
def test_what_is_no_repository_is_refused_with_the_form_that_is_taken(place: str) -> None:
    with pytest.raises(ValueError, match="must be hf://owner/name"):
        models.absolute_model(place, "--model")


def test_weights_of_the_hub_that_are_too_large_are_never_sent(hub: HubServer) -> None:
    uploaded(hub)
    with (hub.root / "models" / "ann" / "student" / "model.safetensors").open("r+b") as file:
        # A hole, which takes no disk.
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ValueError, match=f"has {MOST_BYTES + 1} bytes, and at most {MOST_BYTES} are read"):
        models.fetch_model("hf://ann/student")
    assert hub.sent == set()


def test_without_its_library_a_place_on_the_hub_names_the_install_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # None is how Python says that there is no such module.
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for read in (models.fetch_model, lambda uri: models.absolute_model(uri, "--model"), PairSet.open):
        with pytest.raises(RuntimeError, match="pip install 'huggingface-hub"):
            read("hf://ann/student")


def test_a_label_set_of_the_hub_is_the_one_that_was_uploaded(hub: HubServer) -> None:
    folder = hub.root / "datasets" / "ann" / "labels" / "walk"
    write_set(folder, {"0a": [shard(3, 48, 64, 8)[0]]})
    local, there = (PairSet.open(place) for place in (str(folder), "hf://datasets/ann/labels@v1/walk"))
    assert there.label_set == local.label_set
    assert there.index().drop(["file"]).equals(local.index().drop(["file"]))


def test_nothing_is_written_to_the_hub_nor_deleted_there(hub: HubServer) -> None:
    uploaded(hub)
    repository = Folder("hf://ann/student")
    for change in (
        lambda: repository.write("model.json", b"{}"),
        lambda: repository.remove_folder(""),
        lambda: repository.remove("model.json"),
        lambda: storage_of("hf://ann/student")[0].move("ann/student/model.json", "ann/student/other.json"),
    ):
        with pytest.raises(PermissionError, match="only read; write to a folder, then `hf upload` it"):
            change()


def test_a_secret_in_a_place_on_the_hub_is_refused_with_the_variable_that_takes_it() -> None:
    with pytest.raises(ValueError, match="HF_TOKEN"):
        models.absolute_model("hf://ann:hush@owner/student", "--model")
