"""What do generators of unlike kinds make of the same small pictures?

    python experiments/side_by_side.py --generators=decoder64,runs/flow/generator --preset=full

Drawn faces are downscaled to 8×8 pixels, and each generator is searched as by the command without
other flags, for images of its own side. Results are then averaged to the least of these sides, and
compared there.

- success is the share of restarts within --eps (Wilson's interval, an input is one trial).
- steps is the median number of steps of the search. A step evaluates the image and its gradient.
- sharpness is the mean energy of the Laplacian of results, over that of the true faces.
- Fréchet is the distance of all results from as many other drawn faces, in the features of a
  reader of attributes. That of the true faces is given, too.
- diversity is the root mean square difference of two results of one input.
- For glasses, facial hair and hair, the share of results in which the reader sees the kind that it
  sees in the true face.

Writes table.csv, rows of all restarts in cells/, and pictures.png, with the input, the true face,
and the first results of each generator. --preset=quick takes four faces with four restarts and a
reader that has hardly learnt; full 32 with eight.
"""

from functools import partial

from common import harness
from common.faces import album
from common.metrics import (
    as_saved,
    bracketed,
    diversity,
    frechet,
    laplacian_energy,
    mean_interval,
    mean_share,
)
from common.reader import batches, by_attribute, features, read_images, train

import jax
import numpy as np
from absl import flags

import pulse_jax
from pulse_jax import images

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "generators", [pulse_jax.Settings.generator], "These are compared: names, or paths of folders."
)
flags.DEFINE_integer(
    "train_steps",
    None,
    "The reader is trained in this many steps of 32 faces. Without it, the preset chooses.",
    1,
)
flags.DEFINE_integer("shown", 8, "pictures.png shows this many faces.", 1)
PRESETS = {
    "quick": {"inputs": 4, "restarts": 4, "train_steps": 100},
    "full": {"inputs": 32, "restarts": 8, "train_steps": 2000},
}
SMALL, SHOWN = 8, 64  # the sides of the inputs, and of all that pictures.png shows
READ = "glasses", "facial_hair", "hair_style"


def main(folder):
    harness.check_not_empty("generators")
    if FLAGS.restarts < 2:
        raise ValueError(f"--restarts={FLAGS.restarts}: diversity takes at least 2")
    digests = {name: str(harness.fingerprint(name, "--generators")) for name in FLAGS.generators}
    sides = {name: pulse_jax.load(name)[0].resolution for name in FLAGS.generators}
    for name, own in sides.items():
        if own % min(sides.values()) or own % SMALL:
            raise ValueError(f"--generators={name}: a side of {own} doesn't go with the others")
    side, large = min(sides.values()), harness.held_out(max(sides.values()))
    bicubic = pulse_jax.OPERATORS["bicubic"](large.shape[1] // SMALL)
    inputs, truth = as_saved(harness.degraded(bicubic, large)), averaged(large, side)

    found = {
        name: folder.arrays(f"search {i} {digests[name][:8]}", partial(search, name, inputs, side))
        for i, name in enumerate(sides)
    }
    reader = folder.arrays("reader", partial(train, batches(side), numbered(0), FLAGS.train_steps))
    others, more = (features(reader, drawn(k, side)) for k in (1, 2))
    rows = [
        {"generator": name, "side": sides[name], **line(reader, arrays, truth, others)}
        for name, arrays in found.items()
    ]
    faces = dict.fromkeys(rows[0], "") | {
        "generator": "drawn faces",
        "Fréchet": frechet(more, others),
    }
    folder.table("table.csv", [*rows, faces])
    folder.picture("pictures.png", list(picture_rows(inputs, truth, found.values())))


def numbered(i):
    """The key of one of the experiment's own draws."""
    return jax.random.fold_in(jax.random.key(FLAGS.seed), i)


def drawn(i, side):
    """As many drawn faces as there are results of a generator."""
    keys = jax.random.split(numbered(i), FLAGS.inputs * FLAGS.restarts)
    return as_saved(album(keys, side))


def averaged(batch, side):
    """Images (N, R, R, C), averaged to a side."""
    return harness.degraded(pulse_jax.operators.area(batch.shape[1] // side), batch)


def search(name, inputs, side):
    """Results (N, K, side, side, 3), and for each its l2 and the number of its steps."""
    settings = pulse_jax.Settings(
        generator=name, restarts=FLAGS.restarts, eps=FLAGS.eps, seeds=(FLAGS.seed,)
    )
    results = pulse_jax.upsample(list(inputs), None, settings)
    for failure in results.failures:
        raise ValueError(f"--generators={name}: {failure}")
    rows = [row for picture in results.pictures for _, row in sorted(picture.rows.items())]
    shape = len(inputs), FLAGS.restarts
    batches = [
        averaged(np.stack([image for _, image in sorted(picture.images().items())]), side)
        for picture in results.pictures
    ]
    column = {key: np.reshape([row[key] for row in rows], shape) for key in ("l2_saved", "steps")}
    return {"images": np.stack(batches)} | column


def line(reader, found, truth, others):
    """What the table says of a generator."""
    batch = found["images"].reshape(-1, *truth.shape[1:])
    sharpness = (
        laplacian_energy(batch).reshape(found["l2_saved"].shape) / laplacian_energy(truth).mean()
    )
    seen, true = (by_attribute(read_images(reader, x)) for x in (batch, truth))
    same = {
        name: seen[name].argmax(1).reshape(found["steps"].shape) == true[name].argmax(1)[:, None]
        for name in READ
    }
    return {
        "success": bracketed(*mean_share((found["l2_saved"] <= FLAGS.eps).mean(1))),
        "steps": float(np.median(found["steps"])),
        "sharpness": bracketed(*mean_interval(sharpness.mean(1))),
        "Fréchet": frechet(features(reader, batch), others),
        "diversity": bracketed(*mean_interval([diversity(x) for x in found["images"]])),
        **{name.replace("_", " "): bracketed(*mean_share(x.mean(1))) for name, x in same.items()},
    }


def picture_rows(inputs, truth, found):
    """The input, the true face, and a few results of each generator, all enlarged to `SHOWN`."""
    few = max(2, 8 // len(found))
    for i in range(min(FLAGS.shown, len(inputs))):
        results = (x for arrays in found for x in arrays["images"][i, :few])
        row = inputs[i], truth[i], *results
        yield [images.resize_nearest(x, max(1, SHOWN // x.shape[0])) for x in row]


if __name__ == "__main__":
    harness.run(main, PRESETS)
