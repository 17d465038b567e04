"""What does `torch.hub.load` give? Our network with its weights, ready to estimate flow.

    network = torch.hub.load("OWNER/REPOSITORY", "distillflow")
    network = torch.hub.load("/path/of/a/checkout", "distillflow", source="local")

It imports this repository's code, and nothing of Ray or MLflow.
"""

from flowcore.networks import FlowNetwork
from pipelines.checkpoints import load_model
from pipelines.models import BEST, fetch_model

dependencies = ["cv2", "jaxtyping", "numpy", "pyarrow", "safetensors", "torch"]


def distillflow(path: str = BEST) -> FlowNetwork:
    """The network of docs/results/real-pixels.md, or that of a model, on the CPU and ready for
    `network.estimate(image1, image2)`.

    path: a folder with model.json and model.safetensors, or another name that `--model` takes. Raises as
    `fetch_model` and `load_model`.
    """
    network, _ = load_model(fetch_model(path))
    return network.eval()
