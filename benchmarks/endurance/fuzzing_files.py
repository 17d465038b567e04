"""Does a damaged label set, model, flow file or folder of images cost more than itself?

    python -m benchmarks.endurance.fuzzing_files label-sets [--files 500] [--seed 0]
    python -m benchmarks.endurance.fuzzing_files models --files 300
    python -m benchmarks.endurance.fuzzing_files flow --files 500
    python -m benchmarks.endurance.fuzzing_files images --files 200

Damages bytes as `benchmarks.endurance.fuzzing` does, and values of records as a stranger would, and gives
each to the job that takes it. Prints what became of them. Fails where a job hangs, dies or prints a
traceback, where an error doesn't name what it is about, where what is accepted gives other flow than the
file holds, and where a file appears outside of a job's output.
"""

import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import report
from benchmarks.endurance.fuzzing_flow import flow
from benchmarks.endurance.trials import Ended, Watch, accounted_for, command, mutated, tried
from flowcore import networks
from flowcore.formats import read_flow
from flowcore.scenes import SceneOptions, render_scene, write_video
from pipelines.checkpoints import CARD_FILE, WEIGHTS_FILE, save_model

_SCENE = SceneOptions(height=64, width=96, num_frames=5, camera_speed=3.0, layer_speed=2.0)
_ODD: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        10**12,
        10**400,
        1.5,
        -1e308,
        "",
        "../../X",
        "/etc/passwd",
        "\x00",
        "\ud800",
    ),
    *([], {}, [[]] * 50, {"a": {"b": None}}, "9" * 5000, "a" * 100_000),
]
"""Values that a stranger may put into a record."""
_RECORDS = ("_manifest.json", "_label_set.json", "_ledger.json", "_progress.json")


