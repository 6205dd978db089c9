"""What the trainers of StyleGANs share: flags, adversarial loss, optimiser and export."""

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


ADVERSARIAL = "generator_loss", "discriminator_loss", "real_logit", "fake_logit"


def adversarial_loss(discriminate, params, real, fake, with_r1):
    """The losses of both networks in one sum, its metrics, and the logits of the real images.

    This is the non-saturating logistic loss (Goodfellow et al. 2014), in which each network has the
    gradient of its own loss alone. `discriminate(params, images)` takes images in [−1, 1]. R1 is
    E|∇D(x)|² on real images (Mescheder et al. 2018), and stands for the steps without it. Its
    weight is half of --r1_gamma · R² / batch, the rule of stylegan2-ada.
    """
    frozen = jax.lax.stop_gradient
    fooled = discriminate(frozen(params), fake)
    real_logits = discriminate(params, real)
    fake_logits = discriminate(params, frozen(fake))
    metrics = {
        "generator_loss": jax.nn.softplus(-fooled).mean(),
        "discriminator_loss": jax.nn.softplus(-real_logits).mean()
        + jax.nn.softplus(fake_logits).mean(),
        "real_logit": real_logits.mean(),
        "fake_logit": fake_logits.mean(),
    }
    loss = metrics["generator_loss"] + metrics["discriminator_loss"]
    if with_r1:
        gradient = jax.grad(lambda images: discriminate(params, images).sum())(real)
        metrics["r1"] = (gradient**2).sum(axis=(1, 2, 3)).mean()
        gamma = FLAGS.r1_gamma * FLAGS.resolution**2 / FLAGS.batch_size
        loss += gamma / 2 * FLAGS.r1_interval * metrics["r1"]
    return loss, metrics, real_logits


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
