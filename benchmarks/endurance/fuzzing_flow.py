"""What becomes of damaged flow files of every format? Each is given to the job that takes its layout.

A job that can't read all files names those that it can't. Without them, the same command has to accept the
others, and to find in them what they hold.
"""

import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.endurance.trials import Watch, command, mutated
from flowcore.formats import encode_flow, read_flow, write_image
from pipelines.pair_set import PairSet


def flow(folder: Path, files: int, rng: np.random.Generator) -> str:
    """Flow files of every format, through import_labels and evaluate."""
    watch = Watch(folder)
    shares = {"flo": 0.25, "flo5": 0.25, "kitti": 0.2, "pfm": 0.15, "npz": 0.15}
    kinds: dict[str, tuple[str, str]] = {}
    number = 0
    for name, share in shares.items():
        for _ in range(round(share * files)):
            kinds[f"{number:06d}"] = (name, _WRITERS[name](folder, number, rng))
            number += 1
    counts: dict[tuple[str, str], Counter[str]] = {kind: Counter() for kind in kinds.values()}
    jobs: list[tuple[str, str, Sequence[object]]] = [
        ("chairs2", "import_labels", ["--files", folder / "chairs2", "--labels", folder / "labels"]),
        ("kitti", "evaluate", ["--model", "zero", "--truth", f"kitti2015:{folder / 'kitti'}"]),
        ("stereo", "evaluate", ["--model", "zero", "--truth", f"middlebury-stereo:{folder / 'stereo'}"]),
    ]
    for place, job, arguments in jobs:
        members = {name for name, (kind, _) in kinds.items() if _PLACES[kind] == place}
        first = command(folder, job, *arguments)
        assert "Traceback" not in first.stderr, first.stderr
        assert first.returncode == 1, first.stderr
        refused = {name[-6:] for name in re.findall(r"^  (\d+)", first.stderr, re.MULTILINE)}
        assert refused <= members, refused - members
        for name in refused:
            for path in (folder / place).rglob({"chairs2": f"0{name}-*"}.get(place, f"{name}*")):
                path.unlink() if path.is_file() else shutil.rmtree(path)
        if accepted := members - refused:
            second = command(folder, job, *arguments)
            assert second.returncode == 0, second.stderr
            assert f"{len(accepted)} pairs" in second.stdout, second.stdout
        if job == "import_labels":
            require_equal(folder, accepted)
        for name in members:
            counts[kinds[name]]["refused" if name in refused else "accepted"] += 1
    watch.require_only("chairs2", "kitti", "stereo", "labels")
    rows = [(*kind, *(counts[kind][column] for column in ("refused", "accepted"))) for kind in sorted(counts)]
    return report.table(["file", "damage", "refused", "accepted"], rows, texts=2)


def require_equal(folder: Path, names: set[str]) -> None:
    """AssertionError unless the imported set has these pairs, each with the flow of its file."""
    pairs = PairSet.open(str(folder / "labels"))
    found = set()
    for place in pairs.index().to_pylist():
        row = pairs.read(place)
        name = row["video"].rpartition(" ")[2]
        (path,) = (folder / "chairs2").glob(f"{name}-flow_01.*")
        stored, (true, valid) = pairs.decode(row), read_flow(path)
        assert stored.flow_fw is not None
        assert stored.confidence_fw is not None
        # float32 has no 1/128 px beyond 2^16 px.
        bound = np.maximum(1 / 128, np.abs(true) * 2**-23)
        assert (np.abs(stored.flow_fw - true) <= bound).all(), path
        assert not stored.confidence_fw[~valid].any(), path
        found.add(name[-6:])
    assert found == names, found ^ names


def _pair(folder: Path, first: str, second: str) -> None:
    """Two frames under these names."""
    for name, image in zip((first, second), _frames(), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, image)


def _frames() -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, (40, 64, 3), np.uint8) for seed in range(2)]


def _flow() -> np.ndarray:
    return np.random.default_rng(2).normal(0, 8, (2, 40, 64)).astype(np.float32)


def _chairs2(suffix: str) -> Callable[[Path, int, np.random.Generator], str]:
    def write(folder: Path, number: int, rng: np.random.Generator) -> str:
        stem = f"{number:07d}"
        _pair(folder / "chairs2", f"{stem}-img_0.png", f"{stem}-img_1.png")
        (folder / "chairs2" / f"{stem}-flow_10{suffix}").write_bytes(encode_flow(_flow(), f"a{suffix}"))
        kind, content = mutated(encode_flow(_flow(), f"a{suffix}"), rng)
        (folder / "chairs2" / f"{stem}-flow_01{suffix}").write_bytes(content)
        return kind

    return write


def _kitti(folder: Path, number: int, rng: np.random.Generator) -> str:
    training = folder / "kitti" / "training"
    _pair(training / "image_2", f"{number:06d}_10.png", f"{number:06d}_11.png")
    (training / "flow_occ").mkdir(exist_ok=True)
    kind, content = mutated(encode_flow(_flow(), "a.png"), rng)
    (training / "flow_occ" / f"{number:06d}_10.png").write_bytes(content)
    return kind


def _pfm(folder: Path, number: int, rng: np.random.Generator) -> str:
    scene = folder / "stereo" / f"{number:06d}"
    _pair(scene, "im0.png", "im1.png")
    values = np.abs(_flow()[0])[::-1].astype("<f4").tobytes()
    kind, content = mutated(b"Pf\n64 40\n-1\n" + values, rng)
    (scene / "disp0.pfm").write_bytes(content)
    return kind


def _npz(folder: Path, number: int, rng: np.random.Generator) -> str:
    stereo = folder / "stereo"
    _pair(stereo, f"{number:06d}_left.png", f"{number:06d}_right.png")
    np.savez_compressed(stereo / f"{number:06d}_disp.npz", np.abs(_flow()[0]))
    path = stereo / f"{number:06d}_disp.npz"
    if rng.random() < 0.5:
        kind, content = mutated(path.read_bytes(), rng)
        path.write_bytes(content)
        return kind
    with zipfile.ZipFile(path) as archive:
        kind, content = mutated(archive.read("arr_0.npy"), rng)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", content)
    return f"{kind}, in the archive"


_WRITERS: Mapping[str, Callable[[Path, int, np.random.Generator], str]] = {
    "flo": _chairs2(".flo"),
    "flo5": _chairs2(".flo5"),
    "kitti": _kitti,
    "pfm": _pfm,
    "npz": _npz,
}
_PLACES = {"flo": "chairs2", "flo5": "chairs2", "kitti": "kitti", "pfm": "stereo", "npz": "stereo"}
