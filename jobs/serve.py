"""Serves a model over HTTP: frames in, flow and occlusion out.

    python jobs/serve.py
    python jobs/serve.py --model models:/flow-student@champion --port 5002

POST /invocations takes JSON as `mlflow models serve` does: {"inputs": FRAMES}, with FRAMES a list of shape
(pairs, 2, height, width, 3), RGB as whole numbers from 0 to 255. The answer is {"predictions": {"flow": ...,
"occlusion": ...}}: flow of shape (pairs, height, width, 2), right and down, in pixels, and occlusion of shape
(pairs, height, width), true where the second frame doesn't show what the first one does. Other frames get
status 400 with the rule. GET /health says that it runs.

There is no authentication and no limit to what is sent: whoever reaches the port is answered. Leave it on
this machine, or put a proxy before it that has both. Ctrl-C ends it.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jobs.command import run
from flowcore.inference import InferenceOptions
from pipelines.checkpoints import load_model
from pipelines.disclosure import tell
from pipelines.models import BEST, absolute_model, fetch_model


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Options of serve."""

    model: str = BEST
    """Checkpoint folder or its URI, runs:/<run id>/model, models:/<name>@<alias>, hf://<owner>/<name>,
    opencv:<name>, torchvision:<name>, ptlflow:<name>, or what comes with this software: distillflow:video, or
    distillflow:laptop, which is several times as fast on a CPU and less accurate."""
    host: str = "127.0.0.1"
    """Address to listen on. 127.0.0.1 is reached from this machine alone; 0.0.0.0 from everywhere, without
    authentication."""
    port: int = 5001
    """Port to listen on; 0 takes any free one. Change it where another program has it."""
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    """How the network is run, and how its flow is refined."""

    common: ClassVar[tuple[str, ...]] = ("model", "host", "port", "inference.scale")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} must be from 0 to 65535")


def main(stage: Serve) -> None:
    model = absolute_model(stage.model, "--model")
    network, _ = load_model(fetch_model(model))
    # Brings MLflow.
    from pipelines.serving import serve

    def ready(address: str) -> None:
        tell(f"{model} answers at {address}; Ctrl-C ends it. For a question in pair.json:")
        tell(f"curl {address}/invocations -H 'Content-Type: application/json' -d @pair.json")

    serve(network, stage.inference, host=stage.host, port=stage.port, ready=ready)


if __name__ == "__main__":
    run(main, Serve)
