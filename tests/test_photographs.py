"""Faces of photographs through the command, and back into the photographs."""

import dataclasses
import hashlib
import json
import math
import sys

import numpy as np
import pytest
from command_helpers import read_rows, write_picture
from PIL import Image

import pulse_jax
from pulse_jax import align, images, put_back
from pulse_jax.files import figure
from pulse_jax.upsampling.pictures import load_photograph
from pulse_jax.upsampling.settings import Settings

LINEAR = "experiment_helpers:linear"
FACE = np.array([[20.0, 20], [30, 20], [25, 25], [21, 31], [29, 31]])
FACES = {"group.png": [FACE, FACE + np.array([30, 5])], "one.png": [FACE]}


@pytest.fixture
def photographs(tmp_path):
    """A folder with group.png, which has two faces, one.png, nobody.png and marks.json."""
    pixels = np.random.default_rng(0).integers(60, 200, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "group.png")
    for name in ("one.png", "nobody.png"):
        write_picture(tmp_path / name, side=50)
    align.write_landmarks(tmp_path / "marks.json", FACES)
    return tmp_path


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run pulse_jax_put_back in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pulse_jax_put_back", *map(str, arguments)])
        put_back.main()

    return call


def ends(capsys, call, *arguments):
    """The one line that a call of the command ends with, which has to fail."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        call(*arguments)
    assert exit.value.code not in (0, None)
    told = exit.value.code if isinstance(exit.value.code, str) else capsys.readouterr().err
    (line,) = told.splitlines()
    assert line.startswith("pulse_jax_put_back: ")
    return line


def test_each_face_is_a_picture_and_is_put_back(run, photographs, call, capsys):
    names = [str(photographs / name) for name in ("group.png", "one.png", "nobody.png")]
    marks = f"--landmarks={photographs / 'marks.json'}"
    flags = "--crop=face", marks, "--input_size=2", "--steps=1", "--operator=area"
    with pytest.raises(SystemExit) as exit:
        run(*names, *flags, generator=LINEAR)
    assert exit.value.code == 1
    captured = capsys.readouterr()
    assert f"{names[2]}: no face is in {marks}" in captured.err
    output = photographs / "out"
    rows, page = read_rows(output), (output / "index.html").read_text()
    assert [r["image"] for r in rows][::3] == ["group_1.png", "group_2.png", "one.png"]

    photograph = images.load_image(names[0])
    pixels = np.asarray(Image.open(names[0]))
    for number, landmarks in enumerate(FACES["group.png"], 1):
        quad = align.face_quad(landmarks)

        def target(pixels, quad=quad):
            """A face that is cut out and downscaled."""
            return (align.cut_out(pixels, quad, 32) / 255).reshape(2, 16, 2, 16, 3).mean((1, 3))

        folder = output / f"group_{number}"
        found = images.load_image(folder / "input.png")
        assert np.abs(found - target(pixels)).max() < 0.6 / 255
        done = f"cut out as face {number} of 2, a square 40 pixels wide and turned by 0°"
        assert f"The picture was {done}" in page
        assert f"group.png: {done}" in captured.out

        # Back in the photograph, each result is measured once more.
        own = [row for row in rows if row["image"] == f"group_{number}.png"]
        for row in own:
            result = images.load_image(folder / f"hr_0{row['restart']}.png")
            whole = images.to_uint8(align.put_back(photograph, [(result, quad)]))
            error = np.mean((target(whole) - target(pixels)) ** 2)
            assert float(row["l2_put_back"]) == pytest.approx(error, rel=1e-4)
            assert float(row["l2_put_back"]) < float(row["l2_saved"])  # the rim is the original's
        best = min(own, key=lambda row: float(row["l2_saved"]))
        result = images.load_image(folder / f"hr_0{best['restart']}.png")
        whole = images.to_uint8(align.put_back(photograph, [(result, quad)]))
        assert np.array_equal(np.asarray(Image.open(folder / "put_back.png")), whole)
        place = json.loads((folder / "crop.json").read_text())
        sha256 = hashlib.sha256((photographs / "group.png").read_bytes()).hexdigest()
        told = {"photograph": names[0], "SHA-256": sha256, "value_range": None}
        assert place == told | {"quad": quad.tolist()}
        assert f"photograph, with an l2 of {figure(best['l2_put_back'])}<" in page
        assert f">{figure(best['l2_put_back'])}</td>" in page

    # The same command sees the same pictures, and has nothing to do.
    before = {path: path.read_bytes() for path in output.rglob("*.*") if path.name != "timings.csv"}
    with pytest.raises(SystemExit):
        run(*names, *flags, generator=LINEAR)
    assert "9 of 9 restarts had been done before: 0 to go" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before

    # The command puts any of them back, also all faces of one photograph.
    capsys.readouterr()
    call("out/group_1")
    told = capsys.readouterr().out
    assert told == "1 result is in the photograph put_back.png, which has 80×60 pixels\n"
    first = (output / "group_1" / "put_back.png").read_bytes()
    assert (photographs / "put_back.png").read_bytes() == first
    call("out/group_1", "out/group_2", "--pick=3", "--outscale=2", "--output=all.png")
    both = np.asarray(Image.open(photographs / "all.png"))
    results = [
        (images.load_image(output / f"group_{i}" / "hr_03.png"), align.face_quad(face))
        for i, face in enumerate(FACES["group.png"], 1)
    ]
    assert both.shape == (120, 160, 3)
    assert np.array_equal(both, images.to_uint8(align.put_back(photograph, results, 2)))
    (photographs / "all.png").unlink()
    # What can't be put back is told, and the others are.
    flags = "--pick=3", "--outscale=2", "--output=all.png"
    with pytest.raises(SystemExit) as exit:
        call("out/nobody", "out/group_1", "~nosuch/a", "out/one", "out/group_2", *flags)
    assert exit.value.code == 1
    captured = capsys.readouterr()
    assert "2 results are in the photograph all.png, which has 160×120 pixels\n" in captured.out
    first, second, third = captured.err.splitlines()
    assert first.startswith("pulse_jax_put_back: there is no out/nobody/crop.json: name the folder")
    assert second == "pulse_jax_put_back: ~nosuch/a: no home is known for ~nosuch"
    assert third == f"pulse_jax_put_back: out/one: its photograph is {names[1]}, not {names[0]}"
    assert np.array_equal(np.asarray(Image.open(photographs / "all.png")), both)
    for arguments, told in (
        ([], "give the folders of results"),
        (["out"], "there is no out/crop.json: name the folder of a picture that was cut out"),
        (["out/nobody"], "there is no out/nobody/crop.json: name the folder of a picture"),
        (["out/group_1", "--pick=4"], "out/group_1: it has no result 4, which would be hr_04.png"),
        (["out/group_1", "--outscale=0"], "outscale=0.0: must be finite and above 0"),
        (["out/group_1", "--outscale=big"], "big"),
        (["out/group_1", "--outscale=nan"], "outscale=nan: must be finite and above 0"),
        (["out/group_1", "--outscale=1e4"], "outscale=10000.0: makes more than 89.5 megapixels"),
        (["out/group_1", "--output=group.jpg"], "it would be a PNG, and .jpg is for JPEG"),
        (["out/group_1", "--output=no/where.png"], "no/where.png: can't be written"),
        (["out/group_1", f"--output={300 * 'a'}.png"], "a.png: can't be written"),
        (["out/group_1", "--output=group.png"], "--output=group.png would replace the photograph"),
        (["out/group_1", "--output="], "--output=: must not be empty"),
        (["out/group_1", "--output=~nosuch/a.png"], "--output=~nosuch/a.png: no home is known"),
    ):
        assert told in ends(capsys, call, *arguments)
    assert np.array_equal(np.asarray(Image.open(names[0])), pixels)


def test_a_photograph_is_read_as_it_was(run, photographs, call, capsys):
    """With its range of values, and a folder that was damaged is told."""
    pixels = np.random.default_rng(0).integers(0, 4096, (50, 50), np.uint16)
    Image.fromarray(pixels).save(photographs / "deep.png")
    flags = "--crop=3,2,16", "--value_range=0,4095", "--steps=1", "--operator=area"
    output = run(str(photographs / "deep.png"), *flags, generator=LINEAR)
    call("out/deep")
    written = (output / "deep" / "put_back.png").read_bytes()
    assert (photographs / "put_back.png").read_bytes() == written
    Image.fromarray(pixels + 1).save(photographs / "deep.png")
    load_photograph.cache_clear()  # as in a process of its own
    told = "deep.png: it has changed since its picture was cut"
    assert told in ends(capsys, call, "out/deep")
    (output / "deep" / "results.csv").write_text("restart,l2_saved\n")
    assert "results.csv: can't be read: it has no rows" in ends(capsys, call, "out/deep")
    place = {"photograph": str(photographs / "one.png"), "value_range": None}
    corner = [0, 0]
    for damaged, told in (
        ({"quad": []}, "cannot reshape array of size 0"),
        (place, "'quad'"),
        (place | {"quad": 4 * [corner]}, "its quad is no square"),
        (place | {"quad": [corner, [0, math.nan], [9, 9], [9, 0]]}, "its quad is no square"),
        (place | {"value_range": {}}, ""),
        (place | {"value_range": [9, 0]}, ""),
    ):
        (output / "deep" / "crop.json").write_text(json.dumps(place | damaged))
        line = ends(capsys, call, "out/deep", "--pick=1")
        assert f"crop.json: can't be read: {told}" in line
    (output / "deep" / "crop.json").write_text('{"quad": [], "value_range": null}')
    assert "crop.json: can't be read: 'photograph'" in ends(capsys, call, "out/deep")


def test_a_photograph_is_read_once(photographs, call, capsys, monkeypatch):
    """Also where folders of other photographs, which are told, come in between."""
    names, quad = ["group", "one", "nobody"], [[0, 0], [0, 16], [16, 16], [16, 0]]
    for name in names:
        write_picture(photographs / name / "hr_01.png", side=16)
        path = str(photographs / f"{name}.png")
        place = {"photograph": path, "value_range": None, "quad": quad}
        (photographs / name / "crop.json").write_text(json.dumps(place))
    read, load_image = [], images.load_image

    def noted(path, *others, **options):
        read.append(path.stem)
        return load_image(path, *others, **options)

    load_photograph.cache_clear()
    monkeypatch.setattr(images, "load_image", noted)
    with pytest.raises(SystemExit):
        call(*names, "--pick=1")
    assert "1 result is in the photograph put_back.png" in capsys.readouterr().out
    assert read == names


def test_a_photograph_keeps_its_alpha(run, photographs, call):
    """Wherever a result is put back, it is as transparent as it was, and is measured so."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 4), np.uint8)
    pixels[:20, :30, 3] = 255
    Image.fromarray(pixels).save(photographs / "cut.png")
    flags = "--crop=3,2,32", "--input_size=4", "--steps=1", "--restarts=1"
    output = run(str(photographs / "cut.png"), *flags, generator=LINEAR)
    call("out/cut")
    for path in (output / "cut" / "put_back.png", photographs / "put_back.png"):
        whole = np.asarray(Image.open(path))
        assert np.array_equal(whole[..., 3], pixels[..., 3])
        assert np.array_equal(whole[34:], pixels[34:])
        assert not np.array_equal(whole[2:34, 3:35], pixels[2:34, 3:35])
    shown = images.load_image(path)[2:34, 3:35]
    small = np.asarray(pulse_jax.operators.bicubic(8)(shown)).clip(0, 1)
    original = images.load_image(photographs / "cut.png")[2:34, 3:35]
    target = np.asarray(pulse_jax.operators.bicubic(8)(original)).clip(0, 1)
    (row,) = read_rows(output)
    assert float(row["l2_put_back"]) == pytest.approx(np.mean((small - target) ** 2), rel=1e-4)


