"""Trained models as MLflow has them: loaded, served over HTTP, and logged by step."""

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, cast

import mlflow.pyfunc
import numpy as np
import pyarrow as pa
import pytest
import torch
from clips import TINY, moving, save_teacher
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flowcore.inference import InferenceOptions
from flowcore.networks import FlowNetwork, tiny
from flowcore.occlusion import OcclusionCheck
from flowcore.scenes import render_scene
from flowcore.shapes import to_images
from pipelines import registry
from pipelines.checkpoints import CARD_FILE, KEPT_FOLDER, WEIGHTS_FILE, load_model, model_digest, save_model
from pipelines.held_back import HeldBack
from pipelines.lineage import lineage
from pipelines.models import fetch_model
from pipelines.pair_set import PairSet
from pipelines.serving import SIGNATURE, ServedModel, make_servable, serve
from pipelines.tracking import Run
from pipelines.training import Trained

REPOSITORY = Path(__file__).resolve().parents[2]
CHAMPION = "models:/flow-student@champion"
VALIDATED = {2: 3.0, 4: 2.0, 8: 1.0}
"""The error of the training's validation by step."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    run_root: str
    resume: str | None = None


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A training that ended."""

    run: Run
    network: FlowNetwork
    """What it trained."""
    model: Path
    judge: HeldBack


