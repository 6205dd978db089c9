"""A picture that is unlike those of the generator's own is told as such."""

import dataclasses

import numpy as np
import pytest
from command_helpers import write_picture
from experiment_helpers import save_small_generator

import pulse_jax
from pulse_jax import align, images
from pulse_jax.generators import checkpoint
from pulse_jax.upsampling import familiarity, run
from pulse_jax.upsampling.pictures import Picture
from pulse_jax.upsampling.settings import LOSS, RECIPES, Settings

OWN = {
    "4": {
        "pictures": 9,
        "largest l2": 9e-4,
        "largest steps": 12.5,
        "mean score": -3.0,
        "deviation of scores": 0.2,
    },
}


def picture_with(l2s, score=-3.0, side=4, status="converged", steps=20):
    """A picture whose restarts have these l2 and steps, and whose images have this score."""
    target, image = np.zeros((side, side, 3), np.float32), np.full((8, 8, 3), score, np.float32)
    picture = Picture("a.png", target, 1.0, "")
    row = {"status": status, "steps": steps}
    picture.rows = {i: row | {"l2_saved": l2} for i, l2 in enumerate(l2s, 1)}
    picture.kept = {i: (image, {}) for i, l2 in enumerate(l2s, 1) if np.isfinite(l2)}
    familiarity.note_scores(picture, lambda images: [float(image.mean()) for image in images])
    return picture


@pytest.mark.parametrize(
    ("picture", "settings", "told"),
    [
        (picture_with([1e-3, 8e-4, 9e-4]), {}, ""),
        (picture_with([1e-3, 2e-3, 3e-3]), {}, "end farther from it than an l2 of 0.00200"),
        (picture_with([1e-3, 2e-3, 3e-3]), {"eps": 2e-3}, ""),  # which ends searches earlier
        (picture_with([1e-3, 2e-3, 3e-3]), {"steps": 50}, ""),
        (picture_with([1e-3, 2e-3, 3e-3], side=2), {}, ""),  # of no known size
        (picture_with([1e-3], score=-3.5), {}, ""),
        (picture_with([1e-3], score=-3.7), {}, "for less real: it gives them -3.7"),
        (picture_with([1e-3, 8e-4], steps=37), {}, ""),
        (picture_with([1e-3, 8e-4], steps=38), {}, "take 38 steps or more, and for 9 pictures of"),
        (picture_with([1e-3, 8e-4], steps=38), {"eps": 9e-4}, ""),  # which takes longer to meet
        (picture_with([1e-3, 8e-4], steps=38), {"steps": 101}, ""),
        (picture_with([1e-3], status="missed eps"), {}, "half of its restarts take 100 steps"),
        (picture_with([np.nan, np.nan], steps=100, status="not finite"), {}, ""),  # told already
        (picture_with([1e-3], score=-3.7, status="met"), {"noise": 0.1}, "it gives them -3.7"),
        (picture_with([1e-3], score=-3.7, status="not met"), {"noise": 0.1}, ""),
    ],
)
def test_a_picture_is_compared_with_the_generators_own(picture, settings, told):
    found = familiarity.difference(picture, Settings(**settings), OWN)
    assert told in found and bool(told) == bool(found)
    assert not found or found.startswith(f"unlike what {Settings.generator} knows: ")


def test_only_figures_of_such_searches_are_compared_with():
    assert all(familiarity.read(Settings())[side]["pictures"] >= 8 for side in ("16", "8"))
    for settings in (RECIPES["posterior"], Settings(loss_str=LOSS, scheme="rescale", eps=0.1)):
        assert familiarity.read(settings) == familiarity.read(Settings())
    for settings in (
        Settings(operator="area"),
        Settings(learning_rate=0.01),
        Settings(space="z"),
        Settings(style_spread=0.5),
        Settings(solver="flow:2"),
        Settings(generator="experiment_helpers:linear"),
    ):
        assert familiarity.read(settings) == {}


@pytest.mark.parametrize(
    "content",
    [
        '{"8": 1}',
        '{"8": {"pictures": 12}}',
        '{"8": {"pictures": 12, "largest l2": "low"}}',
        '{"8": {"pictures": 12, "largest l2": 0.1, "mean score": -1}}',
    ],
)
def test_figures_of_another_kind_are_told(tmp_path, content):
    (tmp_path / familiarity.FILE).write_text(content)
    with pytest.raises(ValueError, match=f"{familiarity.FILE}: its figures of side 8 can't be"):
        familiarity.read(Settings(generator=str(tmp_path)))


