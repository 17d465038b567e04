"""Models that strangers made: whatever the card and the weights say, a job ends with an error that names the
file, before it makes a network of the size that they name."""

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from jobs.command import run
from flowcore import networks
from jobs import export_model
from pipelines.checkpoints import CARD_FILE, WEIGHTS_FILE, load_model, save_model

TINY = networks.tiny()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "model", TINY["pwcnet"].build(), {"stage": "train_teacher"})
    return tmp_path / "model"


def error_of(model: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a job that reads the model."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(
            export_model.main,
            export_model.ExportModel,
            ["--model", str(model), "--output", str(model.parent / "network.pt2")],
        )
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert sorted(each.name for each in model.parent.iterdir()) == ["model"]
    return told[told.index("error: ") :]


def resealed(model: Path, config: dict[str, Any], weights: bytes | None = None) -> None:
    """Gives the model another configuration, or other weights, and the digest of them: whoever makes a model
    makes its digest."""
    if weights is not None:
        (model / WEIGHTS_FILE).write_bytes(weights)
    digest = hashlib.blake2b((model / WEIGHTS_FILE).read_bytes(), digest_size=8)
    digest.update(json.dumps(config, sort_keys=True).encode())
    card = json.loads((model / CARD_FILE).read_text())
    (model / CARD_FILE).write_text(json.dumps(card | {"config": config, "digest": digest.hexdigest()}))


HUGE = (256, 1024, 2048)
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a network of terabytes": ("pwcnet", {"encoder_widths": HUGE}, "model.safetensors has .* bytes, and"),
    "channels without an end": ("pwcnet", {"encoder_widths": [8, 10**12, 8]}, "must lie in 0..2048"),
    "fewer than no channels": ("pwcnet", {"decoder_widths": [-8, 12]}, "must lie in 0..2048"),
    "no channels": ("pwcnet", {"decoder_widths": []}, "there is no network of the configuration"),
    "a million levels": (
        "flownets",
        {"encoder_widths": [1] * 10**5, "decoder_widths": [1] * (10**5 - 2)},
        "100000 entries; at most 16 are taken",
    ),
    "nine levels": ("pwcnet", {"encoder_widths": [8] * 9}, "9 entries; at most 8 are taken"),
    "a reach of a billion": ("pwcnet", {"radius": 10**9}, "radius of pwcnet is 1000000000; it must lie in"),
    "a reach that is a share": ("pwcnet", {"radius": 1.5}, "its radius is 1.5"),
    "a reach that is a list": ("pwcnet", {"radius": [4]}, r"its radius is \[4\]"),
    "channels that are a text": ("pwcnet", {"encoder_widths": "abc"}, "its encoder_widths is 'abc'"),
    "endless iterations": ("raft", {"iterations": 10**9}, "iterations of raft is 1000000000"),
    "a thousand iterations": (
        "raft",
        {"iterations": 1000},
        "iterations of raft is 1000; it must lie in 0..128",
    ),
    "a reach over every frame": ("raft", {"radius": 100}, "radius of raft is 100; it must lie in 0..20"),
    "many channels at a fine level": (
        "pwcnet",
        {"encoder_widths": [8, 12, 16, 2048][::-1]},
        "2048 channels at level 1",
    ),
    "thousands of narrow layers": (
        "pwcnet",
        {"decoder_widths": [1] * 5000},
        "decoder_widths of pwcnet has 5000 entries",
    ),
    "an unknown option": ("raft", {"code": "import os"}, "raft has no option code"),
    "an unknown variant": ("flownets", {"variant": "evil"}, "its variant is 'evil'"),
    "an unknown network": ("pwcnet", {"architecture": "os.system"}, "network architecture 'os.system'"),
    "an architecture that is none": ("pwcnet", {"architecture": ["a"]}, "network architecture"),
    "an unknown library": (
        "pwcnet",
        {"architecture": "external", "library": "os", "name": "system"},
        "external has no option",
    ),
}


