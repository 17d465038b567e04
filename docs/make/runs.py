"""What does MLflow's page of all runs look like? Makes the tutorial's picture of it.

    mlflow ui --backend-store-uri sqlite:///mlflow.db &
    python -m docs.make.runs http://127.0.0.1:5000

Needs Chromium, and an MLflow with a few runs, such as those of `make demo`. Writes docs/tutorial/runs.png.
"""

import subprocess
import tempfile
from pathlib import Path

from mlflow import MlflowClient

from benchmarks import report
from flowcore.formats import encode_image, read_image
from pipelines.installation import PROJECT_FOLDER
from pipelines.pages import runs_page
from pipelines.storage import write_whole
from pipelines.tracking import EXPERIMENT

PICTURE = PROJECT_FOLDER / "docs" / "tutorial" / "runs.png"
WINDOW = 2200, 760
"""Pixels, wide enough for all columns."""
SHOWN = 1640
"""Of its width; the rest is MLflow's assistant."""
SECONDS = 30
"""For the page's own requests."""


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("address", help="MLflow's, such as http://127.0.0.1:5000")
    address = parser.parse_args().address.rstrip("/")
    experiment = MlflowClient(address).get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise SystemExit(f"{address} has no runs of this project")
    with tempfile.TemporaryDirectory(prefix="runs-") as folder:
        picture = Path(folder) / "page.png"
        options = {
            "headless": "new",
            "window-size": ",".join(map(str, WINDOW)),
            "virtual-time-budget": SECONDS * 1000,
            "user-data-dir": folder,
            "screenshot": picture,
        }
        flags = [
            "--no-sandbox",
            "--hide-scrollbars",
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        page = f"{address}/{runs_page(experiment.experiment_id)}"
        subprocess.run(["chromium", *flags, page], check=True, stderr=subprocess.DEVNULL)
        content = encode_image(read_image(picture)[:, :SHOWN], PICTURE.name)
    write_whole(PICTURE, content)
    print(f"docs/tutorial/{PICTURE.name}: {len(content) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
