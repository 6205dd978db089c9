"""How well does a generator serve the search? The figures of its model card.

    python experiments/evaluate_generator.py --generator=faces64 --preset=full
    python experiments/evaluate_generator.py --generator=galaxies64 --images=FOLDER --eps=1e-6

Held-out images are made small and searched, with several restarts each, by one of the command's
recipes. These are fast, which is L-BFGS from images of one style and stops at eps, and original.

- success is the share of restarts whose image, as saved, downscales to the input within an l2 of
  1e-3 and 2e-3. It is also given within 5% of the variance of the input's pixels, which says more
  if most of a picture is dark. Restarts of one input aren't independent, so the interval (Wilson,
  95%) counts an input as one trial.
- sharpness is the mean energy of the Laplacian of results, over that of the true images.
- diversity is the root mean square difference of two results of one input, with the same noise
  maps, so that it is due to the styles alone.
- score is the discriminator's, for results, for the true images, and for samples.

The attributes of drawn faces are known, and a small network (common/reader.py) reads them off the
results. This tells how often glasses and facial hair are kept or invented, and how far the skin
tone shifts, for faces of dark, medium and light skin, with and without glasses and facial hair.
"read off the truth" is what the reader makes of the true faces: no result can be expected to do
better. The skin tone is 0 for the lightest and 1 for the darkest, and its shift is what is read off
the results less what is read off the truth.

With the bundled faces64 and --preset=full, 99.6% of the restarts meet 1e-3, results are as sharp as
the truth (0.96), and glasses are kept on two faces of three and invented on half of the others.

What an input leaves open should differ between its restarts. variety.csv tells whether glasses,
facial hair, hair style and expression do, and whether they are left open: each is changed alone on
the true faces, and the share is counted of those that still downscale to their inputs within --eps.
Glasses and facial hair come or go, another style is the next one, and a number moves by half its
range.

No search finds what a generator never makes. So quality.csv compares samples of the network's own,
which come out of its mapping network, with as many drawn faces: by the Fréchet distance, precision
and recall in the features of the reader. These depend on the reader, and for one --seed that is the
same for all generators of 64 pixels and more. Its last row has other drawn faces, which is what a
perfect generator would get.

Writes summary.csv, groups.csv, variety.csv, quality.csv, skin.png and pictures.png. --preset=quick
takes 8 images with 4 restarts and 3 minutes on two cores, and full 64 with 8 and 8 minutes.
"""

from functools import partial

from common import faces, harness
from common.metrics import (
    as_saved,
    bracketed,
    diversity,
    frechet,
    laplacian_energy,
    mean_interval,
    mean_share,
    paired,
    precision_recall,
    realism,
    render,
)
from common.reader import batches, by_attribute, features, read_images, train

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import images

FLAGS = flags.FLAGS
flags.DEFINE_enum("recipe", "fast", harness.SEARCHES, "The search has this recipe of the command.")
flags.DEFINE_float(
    "style_spread",
    None,
    "Layers share their styles but for this part. It takes the place of GEOCROSS.",
    0,
    1,
)
flags.DEFINE_float(
    "geocross",
    None,
    "GEOCROSS has this weight. Without it, it is 0.05, or 0 with --style_spread.",
    0,
)
flags.DEFINE_integer(
    "train_steps",
    None,
    "The reader is trained in this many steps of 32 faces. Without it, the preset chooses.",
    1,
)
flags.DEFINE_integer(
    "samples",
    None,
    "So many samples are compared with as many drawn faces. Without it, the preset chooses.",
    4,
)
flags.DEFINE_integer("shown", 16, "pictures.png shows this many images.", 1)
PRESETS = {
    "quick": {"inputs": 8, "restarts": 4, "train_steps": 400, "samples": 32},
    "full": {"inputs": 64, "restarts": 8, "train_steps": 2000, "samples": 512},
}
BOUNDS = {"l2 ≤ 0.001": 1e-3, "l2 ≤ 0.002": 2e-3}
OF_VARIANCE = "l2 ≤ 5% of the variance"


