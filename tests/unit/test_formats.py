import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowcore.formats import read_flow, read_image, read_mask, write_flow, write_image, write_mask
from flowcore.frame_codec import FrameCodec
from flowcore.image_size import image_size

in_one_folder = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def flows_with_validity(draw: st.DrawFn, largest: float) -> tuple[np.ndarray, np.ndarray]:
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    value = st.floats(-largest, largest, width=32)
    flow = draw(arrays.arrays(np.float32, (2, height, width), elements=value))
    return flow, draw(arrays.arrays(np.bool_, (height, width)))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".flo", ".flo5", ".npy", ".pfm"])
@in_one_folder
@given(sample=flows_with_validity(largest=1e9))
def test_all_but_png_keep_every_known_value_and_which_are_known(
    tmp_path: Path, suffix: str, sample: tuple[np.ndarray, np.ndarray]
) -> None:
    flow, valid = sample
    write_flow(tmp_path / f"flow{suffix}", flow, valid)
    again, known = read_flow(tmp_path / f"flow{suffix}")
    assert again.dtype == np.float32
    np.testing.assert_array_equal(known, valid)
    np.testing.assert_array_equal(again, np.where(valid, flow, 0))


@in_one_folder
@given(sample=flows_with_validity(largest=511.0))
def test_png_is_off_by_at_most_half_of_a_sixty_fourth_pixel(
    tmp_path: Path, sample: tuple[np.ndarray, np.ndarray]
) -> None:
    flow, valid = sample
    write_flow(tmp_path / "flow.png", flow, valid)
    again, known = read_flow(tmp_path / "flow.png")
    np.testing.assert_array_equal(known, valid)
    assert np.abs(again - np.where(valid, flow, 0)).max() <= 1 / 128
    write_flow(tmp_path / "twice.png", again, known)
    np.testing.assert_array_equal(read_flow(tmp_path / "twice.png")[0], again)


@pytest.mark.parametrize("suffix", [".flo", ".flo5", ".npy", ".pfm", ".png"])
def test_unknown_pixels_may_hold_anything(tmp_path: Path, suffix: str) -> None:
    flow = np.array([[[1.0, np.nan]], [[2.0, np.inf]]], np.float32)
    write_flow(tmp_path / f"flow{suffix}", flow, np.array([[True, False]]))
    again, valid = read_flow(tmp_path / f"flow{suffix}")
    np.testing.assert_array_equal(valid, [[True, False]])
    np.testing.assert_array_equal(again, [[[1, 0]], [[2, 0]]])


def test_a_flo_file_is_magic_width_height_and_rows_of_u_v(tmp_path: Path) -> None:
    by_hand = b"PIEH" + struct.pack("<ii", 2, 1) + struct.pack("<4f", 1.5, -2.5, 3.5, 2e9)
    (tmp_path / "hand.flo").write_bytes(by_hand)
    flow, valid = read_flow(tmp_path / "hand.flo")
    np.testing.assert_array_equal(flow, [[[1.5, 0]], [[-2.5, 0]]])
    np.testing.assert_array_equal(valid, [[True, False]])
    write_flow(tmp_path / "ours.flo", flow, valid)
    expected = b"PIEH" + struct.pack("<ii", 2, 1) + struct.pack("<4f", 1.5, -2.5, 1e10, 1e10)
    assert (tmp_path / "ours.flo").read_bytes() == expected


def test_a_flo5_file_is_an_hdf5_file_of_rows_of_u_v_with_nan_where_unknown(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "hand.flo5", "w") as file:
        file["flow"] = np.array([[[1.5, -2.5], [np.nan, np.nan]]], np.float32)
    flow, valid = read_flow(tmp_path / "hand.flo5")
    np.testing.assert_array_equal(flow, [[[1.5, 0]], [[-2.5, 0]]])
    np.testing.assert_array_equal(valid, [[True, False]])
    write_flow(tmp_path / "ours.flo5", flow, valid)
    with h5py.File(tmp_path / "ours.flo5") as file:
        np.testing.assert_array_equal(file["flow"], [[[1.5, -2.5], [np.nan, np.nan]]])