def tampered(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """JSON of which a value is another one, missing, or under another name."""
    values = json.loads(content)
    owners = [values]
    for owner in owners:
        parts = owner.values() if isinstance(owner, dict) else owner
        owners += [part for part in parts if isinstance(part, dict | list) and part]
    owner = owners[rng.integers(len(owners))]
    keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
    if not keys:
        return "another value", json.dumps(_ODD[rng.integers(len(_ODD))]).encode()
    key = keys[rng.integers(len(keys))]
    kind = str(rng.choice(["another value", "another value", "value missing", "another name"]))
    if kind == "another value":
        owner[key] = _ODD[rng.integers(len(_ODD))]
    elif kind == "value missing" or isinstance(owner, list):
        kind = "value missing"
        del owner[key]
    else:
        owner[f"x{key}"] = owner.pop(key)
    return kind, json.dumps(values).encode()


def damaged(path: Path, rng: np.random.Generator) -> tuple[str, bytes]:
    """The kind of damage, and the file's damaged content."""
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        return tampered(content, rng)
    if path.suffix == ".parquet" and rng.random() < 0.5:
        # Where the file says what the rest of it is.
        length = int.from_bytes(content[-8:-4], "little") + 8
        kind, footer = mutated(content[-length:-8], rng)
        return f"{kind} of the footer", content[:-length] + footer + len(footer).to_bytes(
            4, "little"
        ) + b"PAR1"
    return mutated(content, rng)


def digest_of(folder: Path) -> str:
    """Of the files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "export.json")
    content = hashlib.blake2b()
    for path in files:
        content.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode() + path.read_bytes())
    return content.hexdigest()


def table_of(
    trials: Sequence[tuple[str, str]],
    ends: Sequence[Ended],
    same: Sequence[bool | None],
    names: Sequence[str],
) -> str:
    """By target and damage, how many trials ended how. AssertionError for an end that no user should see.

    same: whether what was accepted gave what it gives undamaged, None where that isn't asked. names: what an
    error has to name.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    faults = []
    for trial, end, is_same, name in zip(trials, ends, same, names, strict=True):
        is_clear = end.outcome == "accepted" or (end.outcome == "refused" and name in end.told)
        if not is_clear or "Traceback" in end.told:
            faults.append(f"{trial}, {name}: {end.outcome}\n{end.told}")
        accepted = {None: "accepted", True: "as before", False: "other values"}[is_same]
        outcome = "refused" if end.outcome == "refused" else accepted
        counts.setdefault(trial, Counter())[outcome] += 1
    assert not faults, "\n".join(faults)
    columns = ("refused", "accepted", "as before", "other values")
    rows = [(*trial, *(counts[trial][column] for column in columns)) for trial in sorted(counts)]
    return report.table(["file", "damage", *columns], rows, texts=2)


def label_sets(folder: Path, files: int, rng: np.random.Generator) -> str:
    """Label sets of which one file is damaged, through export_labels, gallery and pseudolabel --status."""
    (folder / "videos").mkdir()
    for seed in range(2):
        write_video(folder / "videos" / f"{seed}.mp4", render_scene(seed, _SCENE).frames)
    (folder / "videos" / "none.mp4").write_text("no video")
    whole = folder / "whole"
    videos = ["smoke", "--videos", folder / "videos"]
    made = command(folder, "pseudolabel", *videos, "--teacher", "opencv:dis_ultrafast", "--labels", whole)
    assert made.returncode == 0, made.stderr
    command(folder, "export_labels", "--labels", whole, "--output", folder / "files-whole")
    expected = digest_of(folder / "files-whole")
    targets = [path.relative_to(whole) for path in sorted(whole.glob("*/*.*")) if "_teacher" not in str(path)]
    kinds, trials, names = [], [], []
    watch = Watch(folder)
    for number in range(files):
        set_ = folder / "sets" / f"{number:04d}"
        shutil.copytree(whole, set_)
        shards = [each for each in targets if each.suffix == ".parquet"]
        records = [each for each in targets if each.suffix == ".json"]
        choice = rng.choice(["shard", "shard", "manifest", "description", "ledger", "progress", "record"])
        target = {
            "shard": shards[rng.integers(len(shards))],
            "record": records[rng.integers(len(records))],
            **dict(zip(("manifest", "description", "ledger", "progress"), map(Path, _RECORDS), strict=True)),
        }[str(choice)]
        kind, content = damaged(set_ / target, rng)
        (set_ / target).write_bytes(content)
        kinds.append((str(choice), kind))
        # A damaged frame's error names the pair and the set.
        names.append(str(set_) if choice == "shard" else target.name)
        place = ["--labels", str(set_)]
        if choice == "progress":
            trials.append(["pseudolabel", "smoke", "--status", *place, "--videos", str(folder / "videos")])
        elif choice in ("ledger", "record") or number % 10 == 0:
            trials.append(
                ["gallery", *place, "--output", str(folder / "out" / f"{number:04d}" / "page.html")]
            )
        else:
            trials.append(["export_labels", *place, "--output", str(folder / "out" / f"{number:04d}")])
    ends = list(tried(folder, trials))
    outputs = [folder / "out" / f"{number:04d}" for number in range(files)]
    same = [
        digest_of(output) == expected if trial[0] == "export_labels" else None
        for trial, output in zip(trials, outputs, strict=True)
    ]
    for output, end, trial in zip(outputs, ends, trials, strict=True):
        if end.outcome == "accepted" and trial[0] == "export_labels":
            pairs = len(list(output.glob("*-flow_01.flo")))
            assert pairs <= 2 * (_SCENE.num_frames - 1), f"{output} has {pairs} pairs"
    watch.require_only("sets", "out")
    return table_of(kinds, ends, same, names)


def models(folder: Path, files: int, rng: np.random.Generator) -> str:
    """Models of which the card or the weights are damaged, half of them with a digest that fits, through
    predict."""
    write_video(folder / "a.mp4", render_scene(0, _SCENE).frames)
    torch.manual_seed(0)
    wholes = {name: networks.tiny()[name] for name in ("pwcnet", "raft", "flownets")}
    for name, config in wholes.items():
        save_model(folder / "whole" / name, config.build(), {"stage": "fuzzing", "generation": "1"})
    watch = Watch(folder)
    kinds, trials, names = [], [], []
    for number in range(files):
        model = folder / "models" / f"{number:04d}"
        shutil.copytree(folder / "whole" / list(wholes)[number % len(wholes)], model)
        target = model / str(rng.choice([CARD_FILE, WEIGHTS_FILE]))
        kind, content = damaged(target, rng)
        target.write_bytes(content)
        is_sealed = rng.random() < 0.7 and seal(model)
        kinds.append((target.name, kind + (", digest made to fit" if is_sealed else "")))
        names.append(str(model))
        output = folder / "out" / f"{number:04d}"
        trials.append(
            ["predict", "--model", str(model), "--videos", str(folder / "a.mp4"), "--output", str(output)]
        )
    for name in wholes:
        model, output = folder / "whole" / name, folder / "out" / name
        trials.append(
            ["predict", "--model", str(model), "--videos", str(folder / "a.mp4"), "--output", str(output)]
        )
    *ends, first, second, third = tried(folder, trials)
    assert {first.outcome, second.outcome, third.outcome} == {"accepted"}
    expected = [digest_of(folder / "out" / name) for name in wholes]
    same = []
    for number, end in enumerate(ends):
        output = folder / "out" / f"{number:04d}"
        flows = list(output.glob("*.flo"))
        assert end.outcome != "accepted" or len(flows) == _SCENE.num_frames - 1
        assert all(np.isfinite(read_flow(path)[0]).all() for path in flows)
        same.append(digest_of(output) == expected[number % len(expected)])
    watch.require_only("models", "out")
    # An error about frames that a network can't take names the video.
    return table_of(
        kinds,
        ends,
        same,
        ["" if "a.mp4" in end.told else name for end, name in zip(ends, names, strict=True)],
    )


def seal(model: Path) -> bool:
    """Gives a model's card the digest of what is there; False where it is no card any more."""
    try:
        card = json.loads((model / CARD_FILE).read_bytes())
        digest = hashlib.blake2b((model / WEIGHTS_FILE).read_bytes(), digest_size=8)
        digest.update(json.dumps(card["config"], sort_keys=True).encode())
        (model / CARD_FILE).write_text(json.dumps(card | {"digest": digest.hexdigest()}))
    except (ValueError, TypeError, KeyError):
        return False
    return True


def images(folder: Path, files: int, rng: np.random.Generator) -> str:
    """Folders of images of which one or all are damaged, through pseudolabel."""
    watch = Watch(folder)
    frames = render_scene(0, _SCENE).frames
    kinds = {}
    for number in range(files):
        place = folder / "videos" / f"{number:04d}"
        place.mkdir(parents=True)
        extension = ("png", "jpg", "bmp", "tif", "webp", "ppm")[number % 6]
        hurt = range(len(frames)) if rng.random() < 0.3 else [int(rng.integers(len(frames)))]
        kind = ""
        for index, frame in enumerate(frames):
            # Unlike in every folder, or they would be copies of each other.
            content = cv2.imencode(f".{extension}", np.roll(frame[..., ::-1], number, axis=1))[1].tobytes()
            if index in hurt:
                kind, content = mutated(content, rng)
            (place / f"{index:02d}.{extension}").write_bytes(content)
        kinds[str(place)] = kind + (" of all" if len(hurt) > 1 else " of one")
    told = accounted_for(folder, kinds)
    watch.require_only("set", "teacher", "videos")
    return told


_KINDS: dict[str, tuple[Callable[[Path, int, np.random.Generator], str], int]] = {
    "label-sets": (label_sets, 500),
    "models": (models, 300),
    "flow": (flow, 500),
    "images": (images, 200),
}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("kind", choices=_KINDS, help="what to damage")
    parser.add_argument(
        "--files", type=int, help="how many; 500 label sets or flow files, 300 models, 200 folders"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    arguments = parser.parse_args()
    fuzz, files = _KINDS[arguments.kind]
    files = arguments.files or files
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        told = fuzz(Path(name), files, np.random.default_rng(arguments.seed))
    print(report.command())
    print(f"{files} {arguments.kind} in {time.monotonic() - started:.0f} s\n\n{told}")


if __name__ == "__main__":
    main()