def main(folder):
    if FLAGS.restarts < 2:
        raise ValueError(f"--restarts={FLAGS.restarts}: diversity takes at least 2")
    recipe = pulse_jax.RECIPES[FLAGS.recipe]
    spread = FLAGS.style_spread
    generator, params = pulse_jax.load(
        FLAGS.generator,
        equal_start=recipe.equal_start and spread is None,
        style_spread=spread,
    )
    operator = pulse_jax.OPERATORS["bicubic"](FLAGS.factor)
    truth = harness.held_out(generator.resolution)
    inputs = as_saved(harness.degraded(operator, truth))
    found = folder.arrays("search", partial(search, generator, params, operator, inputs))

    rows = folder.rows("restarts", partial(measure, found, truth, inputs))
    others = folder.rows("others", partial(measure_others, generator, params, truth))
    folder.table("summary.csv", summarise(rows, others, found))
    if FLAGS.images is None:
        draw = batches(generator.resolution)
        reader_key = jax.random.fold_in(jax.random.key(FLAGS.seed), 2)
        reader = folder.arrays("reader", partial(train, draw, reader_key, FLAGS.train_steps))
        readings = folder.rows("readings", partial(read, reader, truth, found))
        folder.table("groups.csv", by_group(readings))
        changed = folder.rows("changed", partial(change, operator, generator.resolution, inputs))
        folder.table("variety.csv", list(by_attribute_left_open(readings, changed)))
        folder.figure("skin.png", draw_skin(readings))
        quality = folder.rows("quality", partial(compare_samples, reader, generator.resolution))
        folder.table("quality.csv", quality)
    folder.picture("pictures.png", list(picture_rows(truth, inputs, found["images"])))


def search(generator, params, operator, inputs):
    """Results (N, K, R, R, 3), their l2, and their diversity (N,)."""
    optimizer = harness.optimizer_of(FLAGS.recipe)
    geocross = FLAGS.geocross
    if geocross is None:
        geocross = 0.05 if FLAGS.style_spread is None else 0.0
    built = harness.build(generator, operator, optimizer, geocross)
    stop = pulse_jax.RECIPES[FLAGS.recipe].stop_at_eps
    found = harness.search_all(generator, params, operator, built, inputs, stop_at_eps=stop)
    differences = [diversity(x) for x in harness.with_equal_noise(generator, params, found)]
    met = np.asarray(found.info.l2) <= FLAGS.eps
    steps = np.where(met.any(axis=1), met.argmax(axis=1), FLAGS.steps).reshape(found.l2.shape)
    return {"images": found.images, "l2": found.l2, "diversity": differences, "steps": steps}


def measure(found, truth, inputs):
    """A row for each restart."""
    energy = laplacian_energy(truth).mean()
    score = realism(FLAGS.generator)
    for i, batch in enumerate(found["images"]):
        sharpness, scores = laplacian_energy(batch) / energy, score(batch)
        for k, l2 in enumerate(found["l2"][i]):
            yield {
                "input": i,
                "restart": k + 1,
                "l2": float(l2),
                "l2 / variance": float(l2 / inputs[i].var()),
                "sharpness": float(sharpness[k]),
                "score": float(scores[k]),
                "steps": int(found["steps"][i, k]),
            }