def test_what_is_no_flo5_file_is_refused_with_what_one_is(tmp_path: Path) -> None:
    (tmp_path / "a.flo5").write_bytes(b"PIEH")
    with pytest.raises(ValueError, match=r"a.flo5 is not an HDF5 file with a data set 'flow'"):
        read_flow(tmp_path / "a.flo5")
    with h5py.File(tmp_path / "c.flo5", "w") as file:
        file["flow"] = "a text"
    with pytest.raises(ValueError, match=r"c.flo5 is of object; it must be of floats"):
        read_flow(tmp_path / "c.flo5")
    with h5py.File(tmp_path / "b.flo5", "w") as file:
        file["flow"] = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\); it must be \[height, width, 2\]"):
        read_flow(tmp_path / "b.flo5")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"chunks": True},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf", "maxshape": (None, None, 2)},
        # A chunk so large that it is unpacked beforehand.
        {"compression": "gzip", "chunks": (300, 500, 2)},
    ],
)
@pytest.mark.parametrize("dtype", ["<f4", ">f8"])
def test_a_flo5_file_may_be_stored_in_any_plain_way(
    tmp_path: Path, how: dict[str, object], dtype: str
) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, (300, 500, 2), np.uint32)
    flow = (bits / 2**16).astype(np.float32)
    with h5py.File(tmp_path / "a.flo5", "w") as file:
        file.create_dataset("flow", data=flow, dtype=dtype, **how)
    read, valid = read_flow(tmp_path / "a.flo5", (300, 500))
    np.testing.assert_array_equal(read, flow.transpose(2, 0, 1))
    assert valid.all()


def bomb(file: h5py.File) -> None:
    """330 kB that unpack to 340 MB, in a chunk of 8 kB."""
    flow = file.create_dataset("flow", (32, 32, 2), np.float32, chunks=(32, 32, 2), compression="gzip")
    packer = zlib.compressobj(9)
    first, next_ = (packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    flow.id.write_direct_chunk((0, 0, 0), first + next_ * 20)


def wide_chunk(file: h5py.File) -> None:
    chunk = (2**13, 2**13, 2)
    flow = file.create_dataset(
        "flow", (8, 8, 2), np.float32, chunks=chunk, maxshape=chunk, compression="gzip"
    )
    flow.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(1000)))


def soft_link(file: h5py.File) -> None:
    file["other"] = np.zeros((2, 3, 2), np.float32)
    file["flow"] = h5py.SoftLink("/other")


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda file: file.create_group("flow"), "is no data set"),
        (lambda file: file.create_dataset("flow", data=np.zeros((2, 3, 2), np.int32)), "is of int32"),
        (lambda file: file.create_dataset("flow", (0, 3, 2), np.float32), r"has shape \(0, 3, 2\)"),
        (
            lambda file: file.create_dataset("flow", data=np.zeros((2, 3, 2), np.float32), scaleoffset=2),
            r"went through HDF5's filters \[6\]",
        ),
        # Of neither is a value in the file.
        (lambda file: file.create_dataset("flow", (20, 30, 2), np.float32), "doesn't hold so many"),
        (
            lambda file: file.create_dataset("flow", (20, 30, 2), np.float32, compression="gzip"),
            "doesn't hold so many",
        ),
        (soft_link, "is a link"),
        (bomb, "may unpack to more than 8192"),
        (wide_chunk, r"in chunks of \(8192, 8192, 2\), more than the flow itself"),
    ],
)
def test_a_flo5_file_is_refused_whose_flow_is_not_plain_floats_in_the_file(
    tmp_path: Path, write: Callable[[h5py.File], object], told: str
) -> None:
    with h5py.File(tmp_path / "a.flo5", "w") as file:
        write(file)
    with pytest.raises(ValueError, match=rf"the flow in .*a.flo5 .*{told}"):
        read_flow(tmp_path / "a.flo5")


