"""Where do the public data sets keep their frames and their ground truth?

A sample is a flow file whose two frames exist, so partial downloads and scenes with truth for a few frames
are fine.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from flowcore.chairs_split import CHAIRS_SPLIT, SPLIT_BYTES, split_of, split_parts
from flowcore.samples import Sample

_PAIR_NUMBER = re.compile("[0-9]{1,9}")
_SPRING_FLOW = re.compile(r"flow_(?P<direction>FW|BW)_(?P<camera>left|right)_(?P<frame>\d{4})\.flo5")
_FRAME = "frame_[0-9][0-9][0-9][0-9]"


def _find_sintel(root: Path) -> Iterator[Sample]:
    training = _inside(root, "training")
    for flow in training.glob(f"flow/*/{_FRAME}.flo"):
        scene = flow.parent.name
        for render_pass in ("clean", "final"):
            frames = training / render_pass / scene
            yield Sample(
                name=f"{scene}/{flow.stem}",
                group=f"sintel/{render_pass}",
                image1=frames / f"{flow.stem}.png",
                image2=frames / f"{_next(flow.stem)}.png",
                flow=flow,
                occlusion=_if_there(training / "occlusions" / scene / f"{flow.stem}.png"),
                invalid=_if_there(training / "invalid" / scene / f"{flow.stem}.png"),
            )


def _find_kitti(root: Path, *, group: str, image_folders: tuple[str, ...]) -> Iterator[Sample]:
    training = _inside(root, "training")
    for flow in training.glob("flow_occ/*_10.png"):
        target = flow.name.replace("_10.png", "_11.png")
        folders = [training / folder for folder in image_folders]
        frames = next((folder for folder in folders if (folder / target).is_file()), folders[-1])
        yield Sample(
            name=flow.stem,
            group=group,
            image1=frames / flow.name,
            image2=frames / target,
            flow=flow,
            foreground=_if_there(training / "obj_map" / flow.name),
            flow_noc=_if_there(training / "flow_noc" / flow.name),
        )


def _find_kitti2012(root: Path) -> Iterator[Sample]:
    return _find_kitti(root, group="kitti12", image_folders=("colored_0", "image_0"))


def _find_kitti2015(root: Path) -> Iterator[Sample]:
    return _find_kitti(root, group="kitti15", image_folders=("image_2",))


def _find_kitti2015_stereo(root: Path) -> Iterator[Sample]:
    training = _inside(root, "training")
    for disparity in training.glob("disp_occ_0/*_10.png"):
        yield Sample(
            name=disparity.stem,
            group="kitti15-stereo",
            image1=training / "image_2" / disparity.name,
            image2=training / "image_3" / disparity.name,
            flow=disparity,
            foreground=_if_there(training / "obj_map" / disparity.name),
            flow_noc=_if_there(training / "disp_noc_0" / disparity.name),
            disparity_scale=256.0,
        )


def _find_middlebury_stereo(root: Path) -> Iterator[Sample]:
    for truth, of_right, left, right, scale in (
        ("disp2.pgm", "disp6.pgm", "im2.png", "im6.png", 4.0),
        ("disp2.png", "disp6.png", "im2.png", "im6.png", 4.0),
        ("disp0.pfm", "disp1.pfm", "im0.png", "im1.png", 1.0),
        ("disp0GT.pfm", "disp1GT.pfm", "im0.png", "im1.png", 1.0),
    ):
        for disparity in root.glob(f"*/{truth}"):
            scene = disparity.parent
            yield Sample(
                name=scene.name,
                group="middlebury-stereo",
                image1=scene / left,
                image2=scene / right,
                flow=disparity,
                visible=_if_there(scene / "mask0nocc.png") or _if_there(scene / "occlusion.png"),
                disparity_scale=scale,
                disparity_right=_if_there(scene / of_right),
            )
    for disparity in root.glob("*_disp.npz"):
        name = disparity.name.removesuffix("_disp.npz")
        yield Sample(
            name=name,
            group="middlebury-stereo",
            image1=root / f"{name}_left.png",
            image2=root / f"{name}_right.png",
            flow=disparity,
            disparity_scale=1.0,
        )


def _find_chairs(root: Path) -> Iterator[Sample]:
    pairs = _inside(root, "data")
    split = next((file for file in (root / CHAIRS_SPLIT, pairs / CHAIRS_SPLIT) if file.is_file()), None)
    parts: list[str] | None = None
    if split is not None:
        with split.open("rb") as file:
            parts = split_parts(file.read(SPLIT_BYTES + 1), split)
    for flow in pairs.glob("[0-9]*_flow.flo"):
        name = flow.name.removesuffix("_flow.flo")
        if not _PAIR_NUMBER.fullmatch(name):
            continue
        yield Sample(
            name=name,
            group="chairs",
            image1=pairs / f"{name}_img1.ppm",
            image2=pairs / f"{name}_img2.ppm",
            flow=flow,
            split=None if parts is None else split_of(name, parts),
        )


def _find_chairs2(root: Path) -> Iterator[Sample]:
    found = {flow.with_suffix(""): flow for flow in sorted(root.glob("**/*-flow_01.flo*"), reverse=True)}
    for flow in found.values():
        pair = flow.name.partition("-flow_01.")[0]
        folder = flow.parent.relative_to(root)
        yield Sample(
            name=(folder / pair).as_posix(),
            group="chairs2",
            image1=flow.parent / f"{pair}-img_0.png",
            image2=flow.parent / f"{pair}-img_1.png",
            flow=flow,
            occlusion=_if_there(flow.parent / f"{pair}-occ_01.png"),
            split={"train": "training", "val": "validation"}.get(folder.name),  # type: ignore[arg-type]
        )


def _find_middlebury(root: Path) -> Iterator[Sample]:
    for flow in root.glob("*/flow10.flo"):
        scene = flow.parent
        yield Sample(
            name=scene.name,
            group="middlebury",
            image1=scene / "frame10.png",
            image2=scene / "frame11.png",
            flow=flow,
        )


def _find_spring(root: Path) -> Iterator[Sample]:
    """Forward and backward flow of both cameras. Its website, "Frequently Asked Questions": a flow has twice
    the frames' height and width, and its vectors are in pixels of the frames."""
    for flow in _inside(root, "train").glob("*/flow_*/flow_*_[0-9][0-9][0-9][0-9].flo5"):
        match = _SPRING_FLOW.fullmatch(flow.name)
        if match is None:
            continue
        scene, camera = flow.parent.parent, match["camera"]
        frames = scene / f"frame_{camera}"
        number = int(match["frame"])
        other = number + 1 if match["direction"] == "FW" else number - 1
        unmatched = f"matchmap_{flow.stem}"
        yield Sample(
            name=f"{scene.name}/{flow.stem}",
            group="spring",
            image1=frames / f"frame_{camera}_{number:04d}.png",
            image2=frames / f"frame_{camera}_{other:04d}.png",
            flow=flow,
            unmatched=_if_there(scene / "maps" / unmatched.rpartition("_")[0] / f"{unmatched}.png"),
            is_fine=True,
        )


