"""What makes a folder of weights and a card a model that MLflow serves?

Three files beside them: MLflow's description, the packages that it takes, and the code of this project that
reads the other two. Nothing is pickled. The code travels with the model because it is on no package index,
and because a model is best served by the code that made it. Whoever loads a model with MLflow runs that code;
jobs read weights and card alone.

`serve` has MLflow's server ask a network of this process, without these files.
"""

import json
import platform
import socket
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType
from numpy import ndarray

from flowcore.inference import InferenceOptions, estimate_frames
from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from pipelines.checkpoints import load_model
from pipelines.installation import PROJECT_FOLDER

DESCRIPTION_FILE = "MLmodel"
CODE_FILE = "code.zip"
"""The Python files of flowcore and pipelines, which Python imports from the archive."""
REQUIREMENTS_FILE = "requirements.txt"
_ENVIRONMENT_FILE = "python_env.yaml"
_REQUIRED = ("jaxtyping", "mlflow", "numpy", "pyarrow", "safetensors", "torch")
"""The packages that this module, and what it imports, take beside OpenCV."""
_OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
"""The packages that OpenCV comes in."""
_RULE = (
    "frames must be uint8 RGB of shape (pairs, 2, height, width, 3): the two frames of each pair, all of one "
    "size"
)
_VALUES = (
    "values must be whole numbers from 0 to 255, written without a point: multiply fractions by 255 and round"
)

SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 2, -1, -1, 3))]),
    outputs=Schema(
        [
            TensorSpec(np.dtype(np.float32), (-1, -1, -1, 2), "flow"),
            TensorSpec(np.dtype(bool), (-1, -1, -1), "occlusion"),
        ]
    ),
)