@pytest.mark.parametrize("suffix", [".flo", ".flo5", ".npy", ".pfm", ".png"])
def test_flow_must_have_the_size_of_its_frames(tmp_path: Path, suffix: str) -> None:
    write_flow(tmp_path / f"a{suffix}", np.zeros((2, 3, 4), np.float32))
    assert read_flow(tmp_path / f"a{suffix}", (3, 4))[0].shape == (2, 3, 4)
    with pytest.raises(ValueError, match=rf"a{suffix} is 3x4 px .* its frames are 4x3 px"):
        read_flow(tmp_path / f"a{suffix}", (4, 3))


@pytest.mark.parametrize(("order", "scale"), [("<", b"-1.0"), (">", b"1"), (">", b"+2.5e-1")])
def test_a_pfm_file_starts_with_its_lowest_row(tmp_path: Path, order: str, scale: bytes) -> None:
    bottom, top = (10.0, 20.0, 0.0), (30.0, 40.0, 0.0)
    content = b"PF\n1 2\n" + scale + b"\n" + struct.pack(f"{order}6f", *bottom, *top)
    (tmp_path / "flow.pfm").write_bytes(content)
    flow, valid = read_flow(tmp_path / "flow.pfm")
    np.testing.assert_array_equal(flow, [[[30], [10]], [[40], [20]]])
    assert valid.all()