@pytest.fixture(scope="module")
def registered(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    """A training of eight steps, in whose folder step 4 is kept and what a kill left of step 6."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(empty_store, project / "mlflow.db")
    model, stage = project / "trained", Stage(run_root=str(project / "runs"))
    network = save_teacher(model, scale=0.1)
    judge = HeldBack(
        stage="distill",
        pairs=cast(PairSet, None),
        places=pa.table({"pair_id": ["a"]}),
        check=OcclusionCheck(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
        with lineage("distill", "smoke", stage, {"videos": "/videos"}, project_folder=project) as run:
            for step, error in VALIDATED.items():
                run.log(step, {"validation/comparable": error, "train/loss": error})
            kept = Path(stage.run_root) / run.run_id / KEPT_FOLDER
            save_model(kept / "step-00000004", TINY.build(), {})
            (kept / "step-00000004" / "state.pt").write_bytes(b"the optimiser's")
            save_model(kept / "step-00000006", TINY.build(), {})
            (kept / "step-00000006" / WEIGHTS_FILE).unlink()
            trained = Trained(
                model=model,
                step=8,
                ended_at=8,
                validation={"comparable": 1.0, "photometric": 1.0},
                judge=judge,
            )
            run.register(trained, "flow-student")
        yield Registered(run=run, network=network, model=model, judge=judge)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Two pairs of consecutive frames, (2, 2, 40, 56, 3)."""
    scene = render_scene(0, moving(3, height=40, width=56)).frames
    return np.stack([np.stack(scene[:2]), np.stack(scene[1:3])])


def own_answer(network: FlowNetwork, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Flow and occlusion of pairs, by the network and the check themselves."""
    flow_fw, flow_bw = network.eval().estimate(to_images(frames[:, 0]), to_images(frames[:, 1]))
    occlusion = OcclusionCheck()(flow_fw, flow_bw)[:, 0]
    return {"flow": flow_fw.movedim(1, -1).numpy(), "occlusion": occlusion.numpy()}


def assert_answers(answer: dict[str, Any], network: FlowNetwork, frames: np.ndarray) -> None:
    expected = own_answer(network, frames)
    assert answer.keys() == expected.keys()
    np.testing.assert_allclose(answer["flow"], expected["flow"], rtol=0, atol=1e-3)
    # Where the check is within rounding of its threshold, either answer is right.
    assert (np.asarray(answer["occlusion"]) == expected["occlusion"]).mean() > 0.99
    assert 0 < expected["occlusion"].mean() < 1


def test_mlflow_loads_the_champion_and_finds_the_network_s_own_flow(
    registered: Registered, frames: np.ndarray
) -> None:
    answer = mlflow.pyfunc.load_model(CHAMPION).predict(frames)
    assert_answers(answer, registered.network, frames)
    assert (answer["flow"].dtype, answer["occlusion"].dtype) == (np.float32, bool)
    assert answer["flow"].shape == (2, 40, 56, 2)


def test_a_registered_model_says_which_tensors_it_takes_and_gives(registered: Registered) -> None:
    assert mlflow.pyfunc.load_model(CHAMPION).metadata.signature == SIGNATURE
    (frames,) = SIGNATURE.inputs
    assert (frames.shape, frames.type) == ((-1, 2, -1, -1, 3), np.uint8)
    outputs = {each.name: (each.shape, each.type) for each in SIGNATURE.outputs}
    assert outputs == {"flow": ((-1, -1, -1, 2), np.float32), "occlusion": ((-1, -1, -1), bool)}


def test_a_registered_model_is_safetensors_and_text_and_the_project_s_own_code(
    registered: Registered,
) -> None:
    folder = registry.download(CHAMPION)
    names = {path.name for path in folder.iterdir()} - {"registered_model_meta"}
    assert names == {WEIGHTS_FILE, CARD_FILE, "MLmodel", "requirements.txt", "python_env.yaml", "code.zip"}
    with zipfile.ZipFile(folder / "code.zip") as archive:
        code = {name: archive.read(name) for name in archive.namelist()}
    assert code == {
        str(path.relative_to(REPOSITORY)): path.read_bytes()
        for package in ("flowcore", "pipelines")
        for path in (REPOSITORY / package).rglob("*.py")
    }


def test_every_door_reads_the_registered_model_as_it_was_saved(registered: Registered) -> None:
    expected = model_digest(registered.model)
    run_id = registered.run.run_id
    (result,) = [each for each in logged(registered.run) if each.params["step"] == "8"]
    for uri in (CHAMPION, "models:/flow-student/1", f"runs:/{run_id}/model", result.model_uri):
        assert model_digest(fetch_model(uri)) == expected
        assert registry.run_of(uri) == run_id


@pytest.mark.parametrize("shape", [(2, 40, 56, 3), (1, 3, 40, 56, 3), (1, 2, 40, 56, 1), (0, 2, 40, 56, 3)])
def test_frames_of_another_shape_are_refused_with_the_one_that_is_taken(
    registered: Registered, shape: tuple[int, ...]
) -> None:
    with pytest.raises(MlflowException, match=r"expected shape \(-1, 2, -1, -1, 3\)|pairs, 2, height, width"):
        mlflow.pyfunc.load_model(CHAMPION).predict(np.zeros(shape, np.uint8))


def test_frames_that_differ_in_size_are_refused_with_the_rule(registered: Registered) -> None:
    pairs = np.empty(2, object)
    pairs[:] = [np.zeros((2, 40, size, 3), np.uint8) for size in (56, 64)]
    with pytest.raises(MlflowException, match="all of one size") as refused:
        mlflow.pyfunc.load_model(CHAMPION).predict(pairs)
    assert refused.value.get_http_status_code() == 400


SERVED_ELSEWHERE = """
import sys
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
import numpy as np
model.predict(np.zeros((1, 2, 32, 32, 3), np.uint8))
print(sys.modules["pipelines.serving"].__file__)
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def loaded_elsewhere(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a process says that has loaded a copy of the model: where its code is from, and what it took."""
    copy = shutil.copytree(registry.download(CHAMPION), tmp_path_factory.mktemp("elsewhere") / "model")
    command = [sys.executable, "-c", SERVED_ELSEWHERE, str(copy)]
    done = subprocess.run(command, cwd=copy.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_model_is_served_by_the_code_that_made_it(loaded_elsewhere: list[str]) -> None:
    assert loaded_elsewhere[0].endswith("model/code.zip/pipelines/serving.py")


def imported(module: str) -> set[str]:
    """The packages that a module of ours imports when it is imported."""
    path = REPOSITORY / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = set()
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Import):
            names |= {each.name for each in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module is not None:
            names.add(statement.module)
    return {name.partition(".")[0] for name in names}


def test_the_packages_that_a_served_model_takes_are_its_requirements_each_of_one_version(
    registered: Registered, loaded_elsewhere: list[str]
) -> None:
    lines = (registry.download(CHAMPION) / "requirements.txt").read_text().splitlines()
    pinned = {name: number for name, _, number in (line.partition("==") for line in lines)}
    assert all(pinned.values())
    own = {name for name in loaded_elsewhere[1].split() if name.startswith(("flowcore", "pipelines"))}
    taken = set().union(*map(imported, own)) - sys.stdlib_module_names - {"flowcore", "pipelines"}
    distributions = packages_distributions()
    assert {name for name in taken if not pinned.keys() & set(distributions[name])} == set()
    assert {name for name in pinned if not any(name in distributions[each] for each in taken)} == set()


def logged(run: Run) -> list[Any]:
    client = MlflowClient(run.uri)
    experiment = client.get_run(run.run_id).info.experiment_id
    found = client.search_logged_models([experiment])
    return sorted((each for each in found if each.source_run_id == run.run_id), key=lambda each: each.name)


def test_the_result_and_each_kept_checkpoint_are_logged_models_with_step_numbers_and_data(
    registered: Registered,
) -> None:
    models = logged(registered.run)
    assert [(each.name, each.params["step"], each.status) for each in models] == [
        ("step-00000004", "4", "READY"),
        ("step-00000008", "8", "READY"),
    ]
    assert all(each.params["videos"] == "/videos" for each in models)
    numbers = [
        [(one.key, one.value, one.step, one.dataset_name, one.dataset_digest) for one in each.metrics]
        for each in models
    ]
    digest = registered.judge.digest
    assert numbers == [
        [("validation/comparable", VALIDATED[step], step, "held back", digest)] for step in (4, 8)
    ]


def test_the_run_has_the_numbers_of_its_logged_models_once(registered: Registered) -> None:
    history = MlflowClient(registered.run.uri).get_metric_history(
        registered.run.run_id, "validation/comparable"
    )
    assert sorted((each.step, each.value) for each in history) == sorted(VALIDATED.items())


def test_a_logged_model_is_one_that_mlflow_loads(registered: Registered, frames: np.ndarray) -> None:
    kept, _ = logged(registered.run)
    answer = mlflow.pyfunc.load_model(kept.model_uri).predict(frames)
    assert_flow = own_answer(load_model(fetch_model(kept.model_uri))[0], frames)["flow"]
    np.testing.assert_allclose(answer["flow"], assert_flow, rtol=1e-4, atol=1e-3)


def test_a_checkpoint_is_logged_once(registered: Registered) -> None:
    before = logged(registered.run)
    again = registry.log_checkpoint(
        registered.run, 8, registered.model, params={}, judged_on=("held back", registered.judge.digest)
    )
    assert again == before[1].model_id
    assert len(logged(registered.run)) == len(before)


def test_the_logged_model_of_the_result_names_its_version(registered: Registered) -> None:
    kept, result = logged(registered.run)
    assert json.loads(result.tags["mlflow.modelVersions"]) == [{"name": "flow-student", "version": "1"}]
    assert "mlflow.modelVersions" not in kept.tags


def test_code_that_a_stranger_put_beside_a_model_is_not_run_by_a_job(tmp_path: Path) -> None:
    model, sprung = tmp_path / "model", tmp_path / "sprung"
    save_model(model, TINY.build(), {})
    make_servable(model, "0" * 32)
    trap = f"from pathlib import Path\nPath({str(sprung)!r}).touch()\n"
    with zipfile.ZipFile(model / "code.zip", "w") as archive:
        archive.writestr("pipelines/__init__.py", trap)
        archive.writestr("pipelines/serving.py", trap)
    read = f"from pipelines.models import starting_point; starting_point({str(model)!r}, None)"
    subprocess.run([sys.executable, "-c", read], cwd=REPOSITORY, check=True)
    assert not sprung.exists()
    # MLflow itself would run it.
    load = f"import mlflow.pyfunc; mlflow.pyfunc.load_model({str(model)!r})"
    subprocess.run([sys.executable, "-c", load], cwd=tmp_path, check=False, capture_output=True)
    assert sprung.exists()


@pytest.fixture(scope="module")
def address(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `mlflow models serve` answers for the champion."""
    folder = tmp_path_factory.mktemp("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "--model-uri", CHAMPION, "--env-manager", "local", "--port", str(port)]
    # The server of models is a program beside Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", *words],
            env={**os.environ, "PATH": path},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while ask(f"http://127.0.0.1:{port}/health")[0] != 200:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def ask(address: str, question: object = None) -> tuple[int, str]:
    """(the status, the answer); 0 where nobody answers."""
    content = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()
    except OSError:
        return 0, ""


def test_a_server_of_mlflow_answers_with_the_network_s_own_flow(
    address: str, registered: Registered, frames: np.ndarray
) -> None:
    status, answer = ask(address, {"inputs": frames.tolist()})
    assert status == 200, answer
    assert_answers(json.loads(answer)["predictions"], registered.network, frames)


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((1, 40, 56, 3), "does not match expected shape (-1, 2, -1, -1, 3)"),
        ((1, 3, 40, 56, 3), "does not match expected shape (-1, 2, -1, -1, 3)"),
        ((1, 2, 40, 56, 4), "does not match expected shape (-1, 2, -1, -1, 3)"),
    ],
)
def test_a_server_refuses_frames_of_another_shape_as_a_bad_request_that_says_the_rule(
    address: str, shape: tuple[int, ...], rule: str
) -> None:
    status, answer = ask(address, {"inputs": np.zeros(shape, np.uint8).tolist()})
    assert status == 400
    assert rule in json.loads(answer)["message"]


def test_a_server_refuses_values_that_are_no_bytes(address: str) -> None:
    assert ask(address, {"inputs": np.full((1, 2, 40, 56, 3), 300).tolist()})[0] == 400
    assert ask(address, {"inputs": "frames"})[0] == 400


@contextmanager
def served(model: str) -> Iterator[str]:
    """Where our own command answers for the model."""
    words = ["--model", model, "--port", "0"]
    command = [sys.executable, str(REPOSITORY / "jobs" / "serve.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r" answers at (http://\S+);", process.stdout.readline())
        try:
            assert found is not None, "it ended before it was ready"
            yield f"{found[1]}/invocations"
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def own_server(registered: Registered) -> Iterator[str]:
    with served(str(registered.model)) as address:
        yield address


def test_serve_answers_with_the_network_s_own_flow(
    own_server: str, registered: Registered, frames: np.ndarray
) -> None:
    status, answer = ask(own_server, {"inputs": frames.tolist()})
    assert status == 200, answer
    assert_answers(json.loads(answer)["predictions"], registered.network, frames)


def frames_of(value: object, *, width: int = 56, channels: int = 3) -> list[Any]:
    """A pair of frames that are the same everywhere, whose second one has this width."""
    sizes = (56, width)
    return [[[[[value] * channels for _ in range(size)] for _ in range(40)] for size in sizes]]


@pytest.mark.parametrize(
    ("sent", "rule"),
    [
        (frames_of(7, channels=4), "(pairs, 2, height, width, 3)"),
        (frames_of(7)[0], "(pairs, 2, height, width, 3)"),
        (frames_of(7, width=64), "all of one size; these lists differ in length"),
        (frames_of(0.5), "whole numbers from 0 to 255"),
        (frames_of(1.0), "whole numbers from 0 to 255"),
        (frames_of(256), "whole numbers from 0 to 255"),
        (frames_of(-1), "whole numbers from 0 to 255"),
        (frames_of(None), "whole numbers from 0 to 255"),
        ("frames", "whole numbers from 0 to 255"),
    ],
    ids=["channels", "no pairs", "sizes", "fractions", "points", "beyond", "negative", "nothing", "text"],
)
def test_serve_refuses_what_are_no_frames_with_the_rule_and_without_repeating_them(
    own_server: str, sent: object, rule: str
) -> None:
    status, answer = ask(own_server, {"inputs": sent})
    assert status == 400
    assert rule in json.loads(answer)["message"]
    assert len(answer) < 500


def test_serve_refuses_frames_that_the_model_cannot_estimate_with_the_model_s_reason() -> None:
    with served("opencv:dis_medium") as address:
        status, answer = ask(address, {"inputs": np.zeros((1, 2, 8, 8, 3), np.uint8).tolist()})
    refused = json.loads(answer)
    assert status == 400
    assert refused["message"].startswith("opencv:dis_medium can't estimate flow for frames of (8, 8) px")
    assert "stack_trace" not in refused


def test_a_served_raft_refines_its_flow_as_often_as_it_is_told(frames: np.ndarray) -> None:
    torch.manual_seed(0)
    network = tiny()["raft"].build()
    answer = ServedModel(network, InferenceOptions(iterations=5)).predict(frames)
    twin = tiny()["raft"].build()
    twin.load_state_dict(network.state_dict())
    assert not np.allclose(answer["flow"], own_answer(twin, frames)["flow"], rtol=0, atol=1e-3)
    twin.set_iterations(5)
    np.testing.assert_allclose(answer["flow"], own_answer(twin, frames)["flow"], rtol=0, atol=1e-3)


def test_a_network_without_iterations_is_not_served_with_some() -> None:
    with pytest.raises(ValueError, match="PWCNet has no iterations to set to 5; of our networks RAFT"):
        serve(TINY.build(), InferenceOptions(iterations=5), host="127.0.0.1", port=0, ready=pytest.fail)


def test_serve_asks_for_another_port_where_one_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} can't be listened on .*take another --port"):
            serve(TINY.build(), InferenceOptions(), host="127.0.0.1", port=port, ready=pytest.fail)