def test_landmarks_may_be_in_the_home_folder(photographs, monkeypatch):
    monkeypatch.setenv("HOME", str(photographs))
    settings = Settings(
        generator=LINEAR, operator="area", crop="face", input_size=2, landmarks="~/marks.json",
        steps=1, restarts=1, seeds=(0,),
    )  # fmt: skip
    (picture,) = pulse_jax.upsample(photographs / "one.png", None, settings).pictures
    # A photograph of the same name may be another one the next time.
    write_picture(photographs / "one.png", side=50, seed=9)
    (other,) = pulse_jax.upsample(photographs / "one.png", None, settings).pictures
    corner = images.load_image(photographs / "one.png")[-1, -1]
    image = other.images()[1]
    assert np.array_equal(other.put_back(image)[-1, -1], corner)
    assert not np.array_equal(picture.target, other.target)
    nowhere = dataclasses.replace(settings, landmarks="~nosuch/marks.json")
    with pytest.raises(ValueError, match=r"^landmarks=~nosuch/marks\.json: no home is known"):
        pulse_jax.upsample(photographs / "one.png", None, nowhere)


def test_what_was_cropped_is_put_back_in_memory(photographs):
    """Each by itself: a photograph that is gone by then has an error, and spares the other."""
    array = images.load_image(photographs / "group.png")
    settings = Settings(
        generator=LINEAR, operator="area", crop=(3, 2, 16), steps=1, restarts=2, seeds=(0,)
    )
    results = pulse_jax.upsample(
        [photographs / "one.png", array],
        None,
        settings,
        lambda _: (photographs / "one.png").unlink(missing_ok=True),
    )
    gone, kept = results.pictures
    assert "one.png: can't be read" in gone.error and results.failures == (gone.error,)
    assert np.isnan([row["l2_put_back"] for row in gone.rows.values()]).all()
    assert not kept.error and np.array_equal(kept.target, array[2:18, 3:19])
    for number, image in kept.images().items():
        whole = images.to_uint8(kept.put_back(image)) / 255
        small = whole[2:18, 3:19]
        assert kept.rows[number]["l2_put_back"] == pytest.approx(
            np.mean((small - kept.target) ** 2)
        )
        whole[2:18, 3:19] = array[2:18, 3:19]
        assert np.abs(whole - array).max() < 1e-6
        assert kept.put_back(image, outscale=2).shape == (120, 160, 3)
    settings = dataclasses.replace(settings, crop=None)
    (whole,) = pulse_jax.upsample([array[:16, :16]], None, settings).pictures
    assert "l2_put_back" not in whole.rows[1]
    with pytest.raises(ValueError, match="01 is a whole picture, not one that was cut out"):
        whole.put_back(image)