@pytest.mark.parametrize("attack", CONFIGURATIONS)
def test_a_configuration_that_no_network_has_is_refused(
    attack: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, changes, told = CONFIGURATIONS[attack]
    save_model(model, TINY[name].build(), {})
    resealed(model, json.loads((model / CARD_FILE).read_text())["config"] | changes)
    error = error_of(model, capsys)
    assert re.search(told, error), error
    assert len(error) < 3000


def tensors(model: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load((model / WEIGHTS_FILE).read_bytes())


def without_one(model: Path) -> bytes:
    weights = tensors(model)
    name = min(weights)
    # As many bytes as before, so that only the names tell.
    weights["another"] = weights.pop(name)
    return safetensors.torch.save(weights)


def with_one_more(model: Path) -> bytes:
    return safetensors.torch.save(tensors(model) | {"more": torch.zeros(8)})


def of_another_shape(model: Path) -> bytes:
    weights = tensors(model)
    name = max(weights, key=lambda each: weights[each].numel())
    return safetensors.torch.save(weights | {name: weights[name].flatten().contiguous()})


def with_a_long_header(model: Path) -> bytes:
    return (2**40).to_bytes(8, "little") + (model / WEIGHTS_FILE).read_bytes()[8:]


def with_overlapping_tensors(model: Path) -> bytes:
    content = (model / WEIGHTS_FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for entry in header.values():
        if "data_offsets" in entry:
            entry["data_offsets"][0] = 0
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (without_one, "doesn't hold the weights of the network"),
        (with_one_more, "doesn't hold the weights of the network"),
        (of_another_shape, "doesn't hold the weights of the network"),
        (with_a_long_header, "isn't safetensors"),
        (with_overlapping_tensors, "isn't safetensors"),
        (lambda model: (model / WEIGHTS_FILE).read_bytes()[:-4], "isn't safetensors"),
        (
            lambda model: (model / WEIGHTS_FILE).read_bytes() + bytes(2**21),
            "weights of the network that model.json",
        ),
        (lambda model: b"", "has 0 bytes"),
        (lambda model: pickle.dumps(print), "is a pickle, never read"),
        (
            lambda model: pickle.dumps(print) + bytes((model / WEIGHTS_FILE).stat().st_size),
            "isn't safetensors",
        ),
    ],
)
def test_weights_of_another_network_are_refused(
    make: Callable[[Path], bytes], told: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resealed(model, json.loads((model / CARD_FILE).read_text())["config"], make(model))
    error = error_of(model, capsys)
    assert re.search(told, error), error
    assert WEIGHTS_FILE in error


CARDS: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "nested": (lambda card: "[" * 100_000, "little but brackets"),
    "a name twice": (lambda card: json.dumps(card)[:-1] + ', "format": 2}', "a name twice"),
    "a format that is true": (
        lambda card: json.dumps(card | {"format": True}),
        "has format True",
    ),
    "another format": (lambda card: json.dumps(card | {"format": 99}), "has format 99"),
    "provenance of numbers": (lambda card: json.dumps(card | {"provenance": {"a": 1}}), "its provenance is"),
    "no count of generations": (
        lambda card: json.dumps(card | {"provenance": {"generation": "-1"}}),
        "generation '-1' must be a count",
    ),
    "no digest": (lambda card: json.dumps({**card, "digest": None}), "its digest is None"),
    "a list": (lambda card: "[]", "has format None"),
    "no text": (lambda card: "\x00\x01", "doesn't describe a model"),
}


@pytest.mark.parametrize("attack", CARDS)
def test_a_card_that_says_something_else_is_refused(
    attack: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, told = CARDS[attack]
    (model / CARD_FILE).write_text(make(json.loads((model / CARD_FILE).read_text())))
    error = error_of(model, capsys)
    assert re.search(told, error), error
    assert CARD_FILE in error


@pytest.mark.parametrize(("name", "size"), [(CARD_FILE, 2**30), (WEIGHTS_FILE, 10**11)])
def test_a_file_larger_than_any_is_refused_before_it_is_read(
    name: str, size: int, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(model / name, size)
    assert f"{size} bytes" in error_of(model, capsys)


def test_what_save_model_wrote_is_read(model: Path) -> None:
    """The attacks above are of a model that is fine without them."""
    for name, config in TINY.items():
        save_model(model, config.build(), {})
        assert load_model(model)[0].config == config, name
    config = replace(TINY["raft"], iterations=128)
    save_model(model, config.build(), {})
    assert load_model(model)[0].config == config