def measure_others(generator, params, truth):
    """The scores of the true images and of as many samples."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(FLAGS.seed), 4), len(truth))
    samples = render(generator, params, *jax.vmap(generator.sample)(keys))
    score = realism(FLAGS.generator)
    for name, batch in (("truth", truth), ("samples", samples)):
        for i, value in enumerate(score(batch)):
            yield {"of": name, "input": i, "score": float(value)}


def summarise(rows, others, found):
    """Lines of a quantity, its mean, and the interval that holds it with 95%."""
    shape = found["l2"].shape

    def column(name):
        return np.array([row[name] for row in rows]).reshape(shape)

    shares = {name: column("l2") <= bound for name, bound in BOUNDS.items()}
    shares[OF_VARIANCE] = column("l2 / variance") <= 0.05
    lines = []
    for name, met in shares.items():
        mean, low, high = mean_share(met.mean(axis=1))
        lines.append({"quantity": name, "mean": mean, "low": low, "high": high})
    means = {
        "sharpness": column("sharpness").mean(axis=1),
        "diversity": found["diversity"],
        "score": column("score").mean(axis=1),
        "score of the truth": [row["score"] for row in others if row["of"] == "truth"],
        "score of samples": [row["score"] for row in others if row["of"] == "samples"],
    }
    for name, values in means.items():
        mean, low, high = map(float, mean_interval(values))
        lines.append({"quantity": name, "mean": mean, "low": low, "high": high})
    median = float(np.median(column("steps")))
    return [*lines, {"quantity": "median steps to eps", "mean": median, "low": "", "high": ""}]


# --- Attributes of faces. ---


def read(weights, truth, found):
    """A row for each restart, and for each true face one with restart 0."""
    attributes = jax.device_get(true_attributes(len(truth)))
    for i, batch in enumerate(found["images"]):
        pictures = np.stack([truth[i], *batch])
        readings = by_attribute(read_images(weights, pictures))
        for k in range(len(batch) + 1):
            row = {"input": i, "restart": k, "met": int(k == 0 or found["l2"][i, k - 1] <= 1e-3)}
            row |= {"skin": float(attributes.skin[i])}
            row |= {"skin read": float(readings["skin"][k, 0] + 1) / 2}
            for name in ("glasses", "facial_hair", "hair_style"):
                kinds = list(dict.fromkeys(faces.KINDS[name]))
                row[name] = kinds[int(getattr(attributes, name)[i])]
                row[f"{name} read"] = kinds[int(readings[name][k].argmax())]
            for name in ("smile", "mouth_open"):
                row[f"{name} read"] = float(readings[name][k, 0])
            yield row


def true_attributes(count):
    """Those of the faces that `harness.held_out` draws, leaves (N,)."""
    keys = jax.random.split(jax.random.key(FLAGS.seed), count)
    return jax.vmap(faces.sample_attributes)(keys)


def change(operator, resolution, inputs):
    """A row for each true face and attribute: its l2 once that is changed alone."""
    draw = jax.jit(lambda attributes: operator(faces.draw(attributes, resolution)))
    attributes = true_attributes(len(inputs))
    for i, small in enumerate(inputs):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], attributes)
        for name in SMALL:
            found = draw(own._replace(**{name: other(name, getattr(own, name))}))
            yield {"input": i, "attribute": name, "l2": float(np.mean((found - small) ** 2))}


def other(name, value):
    """Another value of an attribute."""
    if name in OPTIONAL:
        return (value == 0).astype(value.dtype)  # none is 0
    if name in faces.KINDS:
        return (value + 1) % len(faces.KINDS[name])
    low, high = faces.RANGES[name]
    return low + (value - low + (high - low) / 2) % (high - low)


OPTIONAL = "glasses", "facial_hair"
SMALL = *OPTIONAL, "hair_style", "smile", "mouth_open"  # so a small image may leave them open
GROUPS = {
    "all": lambda row: True,
    "dark skin": lambda row: row["skin"] >= 2 / 3,
    "medium skin": lambda row: 1 / 3 <= row["skin"] < 2 / 3,
    "light skin": lambda row: row["skin"] < 1 / 3,
    "glasses": lambda row: row["glasses"] != "none",
    "no glasses": lambda row: row["glasses"] == "none",
    "facial hair": lambda row: row["facial_hair"] != "none",
    "no facial hair": lambda row: row["facial_hair"] == "none",
}


def by_group(readings):
    """A line for each group of true faces: means over inputs with 95% intervals."""
    lines = []
    for group, belongs in GROUPS.items():
        of_group = [row for row in readings if belongs(row)]
        results = [row for row in of_group if row["restart"] > 0]
        inputs = sorted({row["input"] for row in of_group})
        if not inputs:
            continue

        def by_input(value, rows, inputs=inputs):
            """Means over the restarts of each input."""
            return np.array([np.mean([value(r) for r in rows if r["input"] == i]) for i in inputs])

        truth = [row for row in of_group if row["restart"] == 0]
        met = by_input(lambda r: r["met"], results)
        success = bracketed(*mean_share(met))
        line = {"faces": group, "inputs": len(inputs), "success": success}
        skins = (by_input(lambda r: r["skin read"], rows) for rows in (results, truth))
        line["skin shift"] = bracketed(*paired(*skins))
        for name in OPTIONAL:

            def has(row, name=name):
                return row[f"{name} read"] != "none"

            shown = name.replace("_", " ")
            line[f"truly {shown}"] = f"{np.mean([r[name] != 'none' for r in results]):.3g}"
            line[f"{shown} in results"] = bracketed(*mean_share(by_input(has, results)))
            line[f"{shown} read off the truth"] = f"{np.mean([has(r) for r in truth]):.3g}"
        lines.append(line)
    return lines


def by_attribute_left_open(readings, changed):
    """A line for each attribute that a small image hardly tells: does it vary between restarts?

    For kinds, it has the share of inputs whose restarts differ (Wilson's interval). For
    expressions, it has the standard deviation within an input, over that between the true faces,
    both as they are read. For all, it has the share of true faces that still have their inputs when
    the attribute is changed.
    """
    inputs = sorted({row["input"] for row in readings})

    def column(name, restarts):
        """(N, restarts)"""
        values = [[r[f"{name} read"] for r in readings if r["input"] == i] for i in inputs]
        return np.array(values)[:, restarts]

    results, truth = slice(1, None), slice(0, 1)
    for name in SMALL:
        within = [row["l2"] <= FLAGS.eps for row in changed if row["attribute"] == name]
        line = {
            "attribute": name.replace("_", " "),
            "left open": bracketed(*mean_share(np.array(within))),
            "inputs whose restarts differ": "",
            "spread": "",
        }
        values = column(name, results)
        if name in faces.KINDS:
            values = values != "none" if name in OPTIONAL else values
            share = mean_share((values != values[:, :1]).any(axis=1))
            yield line | {"inputs whose restarts differ": bracketed(*share)}
        else:
            spread = values.std(axis=1, ddof=1) / column(name, truth).std(ddof=1)
            yield line | {"spread": bracketed(*mean_interval(spread))}


def compare_samples(weights, resolution):
    """Rows of the generator's own samples and of as many drawn faces, each against other faces."""
    generator, params = pulse_jax.load(
        FLAGS.generator, space="z", equal_start=True, zero_noise_layers=()
    )
    own = jax.random.fold_in(jax.random.key(FLAGS.seed), 5)  # no face is among the held-out ones
    keys = jax.random.split(own, (3, FLAGS.samples))
    true = features(weights, faces.album(keys[0], resolution))
    made = render(generator, params, *jax.vmap(generator.sample)(keys[1]))
    for name, batch in (("samples", made), ("drawn faces", faces.album(keys[2], resolution))):
        found = features(weights, batch)
        precision, recall = precision_recall(true, found)
        row = {"images": name, "Fréchet distance": float(frechet(true, found))}
        yield row | {"precision": precision, "recall": recall}


def draw_skin(readings):
    figure, axes = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
    for wanted, colour, label in ((0, "black", "read off the truth"), (1, "C2", "off results")):
        rows = [row for row in readings if bool(row["restart"]) == bool(wanted)]
        points = [[row["skin"] for row in rows], [row["skin read"] for row in rows]]
        axes.plot(*points, ".", color=colour, ms=5 - 2 * wanted, label=label, zorder=2 - wanted)
    axes.axline((0, 0), (1, 1), color="0.6", lw=1, zorder=0)
    axes.set(xlabel="skin tone of the true face, light to dark", ylabel="skin tone that is read")
    axes.legend(fontsize="small")
    return figure


def picture_rows(truth, inputs, results):
    """The truth, the input, the results."""
    for image, small, batch in list(zip(truth, inputs, results, strict=True))[: FLAGS.shown]:
        yield [image, images.resize_nearest(small, FLAGS.factor), *batch]


if __name__ == "__main__":
    harness.run(main, PRESETS)