def make_servable(folder: Path, run_id: str) -> None:
    """Adds to the folder of a model, which this run made, what MLflow needs to load it. Asks no network and
    starts no process."""
    # Without what tells builds apart, such as +cpu, which no package index has.
    pinned = [f"{name}=={version(name).partition('+')[0]}" for name in _REQUIRED]
    (folder / REQUIREMENTS_FILE).write_text("\n".join([*pinned, _pinned_opencv()]) + "\n")
    # JSON is YAML too.
    environment = {"python": platform.python_version(), "dependencies": [f"-r {REQUIREMENTS_FILE}"]}
    (folder / _ENVIRONMENT_FILE).write_text(json.dumps(environment) + "\n")
    with zipfile.ZipFile(folder / CODE_FILE, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for package in ("flowcore", "pipelines"):
            for file in sorted((PROJECT_FOLDER / package).rglob("*.py")):
                archive.write(file, file.relative_to(PROJECT_FOLDER))
    description = Model(artifact_path="model", run_id=run_id, signature=SIGNATURE)
    description.add_flavor(
        "python_function",
        loader_module=__name__,
        code=CODE_FILE,
        env={"virtualenv": _ENVIRONMENT_FILE},
        python_version=platform.python_version(),
    )
    description.save(folder / DESCRIPTION_FILE)


def _pinned_opencv() -> str:
    for name in _OPENCV:
        with suppress(PackageNotFoundError):
            return f"{name}=={version(name)}"
    # It came with the system.
    return f"opencv-python-headless=={cv2.__version__}.*"


class ServedModel:
    """What MLflow calls: frames in, flow and occlusion out."""

    def __init__(self, network: FlowNetwork, options: InferenceOptions) -> None:
        """ValueError for options that the network doesn't have."""
        self._options = options
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = options.ready(network, self._device)

    def predict(self, frames: UInt8[ndarray, "pairs 2 height width 3"]) -> dict[str, ndarray]:
        """`flow`, float32 (pairs, height, width, 2): from the first frame of each pair to the second, right
        and down, in pixels. `occlusion`, bool (pairs, height, width): True where what the first frame shows
        isn't visible in the second, by the forward-backward check.

        MlflowException, of which its server makes status 400, for frames of another shape, and for those that
        the network can't estimate.
        """
        _require_frames(frames)
        try:
            flows, occlusions = zip(*map(self._estimate, frames), strict=True)
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return {"flow": np.stack(flows), "occlusion": np.stack(occlusions)}

    def _estimate(self, pair: UInt8[ndarray, "2 height width 3"]) -> tuple[ndarray, ndarray]:
        """Flow and occlusion."""
        ((flow_fw, flow_bw),) = estimate_frames(
            self._network, list(pair), self._device, self._options, both=True
        )
        assert flow_bw is not None
        occlusion = OcclusionCheck()(flow_fw, flow_bw)
        return flow_fw[0].movedim(0, -1).cpu().numpy(), occlusion[0, 0].cpu().numpy()


def _require_frames(frames: ndarray) -> None:
    """MLflow compares with the signature, which lets some shapes through: empty ones, and those of frames
    that differ in size."""
    shape = frames.shape
    if frames.dtype != np.uint8 or len(shape) != 5 or (shape[1], shape[4]) != (2, 3) or 0 in shape:
        raise MlflowException.invalid_parameter_value(f"{_RULE}; these are {frames.dtype} of shape {shape}")


def _load_pyfunc(path: str) -> ServedModel:
    """MLflow's name for what makes a model of a folder."""
    return ServedModel(load_model(Path(path))[0], InferenceOptions())


_NAME = "frames"


class _RefusedError(MlflowException):
    """Frames against the rule: status 400. MLflow's server begins a message with what it was sent, which are
    thousands of numbers; this one stays the rule."""

    def __init__(self, rule: str) -> None:
        self._rule = rule
        super().__init__(rule, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        return self._rule

    @message.setter
    def message(self, _: str) -> None:
        pass


class _AsSent:
    """A model whose signature takes anything. By its own one, MLflow's server makes bytes of what JSON says
    before the model is asked: of fractions zeros, which are black frames."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        # The class has no types.
        anything = ColSpec(cast(Any, AnyType)(), _NAME, required=False)
        self.metadata = Model(signature=ModelSignature(inputs=Schema([anything])))
        """Read by the server."""

    def predict(self, sent: object) -> dict[str, ndarray]:
        """As `ServedModel.predict`; refuses values that are no bytes, too."""
        try:
            # MLflow hands a list over under the name of the signature.
            frames = np.array(sent.get(_NAME) if isinstance(sent, dict) else None)
        except ValueError:
            raise _RefusedError(f"{_RULE}; these lists differ in length") from None
        if frames.dtype.kind not in "iu" or frames.min(initial=0) < 0 or frames.max(initial=0) > 255:
            raise _RefusedError(f"{_VALUES}; {_RULE}")
        try:
            return self._model.predict(frames.astype(np.uint8))
        except MlflowException as refused:
            raise _RefusedError(refused.message) from None


def serve(
    network: FlowNetwork,
    options: InferenceOptions,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
) -> None:
    """Answers at `host` as `mlflow models serve` does, until SIGINT or SIGTERM; asks nobody who they are.

    port: 0 for any free one. ready: called with the address when it takes questions. OSError where another
    program listens there.
    """
    # They take seconds to import, and a model that MLflow serves doesn't need them.
    import uvicorn
    from mlflow.pyfunc import scoring_server

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"host {host} and port {port} can't be listened on ({error.strerror or error}); take another "
            "--port, or 0 for any free one"
        ) from error
    with listening:
        application = scoring_server.init(cast(Any, _AsSent(ServedModel(network, options))))
        place = f"[{host}]" if family == socket.AF_INET6 else host
        ready(f"http://{place}:{listening.getsockname()[1]}")
        # After Ctrl-C it has answered what it was asked.
        with suppress(KeyboardInterrupt):
            # Without what it would tell of a start and an end, of which Ctrl-C makes a traceback.
            settings = uvicorn.Config(application, log_level="warning", lifespan="off")
            uvicorn.Server(settings).run(sockets=[listening])
