"""How well can a small network read the attributes of drawn faces off their images?

    python experiments/train_reader.py --output=runs/reader.npz

trains one (`common/reader.py`) and tells how well it reads each attribute on faces that it hasn't
seen. The measures are R² and, for kinds, the accuracy, which is compared with that of the best
guess without looking. A reader that the file holds already isn't trained again.

--add_to=checkpoints/faces64 adds it to a generator's folder. The command's posterior samples are
then counted by their attributes. If it can't be added to one of several, a line says why, and it is
added to the others.
"""

from common import door
from common.reader import batches, compact, network, scores, stored

import jax
from absl import flags

from pulse_jax.files import expanded
from pulse_jax.generators import checkpoint

FLAGS = flags.FLAGS
flags.DEFINE_string("output", "runs/reader.npz", "The reader is kept in this file.")
flags.DEFINE_list("add_to", [], "The reader is added to the generators in these folders.")
flags.DEFINE_integer("resolution", 64, "The faces have this side.", **door.SIDE)
flags.DEFINE_integer("train_steps", 4000, "The reader learns from 32 faces in each step.", 1)
flags.DEFINE_integer(
    "seed", 0, "The faces and the first weights depend on this number.", **door.SEED
)


def main():
    key = jax.random.key(FLAGS.seed)
    draw = batches(FLAGS.resolution)
    weights = stored(expanded(FLAGS.output, "--output"), draw, key, FLAGS.train_steps)

    def add(folder):
        checkpoint.add(expanded(folder, "--add_to"), reader=(network(), compact(weights)))

    door.one_by_one(FLAGS.add_to, add)
    for row in scores(draw, weights, jax.random.fold_in(key, FLAGS.train_steps), 2048):
        print(", ".join(f"{k} {v:.3f}" if k != "attribute" else v for k, v in row.items()))
    return FLAGS.output


if __name__ == "__main__":
    door.run(main)
