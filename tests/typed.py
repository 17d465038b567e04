"""Jobs as a user types them: what each takes, and the error with which one ends."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest

from jobs import (
    demo,
    distill,
    evaluate,
    export_labels,
    export_model,
    finetune,
    gallery,
    import_labels,
    predict,
    pseudolabel,
    rerun,
    serve,
    submit,
    train_teacher,
)

JOBS: dict[str, Any] = {
    "demo": demo.recipes()["demo"][1],
    "evaluate": evaluate.Evaluate,
    "export_labels": export_labels.ExportLabels,
    "export_model": export_model.ExportModel,
    "gallery": gallery.Gallery,
    "import_labels": import_labels.ImportLabels,
    "predict": predict.Predict,
    "rerun": rerun.Rerun,
    "serve": serve.Serve,
    "submit": submit.Submit,
    "train_teacher": train_teacher.recipes()["demo"][1],
    "train_teacher, RAFT": train_teacher.recipes()["demo:raft"][1],
    "train_teacher, FlowNet": train_teacher.recipes()["demo:flownetc"][1],
    "pseudolabel": pseudolabel.recipes()["demo"][1],
    "distill": distill.recipes()["demo"][1],
    "finetune": finetune.recipes()["demo"][1],
}
"""Each job's options."""


def error_of(job: Callable[[], object]) -> str:
    """The error with which a job ended that had to end with 1."""
    with contextlib.redirect_stderr(io.StringIO()) as stream, pytest.raises(SystemExit) as end:
        job()
    assert end.value.code == 1
    told = stream.getvalue()
    assert "Traceback" not in told
    return told[told.index("error: ") :]