def _find_hd1k(root: Path) -> Iterator[Sample]:
    """Kondermann et al., The HCI Benchmark Suite (CVPR workshops 2016): flow in KITTI's format, named after
    sequence and frame. Its maps of uncertainty aren't used."""
    frames = root / "hd1k_input" / "image_2"
    for flow in root.glob("hd1k_flow_gt/flow_occ/[0-9]*_[0-9]*.png"):
        yield Sample(
            name=flow.stem,
            group="hd1k",
            image1=frames / flow.name,
            image2=frames / f"{_next(flow.stem)}.png",
            flow=flow,
        )


def _find_tartanair(root: Path) -> Iterator[Sample]:
    """Its "Data Types" page: the flow of the left camera follows from depth and the camera's motion, so what
    moves by itself or is occluded has none; a mask beside it is not zero there."""
    for flow in root.glob("**/flow/[0-9]*_[0-9]*_flow.npy"):
        first, second, _ = flow.stem.split("_", 2)
        trajectory = flow.parent.parent
        yield Sample(
            name=(trajectory.relative_to(root) / first).as_posix(),
            group="tartanair",
            image1=trajectory / "image_left" / f"{first}_left.png",
            image2=trajectory / "image_left" / f"{second}_left.png",
            flow=flow,
            invalid=_if_there(flow.with_name(f"{first}_{second}_mask.npy")),
        )


def _find_viper(root: Path) -> Iterator[Sample]:
    """Its toolkit's "Structure": flow is stored as 16-bit floats in .npz, frames as .png or .jpg."""
    for part, split in (("train", "training"), ("val", "validation"), (".", None)):
        for flow in (root / part).glob("flow/*/*_[0-9]*.npz"):
            frames = root / part / "img" / flow.parent.name
            suffix = ".png" if (frames / f"{flow.stem}.png").is_file() else ".jpg"
            yield Sample(
                name=flow.stem,
                group="viper",
                image1=frames / f"{flow.stem}{suffix}",
                image2=frames / f"{_next(flow.stem)}{suffix}",
                flow=flow,
                split=split,  # type: ignore[arg-type]
            )


