"""What the trainers of StyleGANs share: flags, the optimiser and the export."""

from common import training

import jax
import optax
from absl import flags

from pulse_jax.generators import fit_latents

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(training)
flags.DEFINE_list(
    "channels",
    "128,128,96,64,32",
    "The layers have this many channels at side 4, 8, …, resolution.",
)
flags.DEFINE_integer(
    "latent_size", 128, "A style vector w has this many coordinates.", lower_bound=1
)
flags.DEFINE_integer("mapping_layers", 4, "This many dense layers lead from z to w.", lower_bound=1)
flags.DEFINE_integer(
    "r1_interval", 16, "The gradient penalty is computed once in this many steps.", 1
)


def make_optimizer(b1, mapping_rate):
    """Adam for a learning rate of 1. Noise strengths and the mapping have other rates."""

    def part(path, _):
        names = [entry.key for entry in path]
        if names[-1] == "noise_strength":
            return "noise"
        return "mapping" if names[1] == "mapping" else "rest"

    rates = {"noise": FLAGS.noise_rate, "mapping": mapping_rate, "rest": 1.0}
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=0.99),
        optax.partition(
            {name: optax.scale(rate) for name, rate in rates.items()},
            lambda params: jax.tree_util.tree_map_with_path(part, params),
        ),
    )


def random_noise(generator, key, count):
    keys = jax.random.split(key, len(generator.noise_shapes))
    shapes = [(count, *shape) for shape in generator.noise_shapes]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def export(folder, final, generator, **others):
    """Save networks, each (module, params), for the search. The generator gets a latent fit.

    Before the end, it is fitted to fewer samples.
    """
    module, params = generator
    fit = fit_latents(module, params, jax.random.key(0), 1_000_000 if final else 20_000)
    training.export(folder, generator=(module, params | {"latent_fit": fit}), **others)
