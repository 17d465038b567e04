"""What is typed to install what this project can do without."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flowcore import extras
from flowcore.extras import extra_of, install_line

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
OF_A_USER = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "dev"}


@pytest.mark.parametrize("extra", OF_A_USER)
def test_the_install_line_of_an_extra_names_its_packages_in_the_versions_that_fit(extra: str) -> None:
    line = install_line(extra)
    assert line.startswith("pip install '")
    named = {Requirement(each) for each in line.removeprefix("pip install '").removesuffix("'").split("' '")}
    assert named == {Requirement(each) for each in OF_A_USER[extra]}


def test_code_that_nobody_installed_is_a_checkout_whose_extras_pip_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extras, "PACKAGE", "distillflow-of-nobody")
    assert install_line("hub") == "pip install -e '.[hub]'"
    assert extra_of("huggingface_hub") is None


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torchvision", "torchvision"),
        ("ptlflow.models", "ptlflow"),
        ("onnxscript", "onnx"),
        ("huggingface_hub", "hub"),
        ("psycopg2", "server"),
        ("boto3", "server"),
        ("numpy", None),
        ("a_bug", None),
    ],
)
def test_a_module_that_an_extra_brings_leads_to_it_and_no_other_does(module: str, extra: str | None) -> None:
    assert extra_of(module) == extra
