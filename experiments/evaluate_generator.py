"""How well a generator of faces serves the search, on drawn faces that it has never seen.

    python experiments/evaluate_generator.py --generator=faces64 --output_dir=runs/evaluation

With the command's default settings, three figures that have to be read together:
- success: the share of restarts whose downscaled image is within eps of the input, in mean square;
- sharpness: the energy of the results' Laplacian, over that of the true faces;
- diversity: how much one input's restarts differ, as the mean over pairs of the root mean square
  difference, drawn with the same noise maps, so that it is due to the styles alone.

Writes evaluation.json and a sheet with a row per face: the face, the input, the restarts.
Two minutes on two cores.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from faces import face
from metrics import as_saved, diversity, laplacian_energy, with_noise_of_first

import pulse_jax
from pulse_jax import images

FLAGS = flags.FLAGS
flags.DEFINE_string("generator", "faces64", "A bundled generator, or a folder that holds one.")
flags.DEFINE_string("output_dir", "runs/evaluation", "Folder for the results.")
flags.DEFINE_integer("faces", 16, "Freshly drawn faces.", lower_bound=1)
flags.DEFINE_integer("restarts", 8, "Restarts for each.", lower_bound=2)
flags.DEFINE_integer("factor", 8, "Of downscaling.", lower_bound=2)
flags.DEFINE_float("eps", 1e-3, "Largest mean squared error of a success.")
flags.DEFINE_float("geocross", 0.05, "Weight of GEOCROSS beside 100 L2.")
flags.DEFINE_integer("steps", 100, "Steps of each restart.", lower_bound=1)
flags.DEFINE_integer("seed", 1000, "Of the faces and restarts; the trainer's must be another.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    generator, params = pulse_jax.load(FLAGS.generator)
    operator = pulse_jax.OPERATORS["bicubic"](FLAGS.factor)
    schedule = pulse_jax.SCHEDULES["linear1cycledrop"](0.4, FLAGS.steps)
    optimizer = pulse_jax.SCHEMES["rescale"](pulse_jax.OPTIMIZERS["adam"](schedule))
    loss = pulse_jax.Loss(geocross=FLAGS.geocross, eps=0.8 * FLAGS.eps)  # as the command aims
    search = pulse_jax.build(generator, operator, loss, optimizer)

    face_key, restart_key = jax.random.split(jax.random.key(FLAGS.seed))
    draw = jax.jit(jax.vmap(lambda key: face(key, generator.resolution)[0]))
    degrade = jax.jit(jax.vmap(operator))
    truth = as_saved(draw(jax.random.split(face_key, FLAGS.faces)))
    inputs = as_saved(degrade(truth))
    targets = inputs.repeat(FLAGS.restarts, axis=0)
    samples = jax.vmap(generator.sample)(jax.random.split(restart_key, len(targets)))
    state = jax.vmap(search.init)(*samples)
    state, info = pulse_jax.run(search, params, targets, state, FLAGS.steps, slots=FLAGS.restarts)

    synthesize = jax.jit(jax.vmap(generator.synthesize, (None, 0, 0)))
    latents = state.best.latents
    results = as_saved(synthesize(params, latents, state.frozen))
    l2 = np.mean((np.asarray(degrade(results)) - targets) ** 2, axis=(1, 2, 3))
    met = info.l2 <= FLAGS.eps

    alike = as_saved(synthesize(params, *with_noise_of_first(latents, state.frozen)))
    own = FLAGS.get_key_flags_for_module(sys.modules[__name__])
    figures = {
        "success": float((l2 <= FLAGS.eps).mean()),
        "sharpness": float(laplacian_energy(results).mean() / laplacian_energy(truth).mean()),
        "diversity": float(np.mean([diversity(group) for group in by_face(alike)])),
        "difference of two faces": float(diversity(truth)),
        "median l2": float(np.median(l2)),
        "median steps to eps": float(jnp.median(jnp.where(met.any(1), met.argmax(1), FLAGS.steps))),
        "settings": {flag.name: flag.value for flag in own},
    }
    output = Path(FLAGS.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    enlarged = [images.resize_nearest(lr, FLAGS.factor) for lr in inputs]
    rows = zip(truth, enlarged, by_face(results), strict=True)
    images.save_image(output / "evaluation.png", images.grid([[t, lr, *r] for t, lr, r in rows]))
    print(json.dumps(figures, indent=2))


def by_face(array):
    return array.reshape(FLAGS.faces, FLAGS.restarts, *array.shape[1:])


if __name__ == "__main__":
    app.run(main)