def test_figures_that_are_damaged_spare_the_results(tmp_path):
    save_small_generator(tmp_path / "generator")
    (tmp_path / "generator" / familiarity.FILE).write_text("{")
    write_picture(tmp_path / "a.png")
    settings = Settings(generator=str(tmp_path / "generator"), steps=1, restarts=1)
    results = pulse_jax.upsample(tmp_path / "a.png", tmp_path / "out", settings)
    (failure,) = results.failures
    assert f"{familiarity.FILE}: can't be read" in failure
    assert (tmp_path / "out" / "index.html").is_file() and results.rows


def test_own_pictures_are_summarised():
    figures = [familiarity.Figures(1e-3, 7.5, [-1.0, -2.0]), familiarity.Figures(8e-4, 9, [-3.0])]
    found = {"pictures": 2, "largest l2": 1e-3, "largest steps": 9}
    scores = {"mean score": -2.0, "deviation of scores": pytest.approx(1.0)}
    assert familiarity.summarise(figures) == found | scores
    assert familiarity.summarise([one._replace(scores=[]) for one in figures]) == found


def test_a_restart_that_misses_eps_counts_as_one_of_all_steps():
    picture = picture_with([1e-3, 1e-3, 2e-3], steps=30)
    assert familiarity.measure(picture, 100).steps == 30
    for row in (picture.rows[1], picture.rows[3]):
        row["status"] = "missed eps"
    assert familiarity.measure(picture, 100).steps == 100


@pytest.mark.parametrize(
    ("without", "told"),
    [
        ({"largest steps"}, "less real"),  # as in the files of earlier versions
        ({"mean score", "deviation of scores"}, "38 steps"),  # as without a discriminator
    ],
)
def test_what_was_not_measured_of_own_pictures_is_not_compared(without, told):
    own = {"4": {name: value for name, value in OWN["4"].items() if name not in without}}
    found = familiarity.difference(picture_with([1e-3], -3.7, steps=38), Settings(), own)
    assert told in found and ";" not in found


def test_the_command_and_the_page_say_so(tmp_path, monkeypatch, caplog):
    write_picture(tmp_path / "in" / "a.png")
    scored = []  # grows with each image

    def score(images):
        scored.extend(images)
        return [-9.0] * len(images)

    monkeypatch.setattr(run.familiarity, "read", lambda settings: OWN)
    monkeypatch.setattr(run.familiarity, "make_score", lambda generator, keep, devices: score)
    settings = dataclasses.replace(
        RECIPES["original"], generator="experiment_helpers:linear", steps=1, restarts=2
    )
    results = pulse_jax.upsample(tmp_path / "in", tmp_path / "out", settings)
    told = "unlike what experiment_helpers:linear knows: the discriminator takes its results"
    assert told in results.pictures[0].unlike
    assert f"a.png is {told}" in caplog.text
    page = (tmp_path / "out" / "index.html").read_text()
    assert f'<p class="wide missed">This picture is {told}' in page
    # A later run finds the scores.
    assert len(scored) == 2
    again = pulse_jax.upsample(tmp_path / "in", tmp_path / "out", results.settings)
    assert len(scored) == 2 and again.pictures[0].unlike == results.pictures[0].unlike
    write_picture(tmp_path / "in" / "b.png", seed=1)
    pulse_jax.upsample(tmp_path / "in", tmp_path / "out", results.settings)
    assert len(scored) == 4
    # If they are damaged, the images are scored once more.
    (tmp_path / "out" / "a" / familiarity.SCORES).write_text("{")
    again = pulse_jax.upsample(tmp_path / "in", tmp_path / "out", results.settings)
    assert len(scored) == 6 and not again.failures and all(p.unlike for p in again.pictures)
    # So are all by another discriminator.
    monkeypatch.setattr(checkpoint, "entry_digest", lambda generator, network: "another")
    pulse_jax.upsample(tmp_path / "in", tmp_path / "out", results.settings)
    assert len(scored) == 10


@pytest.mark.slow
def test_a_photograph_is_unlike_what_decoder64_knows_and_a_drawn_face_is_not():
    astronaut = pytest.importorskip("skimage.data").astronaut()
    # Where pulse_jax_align finds the face, so that no detector is needed.
    points = np.array([[203.0, 101], [246, 103], [224, 128], [201, 139], [244, 141]])
    face = align.cut_out(astronaut, align.face_quad(points), 64).astype(np.float32) / 255
    photograph = images.resample(face, 8, 8, "bicubic").clip(0, 1)
    drawn = images.load_image(checkpoint.find("decoder64") / "examples" / "face_01.png")
    settings = Settings(generator="decoder64", seeds=(0,))
    results = pulse_jax.upsample([photograph, drawn], None, settings)
    told, not_told = (picture.unlike for picture in results.pictures)
    assert "steps or more" in told and not not_told