def test_a_kitti_png_holds_u_in_red_v_in_green_and_validity_in_blue(tmp_path: Path) -> None:
    red, green, blue = 2**15 + 64, 2**15 - 32, 1
    cv2.imwrite(str(tmp_path / "flow.png"), np.array([[[blue, green, red], [0, 9, 9]]], np.uint16))
    flow, valid = read_flow(tmp_path / "flow.png")
    np.testing.assert_array_equal(flow, [[[1, 0]], [[-0.5, 0]]])
    np.testing.assert_array_equal(valid, [[True, False]])
    write_flow(tmp_path / "ours.png", flow, valid)
    ours = cv2.imread(str(tmp_path / "ours.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(ours, [[[blue, green, red], [0, 0, 0]]])


@pytest.mark.parametrize("value", [-512.0, 511.984375])
def test_png_reaches_from_minus_512_to_just_below_512_px(tmp_path: Path, value: float) -> None:
    write_flow(tmp_path / "flow.png", np.full((2, 1, 1), value, np.float32))
    assert read_flow(tmp_path / "flow.png")[0][0, 0, 0] == value


@pytest.mark.parametrize("value", [-512.5, 512.0, 600.25])
def test_png_refuses_what_it_cannot_hold_and_names_flo(tmp_path: Path, value: float) -> None:
    flow = np.zeros((2, 2, 2), np.float32)
    flow[1, 0, 1] = value
    with pytest.raises(ValueError, match=rf"{value} px .* \.flo"):
        write_flow(tmp_path / "flow.png", flow)
    assert list(tmp_path.iterdir()) == []
    valid = np.array([[True, False], [True, True]])
    write_flow(tmp_path / "flow.png", flow, valid)


@pytest.mark.parametrize("suffix", [".flo", ".npy", ".pfm", ".png"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 2e9])
def test_a_known_value_must_be_a_motion(tmp_path: Path, suffix: str, value: float) -> None:
    with pytest.raises(ValueError, match="1 known pixels"):
        write_flow(tmp_path / f"flow{suffix}", np.array([[[value, 0]], [[0, 0]]], np.float32))


@pytest.mark.parametrize("suffix", [".flo", ".npy", ".pfm", ".png"])
def test_a_truncated_flow_file_is_an_error_at_every_length(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"flow{suffix}"
    write_flow(path, np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=path.name):
            read_flow(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.flo", b"PIEX" + struct.pack("<ii2f", 1, 1, 0, 0), "starts with b'PIEX'"),
        ("a.flo", b"PIEH" + struct.pack("<ii2f", 1, 1, 0, 0) + b"x", "does not match its header: 9 bytes"),
        ("a.flo", b"PIEH" + struct.pack("<ii2f", 0, 1, 0, 0), "1 px high and 0 px wide"),
        ("a.flo", b"PIEH" + struct.pack("<ii2f", 1, -1, 0, 0), "-1 px high"),
        ("a.pfm", b"P5\n1 1\n-1\n" + bytes(12), "starts with b'P5"),
        ("a.pfm", b"Pf\n1 1\n-1\n" + bytes(4), "one channel"),
        ("a.pfm", b"PF\n1 1\n0\n" + bytes(12), "scale 0"),
        ("a.pfm", b"PF\n1 1\n-1\n" + bytes(16), "does not match its header: 16 bytes"),
        ("a.png", b"not a picture", "not an image"),
        ("a.npy", npy(np.zeros((2, 3, 4), np.float32)), r"float32 \(2, 3, 4\); flow is float"),
        ("a.npy", npy(np.zeros((3, 4, 2), np.int32)), "holds int32"),
        ("a.npy", npy(np.full((3, 4, 2), None)), "holds object"),
        ("a.npy", npy(np.zeros((3, 4, 2), np.float32)) + b"x", "bytes are there"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_flow(tmp_path / name)


def test_an_ordinary_png_is_not_taken_for_flow(tmp_path: Path) -> None:
    write_image(tmp_path / "frame.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        read_flow(tmp_path / "frame.png")


def test_an_unknown_flow_extension_lists_the_known_ones(tmp_path: Path) -> None:
    flow = np.zeros((2, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"'\.exr'; known are \.flo, \.flo5, \.npy, \.pfm, \.png"):
        write_flow(tmp_path / "flow.exr", flow)
    with pytest.raises(ValueError, match="known are"):
        read_flow(tmp_path / "flow.exr")


@pytest.mark.parametrize("suffix", [".png", ".ppm"])
@in_one_folder
@given(image=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_lossless_images_come_back_as_they_were(tmp_path: Path, suffix: str, image: np.ndarray) -> None:
    write_image(tmp_path / f"image{suffix}", image)
    np.testing.assert_array_equal(read_image(tmp_path / f"image{suffix}"), image)


def test_images_are_rgb(tmp_path: Path) -> None:
    (tmp_path / "red.ppm").write_bytes(b"P6\n1 1\n255\n" + bytes([200, 10, 30]))
    np.testing.assert_array_equal(read_image(tmp_path / "red.ppm"), [[[200, 10, 30]]])


def test_grey_becomes_three_channels_and_16_bit_its_upper_byte(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.array([[0x1234, 0xFFFF]], np.uint16))
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), [[[0x12] * 3, [0xFF] * 3]])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".ppm"])
def test_a_truncated_or_empty_image_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    write_image(path, np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated"):
            read_image(path)


def test_an_image_extension_without_encoder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no encoder for the extension '\.xyz'"):
        write_image(tmp_path / "image.xyz", np.zeros((2, 2, 3), np.uint8))


HEADER = [b" ", b"\n", b"\r", b"\t", b"\v", b"#", b"#9\n", b"#9\r", b"1", b"2", b"16", b"08", b"-1.0", b"+3"]


@settings(max_examples=1000)
@given(
    kind=st.sampled_from([b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"PF", b"Pf"]),
    before=st.lists(st.sampled_from(HEADER), max_size=3),
    between=st.lists(st.sampled_from(HEADER), max_size=3),
    depth=st.sampled_from([b" ", b" 255 ", b" -1.0\n"]),
)
def test_the_header_of_a_pnm_file_says_the_size_that_opencv_decodes(
    kind: bytes, before: list[bytes], between: list[bytes], depth: bytes
) -> None:
    content = kind + b" " + b"".join(before) + b"16" + b"".join(between) + b" 2" + depth
    content += b"1 " * 2000 if kind in (b"P1", b"P2", b"P3") else bytes(4000)
    try:
        said = image_size(content)
    except ValueError:
        return
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return
    assert image is None or image.shape[:2] == said


def test_an_image_is_its_pixels_however_a_camera_was_held(tmp_path: Path) -> None:
    pixels = np.full((8, 16, 3), 200, np.uint8)
    photograph = cv2.imencode(".jpg", pixels)[1].tobytes()
    upright = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    noted = photograph[:2] + b"\xff\xe1" + struct.pack(">H", len(upright) + 2) + upright + photograph[2:]
    (tmp_path / "image.jpg").write_bytes(noted)
    assert cv2.imread(str(tmp_path / "image.jpg")).shape == (16, 8, 3)
    assert read_image(tmp_path / "image.jpg", (8, 16)).shape == (8, 16, 3)
    assert read_mask(tmp_path / "image.jpg", (8, 16)).shape == (8, 16)
    assert FrameCodec("jpeg").decode(noted, (8, 16)).shape == (8, 16, 3)


@in_one_folder
@given(mask=arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_masks_come_back_as_they_were(tmp_path: Path, mask: np.ndarray) -> None:
    write_mask(tmp_path / "mask.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), mask)


def test_a_mask_is_true_where_any_color_is_not_zero_whatever_the_alpha(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0, 255], [0, 1, 0, 255], [0, 0, 300, 0]]], np.uint16)
    cv2.imwrite(str(tmp_path / "mask.png"), pixels)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[False, True, True]])


def test_a_mask_is_not_written_with_losses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be \.png"):
        write_mask(tmp_path / "mask.jpg", np.ones((2, 2), np.bool_))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_flow(tmp_path / "flow.flo", np.ones((2, 1, 1), np.float32))
    with pytest.raises(ValueError, match="known"):
        write_flow(tmp_path / "flow.flo", np.full((2, 1, 1), np.nan, np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["flow.flo"]
    assert read_flow(tmp_path / "flow.flo")[0].tolist() == [[[1.0]], [[1.0]]]
    (tmp_path / "taken.flo").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_flow(tmp_path / "taken.flo", np.ones((2, 1, 1), np.float32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flow.flo", "taken.flo"]


def test_flo_files_of_another_project_are_read(shared_data: Path) -> None:
    flow, valid = read_flow(shared_data / "mmflow_mini" / "0000000-flow_01.flo")
    assert flow.shape == (2, 50, 50)
    assert valid.all()
    assert (flow.min(), flow.max()) == (-19.0625, 13.78125)


def test_a_weight_map_of_another_project_is_not_taken_for_flow(shared_data: Path) -> None:
    with pytest.raises(ValueError, match="one channel"):
        read_flow(shared_data / "mmflow_mini" / "0000000-occ_weights_01.pfm")


def test_images_and_masks_of_another_project_are_read(shared_data: Path) -> None:
    assert read_image(shared_data / "mmflow_mini" / "00001_img1.ppm").shape == (50, 50, 3)
    mask = read_mask(shared_data / "mmflow_mini" / "0000000-occ_01.png")
    assert mask.shape == (50, 50)
    assert 0 < mask.mean() < 1


def test_unknown_pixels_of_middlebury_are_not_valid(shared_data: Path) -> None:
    flow, valid = read_flow(shared_data / "middlebury_flow" / "RubberWhale" / "flow10.flo")
    assert flow.shape == (2, 388, 584)
    assert 0.98 < valid.mean() < 1
    assert np.abs(flow).max() < 10


def test_jpeg_frames_are_close_and_quality_decides_their_size() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = cv2.resize(noise, (96, 64), interpolation=cv2.INTER_CUBIC)
    encoded = FrameCodec("jpeg").encode(image)
    decoded = FrameCodec("jpeg").decode(encoded)
    assert np.abs(decoded.astype(int) - image).mean((0, 1)).max() < 5
    assert len(FrameCodec("jpeg", 30).encode(image)) < len(encoded) < image.nbytes / 2


def test_png_frames_are_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(FrameCodec("png").decode(FrameCodec("png").encode(image)), image)


def test_damaged_frames_and_impossible_qualities_are_refused() -> None:
    with pytest.raises(ValueError, match="aren't an image"):
        FrameCodec().decode(b"no image")
    for quality in (0, 101):
        with pytest.raises(ValueError, match=f"JPEG quality {quality} must be in"):
            FrameCodec(quality=quality)
