"""The two ablations: rows of every restart, the table, and that a second run takes them up."""

import numpy as np
import pytest
from experiment_helpers import ROOT, read_table, run_experiment, save_small_generator
from helpers import DATA

from pulse_jax import images

pytestmark = pytest.mark.slow
OWN = "my_parts shell"  # as its cells are called
TINY = "--generator=small", "--inputs=2", "--restarts=2", "--steps=3", "--factor=4"


@pytest.mark.parametrize(
    ("script", "names", "told"),
    [
        ("ablate_projection", ("--variants", "rescale", "none"), "--variants=cube: none of"),
        ("latent_space", ("--spaces", "w", "z tiled"), "--spaces=cube is none of"),
    ],
)
def test_rows_and_table(script, names, told, tmp_path):
    flag, first, second = names
    save_small_generator(tmp_path / "small")
    arguments = *TINY, f"{flag}={first},{second}", "--workdir=a"
    result = run_experiment(script, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    cells = tmp_path / "a" / "cells"
    rows = read_table(cells / f"{second}.csv")
    assert [(row["input"], row["restart"]) for row in rows] == [
        *map(tuple, ["00", "01", "10", "11"])
    ]
    with np.load(cells / f"{second}.npz") as found:
        np.testing.assert_allclose([float(r["l2"]) for r in rows], found["l2"].ravel(), rtol=1e-6)
        a, b = found["images"][1]
    rms = np.sqrt(np.mean((a - b) ** 2))
    assert float(rows[3]["diversity"]) == pytest.approx(rms, rel=1e-5)
    table = read_table(tmp_path / "a" / "table.csv")
    assert [line[""] for line in table] == [first, second]
    mean = np.mean([float(row["realism"]) for row in rows])
    assert float(table[1]["realism"].split(" ")[0]) == pytest.approx(mean, rel=0.01)
    assert table[0][f"realism − {first}"] == "0 [0, 0]"
    before = [float(row["realism"]) for row in read_table(cells / f"{first}.csv")]
    lead = mean - np.mean(before)
    assert float(table[1][f"realism − {first}"].split(" ")[0]) == pytest.approx(lead, rel=0.01)
    for name in ("pictures.png", *["ablation.png"] * (script == "ablate_projection")):
        assert (tmp_path / "a" / name).stat().st_size > 10_000

    # A cell that is gone is computed again, from the saved settings, to the same bytes.
    before = {path.name: path.read_bytes() for path in cells.glob("*.csv")}
    (cells / f"{second}.npz").unlink()
    (cells / f"{second}.csv").unlink()
    config = tmp_path / "a" / "config.json"
    again = run_experiment(script, f"--config={config}", "--workdir=a", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_bytes() for path in cells.glob("*.csv")} == before

    wrong = run_experiment(script, *TINY, f"{flag}=cube", "--workdir=b", cwd=tmp_path)
    assert wrong.returncode == 1 and told in wrong.stderr
    other = run_experiment(script, *arguments, "--seed=7", cwd=tmp_path)
    assert other.returncode == 1 and "seed was 1000, not 7" in other.stderr


def test_a_generator_without_a_discriminator_has_no_scores(tmp_path):
    flow = f"--generator={DATA / 'modern' / 'flow'}"
    options = *TINY[1:], flow, "--variants=rescale,none", "--seeds=0,1", "--workdir=a"
    result = run_experiment("ablate_projection", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for table in ("table.csv", "by_seed.csv"):
        text = (tmp_path / "a" / table).read_text()
        assert "rescale" in text and "realism" not in text


@pytest.mark.parametrize("vary", ["search", "pictures"])
def test_seeds(vary, tmp_path):
    """Each seed's mean, their mean, and that only one thing varies."""
    save_small_generator(tmp_path / "small")
    variants = "--variants=rescale,none"
    arguments = *TINY, variants, "--seeds=0:2", f"--vary={vary}", "--workdir=a"
    result = run_experiment("ablate_projection", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = read_table(tmp_path / "a" / "by_seed.csv")
    assert {line["seeds vary"] for line in lines} == {vary} and len(lines) == 6
    for line in lines:
        name, quantity = line[""], line["quantity"]
        if quantity != "realism":
            continue
        means = []
        for seed in (0, 1):
            rows = read_table(tmp_path / "a" / "cells" / f"{name}, seed {seed}.csv")
            means.append(np.mean([float(row["realism"]) for row in rows]))
            assert float(line[f"seed {seed}"]) == pytest.approx(means[-1])
        assert float(line["mean over seeds"].split(" ")[0]) == pytest.approx(np.mean(means), 0.01)
        assert means[0] != means[1]
    cells = [np.load(tmp_path / "a" / "cells" / f"none, seed {seed}.npz") for seed in (0, 1)]
    same = {key: np.array_equal(*(cell[key] for cell in cells)) for key in ("inputs", "start")}
    assert same == {"inputs": vary == "search", "start": vary == "pictures"}
    rows = len(read_table(tmp_path / "a" / "cells" / "none, seed 0.csv"))
    assert rows == 4 and (tmp_path / "a" / "by_seed.png").stat().st_size > 10_000

    # The first seed's cells are those of a run with that seed alone, where nothing else is varied.
    alone = *TINY, variants, "--seeds=1", f"--vary={vary}", "--workdir=b"
    assert run_experiment("ablate_projection", *alone, cwd=tmp_path).returncode == 0
    one, other = (tmp_path / x / "cells" / "none, seed 1.csv" for x in "ab")
    assert one.read_bytes() == other.read_bytes()

    given = "--seeds=0:2", "--vary=pictures", "--images=folder", "--workdir=c"
    fixed = run_experiment("ablate_projection", *TINY, *given, cwd=tmp_path)
    assert fixed.returncode == 1 and "--images=folder don't vary with a seed" in fixed.stderr
    bad = run_experiment("ablate_projection", *TINY, "--seeds=x", "--workdir=c", cwd=tmp_path)
    assert bad.returncode == 1 and ": --seeds=x is not 1 to 1000000 numbers" in bad.stderr


def test_a_scheme_in_a_file_is_compared_with_rescale_over_five_seeds(tmp_path):
    """That of docs/plug_ins.md, in one command; it does what rescale does, so the figures agree."""
    save_small_generator(tmp_path / "small")
    page = (ROOT / "docs" / "plug_ins.md").read_text()
    (tmp_path / "my_parts.py").write_text(page.split("```python\n")[1].split("```")[0])
    arguments = "--variants=rescale,my_parts:shell", "--seeds=0:5", "--workdir=a"
    result = run_experiment("ablate_projection", *TINY, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for seed in range(5):
        cells = tmp_path / "a" / "cells"
        pair = (np.load(cells / f"{name}, seed {seed}.npz") for name in ("rescale", OWN))
        one, other = (cell["l2"] for cell in pair)
        np.testing.assert_allclose(one, other, rtol=1e-3)
    names = [line[""] for line in read_table(tmp_path / "a" / "by_seed.csv")]
    assert names == 3 * ["rescale"] + 3 * ["my_parts:shell"]

    # Of another source, what is there isn't shown as its figures.
    path = tmp_path / "my_parts.py"
    path.write_text(path.read_text().replace("old / new", "new / old"))
    again = run_experiment("ablate_projection", *TINY, *arguments, cwd=tmp_path)
    assert again.returncode == 1 and "SHA-256 of plug-ins was" in again.stderr


def test_a_damaged_image_is_told_once_for_all_seeds(tmp_path):
    save_small_generator(tmp_path / "small")
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.png").write_bytes(b"")
    for name in "bc":
        images.save_image(tmp_path / "faces" / f"{name}.png", np.full((8, 8, 3), 0.5))
    given = "--images=faces", "--variants=none", "--seeds=0:2", "--workdir=a"
    result = run_experiment("ablate_projection", *TINY, *given, cwd=tmp_path)
    assert result.returncode == 1 and (tmp_path / "a" / "by_seed.csv").is_file()
    assert result.stderr.count("a.png: can't be read") == 1, result.stderr