def _find_kubric(root: Path) -> Iterator[Sample]:
    """The files of a Kubric worker, as its `write_image_dict` names them. The last frame's flow leads to no
    frame."""
    for flow in root.glob("**/forward_flow_[0-9]*.png"):
        scene = flow.parent
        number = flow.stem.removeprefix("forward_flow_")
        yield Sample(
            name=(scene.relative_to(root) / number).as_posix(),
            group="kubric",
            image1=scene / f"rgba_{number}.png",
            image2=scene / f"{_next(f'rgba_{number}')}.png",
            flow=flow,
            flow_range=scene / "data_ranges.json",
        )


def _find_scenes(root: Path) -> Iterator[Sample]:
    for flow in root.glob(f"*/flow/{_FRAME}.flo"):
        scene = flow.parent.parent
        yield Sample(
            name=f"{scene.name}/{flow.stem}",
            group="scenes",
            image1=scene / f"{flow.stem}.png",
            image2=scene / f"{_next(flow.stem)}.png",
            flow=flow,
            occlusion=_if_there(scene / "occlusions" / f"{flow.stem}.png"),
        )


def _inside(root: Path, folder: str) -> Path:
    return root / folder if (root / folder).is_dir() else root


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _next(frame: str) -> str:
    """`frame_0009` -> `frame_0010`."""
    prefix, number = frame.rsplit("_", 1)
    return f"{prefix}_{int(number) + 1:0{len(number)}d}"


LAYOUTS: dict[str, tuple[str, Callable[[Path], Iterator[Sample]]]] = {
    "sintel": (
        "training/{clean,final}/<scene>/frame_0001.png and training/flow/<scene>/frame_0001.flo, "
        "with occlusions/ and invalid/ beside flow/",
        _find_sintel,
    ),
    "kitti2012": (
        "training/{colored_0 or image_0}/000000_10.png and _11.png, training/flow_occ/000000_10.png, "
        "with flow_noc/ beside flow_occ/",
        _find_kitti2012,
    ),
    "kitti2015": (
        "training/image_2/000000_10.png and _11.png, training/flow_occ/000000_10.png, "
        "with flow_noc/ and obj_map/ beside flow_occ/",
        _find_kitti2015,
    ),
    "chairs": (
        f"[data/]00001_img1.ppm, 00001_img2.ppm, 00001_flow.flo; beside {CHAIRS_SPLIT} only validation pairs",
        _find_chairs,
    ),
    "chairs2": (
        "[train/ or val/]0000000-img_0.png, 0000000-img_1.png, 0000000-flow_01.flo (or .flo5), "
        "0000000-occ_01.png; val/ to judge, train/ to learn from",
        _find_chairs2,
    ),
    "middlebury": ("<scene>/frame10.png, frame11.png, flow10.flo", _find_middlebury),
    "spring": (
        "train/<scene>/frame_left/frame_left_0001.png and train/<scene>/flow_FW_left/flow_FW_left_0001.flo5, "
        "so with right and BW too, and with maps/ beside them",
        _find_spring,
    ),
    "hd1k": (
        "hd1k_input/image_2/000000_0010.png and hd1k_flow_gt/flow_occ/000000_0010.png",
        _find_hd1k,
    ),
    "tartanair": (
        "<environment>/<Easy or Hard>/P000/image_left/000000_left.png and flow/000000_000001_flow.npy beside "
        "it, with flow/000000_000001_mask.npy",
        _find_tartanair,
    ),
    "viper": (
        "[train/ or val/]img/001/001_00001.png (or .jpg) and [train/ or val/]flow/001/001_00001.npz; val/ to "
        "judge, train/ to learn from",
        _find_viper,
    ),
    "kubric": (
        "<scene>/rgba_00000.png, forward_flow_00000.png and data_ranges.json, as a Kubric worker writes them",
        _find_kubric,
    ),
    "kitti2015-stereo": (
        "training/image_2/000000_10.png, training/image_3/000000_10.png, training/disp_occ_0/000000_10.png, "
        "with disp_noc_0/ beside disp_occ_0/",
        _find_kitti2015_stereo,
    ),
    "middlebury-stereo": (
        "<scene>/im2.png, im6.png and disp2.pgm or .png (2003), or <scene>/im0.png, im1.png and disp0.pfm "
        "(2014) or disp0GT.pfm (MiddEval3), with mask0nocc.png or occlusion.png, 255 = visible, or the right "
        "frame's disp6 or disp1 beside it; or <scene>_left.png, _right.png and _disp.npz (scikit-image)",
        _find_middlebury_stereo,
    ),
    "scenes": (
        "<scene>/frame_0000.png, <scene>/flow/frame_0000.flo, <scene>/occlusions/frame_0000.png",
        _find_scenes,
    ),
}
"""By the name of a data set, its layout in words and what finds its samples."""
