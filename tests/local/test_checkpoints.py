"""Models on disk: whole or not at all, never unpickled, never mistaken for another."""

import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from flowcore.extras import install_line
from flowcore.networks import ExternalConfig, FlowNetwork, PWCNetConfig, raft
from pipelines import checkpoints, models

SMALL = PWCNetConfig(
    encoder_widths=(4, 4, 8), decoder_widths=(8, 8), context_widths=(8,), finest_level=2, radius=1
)


def network(seed: int = 0, config: PWCNetConfig = SMALL) -> FlowNetwork:
    torch.manual_seed(seed)
    return config.build()


def same_weights(one: FlowNetwork, other: FlowNetwork) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_only_a_folder_s_name_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert models.absolute_model("teacher", "--teacher") == str(tmp_path / "teacher")
    for uri in (
        "torchvision:raft_small",
        "opencv:dis_medium",
        "distillflow:video",
        "models:/flow-teacher@champion",
        "s3://b/model",
    ):
        assert models.absolute_model(uri, "--teacher") == uri


def test_a_network_that_comes_with_the_package_is_found_by_its_name() -> None:
    for recipe in ("video", "laptop"):
        _, info = checkpoints.load_model(models.fetch_model(f"distillflow:{recipe}"))
        assert info.provenance["recipe"] == recipe


def test_a_name_that_no_shipped_network_has_is_an_error_with_those_that_there_are() -> None:
    for name in ("vidoe", "", "../shipped/video"):
        with pytest.raises(FileNotFoundError, match="those that do are distillflow:laptop"):
            models.fetch_model(f"distillflow:{name}")


def test_a_saved_model_comes_back_with_its_weights_configuration_and_provenance(tmp_path: Path) -> None:
    saved = network()
    digest = checkpoints.save_model(tmp_path / "m", saved, {"stage": "train teacher", "run_id": "abc"})
    loaded, info = checkpoints.load_model(tmp_path / "m")
    assert same_weights(saved, loaded)
    assert loaded.config == info.config == SMALL
    assert info.provenance == {"stage": "train teacher", "run_id": "abc"}
    assert info.run_id == "abc"
    assert info.digest == digest == checkpoints.model_digest(tmp_path / "m")


def test_weights_under_two_names_are_saved_under_both(tmp_path: Path) -> None:
    saved = network()
    saved.alias = saved.get_submodule("encoder")
    checkpoints.save_model(tmp_path, saved, {})
    stored = safetensors.torch.load_file(tmp_path / checkpoints.WEIGHTS_FILE)
    expected = saved.state_dict()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)


def test_channels_last_weights_are_saved_with_the_same_values(tmp_path: Path) -> None:
    saved = network().to(memory_format=torch.channels_last)
    checkpoints.save_model(tmp_path, saved, {})
    assert same_weights(saved, checkpoints.load_model(tmp_path)[0])


def test_loading_a_model_does_not_bring_torch_s_compiler(tmp_path: Path) -> None:
    checkpoints.save_model(tmp_path / "pwcnet", network(), {})
    checkpoints.save_model(tmp_path / "raft", raft.tiny()["raft"].build(), {})
    # It takes two seconds of a core, in each of a training's and a labelling's processes.
    code = (
        "import pathlib, sys; from pipelines.checkpoints import load_model; "
        "[load_model(pathlib.Path(each)) for each in sys.argv[1:]]; assert 'torch._dynamo' not in sys.modules"
    )
    models_made = [str(tmp_path / name) for name in ("pwcnet", "raft")]
    subprocess.run([sys.executable, "-c", code, *models_made], check=True)


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    checkpoints.save_model(tmp_path, network(), {})
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    checkpoints.load_model(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_the_digest_depends_on_weights_and_configuration_alone(tmp_path: Path) -> None:
    first = checkpoints.save_model(tmp_path / "1", network(0), {"stage": "distill"})
    again = checkpoints.save_model(tmp_path / "2", network(0), {"stage": "fine-tune"})
    other_weights = checkpoints.save_model(tmp_path / "3", network(1), {})
    # A different stride between the same tensors: the weights' bytes are equal.
    coarser = PWCNetConfig(encoder_widths=(4, 4), decoder_widths=(8,), context_widths=(8,), finest_level=1)
    assert len({first, other_weights, checkpoints.save_model(tmp_path / "4", network(0, coarser), {})}) == 3
    assert first == again
    assert len(first) == 16
    assert int(first, 16) >= 0


def test_saving_over_a_model_replaces_it_and_leaves_nothing_else(tmp_path: Path) -> None:
    checkpoints.save_model(tmp_path, network(0), {})
    newer = network(1)
    checkpoints.save_model(tmp_path, newer, {})
    assert same_weights(newer, checkpoints.load_model(tmp_path)[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
import torch
from flowcore.networks import PWCNetConfig
from pipelines import checkpoints
folder, moment = Path(sys.argv[1]), int(sys.argv[2])
rename, renames = Path.replace, []
def counted(self, target):
    renames.append(target)
    if len(renames) == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.replace = counted
torch.manual_seed(9)
config = PWCNetConfig(
    encoder_widths=(4, 4, 8), decoder_widths=(8, 8), context_widths=(8,), finest_level=2, radius=1
)
checkpoints.save_model(folder, config.build(), {})
"""


@pytest.mark.parametrize("moment", [1, 2])
def test_a_kill_while_saving_never_leaves_a_mixture_that_loads(tmp_path: Path, moment: int) -> None:
    old = network(0)
    checkpoints.save_model(tmp_path, old, {})
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path), str(moment)]
    killed = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert killed.returncode == -signal.SIGKILL
    if moment == 1:
        assert same_weights(old, checkpoints.load_model(tmp_path)[0])
    else:
        with pytest.raises(ValueError, match="replacing the model was interrupted"):
            checkpoints.load_model(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model folder .*absent"):
        checkpoints.load_model(tmp_path / "absent")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    checkpoints.save_model(tmp_path, network(), {})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
        checkpoints.load_model(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    checkpoints.save_model(tmp_path, network(), {})
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[-1] ^= 1
    path.write_bytes({"truncated": content[:-3], "one bit": content, "empty": b""}[damage])
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load_model(tmp_path)


@pytest.mark.parametrize(
    "card", ["", "[]", "{}", '{"format": 3, "config": {}, "digest": "", "provenance": {}}']
)
def test_a_description_that_is_none_is_refused(tmp_path: Path, card: str) -> None:
    checkpoints.save_model(tmp_path, network(), {})
    (tmp_path / "model.json").write_text(card)
    with pytest.raises(ValueError, match=r"model\.json"):
        checkpoints.load_model(tmp_path)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_is_refused_and_its_code_is_not_run(tmp_path: Path, form: str) -> None:
    sprung, folder = tmp_path / "sprung", tmp_path / "model"
    checkpoints.save_model(folder, network(), {})
    path = folder / "model.safetensors"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"weights": Trap(sprung)}, path)
    with pytest.raises(ValueError, match="is a pickle, never read"):
        checkpoints.load_model(folder)
    with pytest.raises(ValueError, match="never read"):
        models.fetch_model(str(path))
    assert not sprung.exists()


def test_a_training_state_that_is_any_pickle_is_refused_and_its_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"weights": Trap(tmp_path / "sprung")}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="resume from an earlier one"):
        checkpoints.load_training_state(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_weights_go_into_a_network_of_the_same_configuration_only(tmp_path: Path) -> None:
    saved = network(0)
    checkpoints.save_model(tmp_path, saved, {})
    same = network(1)
    checkpoints.load_weights_into(same, tmp_path)
    assert same_weights(saved, same)
    other = PWCNetConfig(
        encoder_widths=(4, 4, 8), decoder_widths=(8, 8), context_widths=(8, 8), finest_level=2, radius=2
    )
    with pytest.raises(ValueError, match="radius is 1 in the checkpoint and 2 here") as failure:
        checkpoints.load_weights_into(network(0, other), tmp_path)
    assert "context_widths is (8,) in the checkpoint and (8, 8) here" in str(failure.value)
    assert "decoder_widths" not in str(failure.value)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    checkpoints.save_model(tmp_path, network(), {})
    # The digest is made to fit, as another version would have written it.
    config = '{"architecture": "vcn"}'
    digest = hashlib.blake2b((tmp_path / "model.safetensors").read_bytes(), digest_size=8)
    digest.update(config.encode())
    card = f'{{"format": 2, "config": {config}, "digest": "{digest.hexdigest()}", "provenance": {{}}}}'
    (tmp_path / "model.json").write_text(card)
    with pytest.raises(ValueError, match="vcn"):
        checkpoints.load_model(tmp_path)


def test_the_training_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    sum(weight.sum() for weight in model.parameters()).backward()
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "step": 7,
        "position": (1, 48),
    }
    checkpoints.save_training_state(tmp_path, state)
    loaded = checkpoints.load_training_state(tmp_path)
    assert loaded["step"] == 7
    assert loaded["position"] == (1, 48)
    assert torch.equal(loaded["random"], state["random"])
    for key, moments in state["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(loaded["optimizer"]["state"][key][name], value)


def test_a_state_that_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="convert NumPy values"):
        checkpoints.save_training_state(tmp_path, {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not resume one"):
        checkpoints.load_training_state(tmp_path)


def test_a_truncated_state_is_named(tmp_path: Path) -> None:
    checkpoints.save_training_state(tmp_path, {"step": 1})
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="resume from an earlier one"):
        checkpoints.load_training_state(tmp_path)


def test_a_model_is_found_by_path_and_by_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = checkpoints.save_model(tmp_path / "model", network(), {})
    monkeypatch.chdir(tmp_path)
    assert models.fetch_model("model") == tmp_path / "model"
    assert models.fetch_model(str(tmp_path / "model")) == tmp_path / "model"
    copied = models.fetch_model(f"file://{tmp_path}/model")
    assert checkpoints.model_digest(copied) == digest


@pytest.mark.parametrize("uri", ["absent", "file:///absent/model", "gopher://host/model"])
def test_a_model_that_is_nowhere_is_named(uri: str) -> None:
    with pytest.raises(FileNotFoundError, match=uri):
        models.fetch_model(uri)


def test_a_relative_model_is_refused_in_the_working_folder_of_a_ray_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    checkpoints.save_model(copy / "model", network(), {})
    monkeypatch.chdir(copy)
    with pytest.raises(ValueError, match="absolute path"):
        models.fetch_model("model")


def test_a_training_starts_from_the_weights_of_a_model_whatever_network_is_given(tmp_path: Path) -> None:
    saved = network()
    digest = checkpoints.save_model(tmp_path, saved, {})
    start = models.starting_point(str(tmp_path), PWCNetConfig())
    assert start.network == SMALL
    assert start.weights is not None
    assert start.weights.keys() == saved.state_dict().keys()
    assert all(torch.equal(start.weights[name], value) for name, value in saved.state_dict().items())
    assert start.info is not None
    assert start.info.digest == digest


def test_a_training_without_a_model_starts_from_fresh_weights_of_the_network_given() -> None:
    assert models.starting_point(None, SMALL) == models.StartingPoint(network=SMALL)


EXTERNAL = pytest.mark.parametrize("uri", ["torchvision:raft_small", "ptlflow:raft"])


@EXTERNAL
def test_an_external_network_needs_its_library_to_label(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = uri.partition(":")[0]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RuntimeError, match=re.escape(install_line(library))):
        models.fetch_model(uri)


@EXTERNAL
def test_an_external_network_is_never_trained(uri: str) -> None:
    with pytest.raises(ValueError, match=f"{uri}, which makes labels .* give --init fresh"):
        models.starting_point(uri, SMALL)


def published(config: ExternalConfig, hub: Path) -> FlowNetwork:
    """A network with other weights than published ones, which lie where torch's hub keeps those."""
    pytest.importorskip(config.library, reason=f"pip install -e '.[{config.library}]' to run this test")
    torch.manual_seed(1)
    network = config.build()
    assert isinstance(network.model, torch.nn.Module)
    if config.library == "torchvision":
        torchvision = pytest.importorskip("torchvision")
        url, content = (
            torchvision.models.get_model_weights(config.name).DEFAULT.url,
            network.model.state_dict(),
        )
    else:
        checkpoint = {"state_dict": network.model.state_dict(), "hyper_parameters": {"lr": 1e-4}}
        url, content = network.model.pretrained_checkpoints["things"], checkpoint
    (hub / "checkpoints").mkdir(parents=True)
    torch.save(content, hub / "checkpoints" / url.rpartition("/")[2])
    return network


# ptlflow's RAFT has weights under two names.
@pytest.mark.parametrize(("library", "name"), [("torchvision", "raft_small"), ("ptlflow", "raft")])
def test_an_external_network_is_fetched_with_its_weights_and_saved_like_any_other(
    library: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = ExternalConfig(library=library, name=name)  # type: ignore[arg-type]
    theirs = published(config, tmp_path / "hub")
    loaded, info = checkpoints.load_model(models.fetch_model(config.uri))
    assert same_weights(theirs, loaded)
    assert loaded.config == config
    assert info.provenance["network"] == config.uri
    assert info.provenance["weights"].startswith("https://")
    assert (info.run_id, info.generation) == (None, 0)
    images = torch.rand(2, 1, 3, 64, 72)
    for ours, expected in zip(loaded.eval().estimate(*images), theirs.eval().estimate(*images), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("library", ["torchvision", "ptlflow"])
def test_weights_that_cannot_be_downloaded_are_an_error_with_the_remedy(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library, reason=f"pip install -e '.[{library}]' to run this test")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # nobody listens there
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=f"put the file into {tmp_path}/hub/checkpoints"):
        models.fetch_model(f"{library}:raft_small")
