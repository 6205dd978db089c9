"""A search of a diffusion model's noise with diffusers, for `diffusion_costs.py` to measure.

It is written as a PyTorch programmer would, with diffusers' network and scheduler, on the CPU. No
weight has a gradient.
"""

import math

import diffusers
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


def pipeline(config):
    """A DDPM pipeline with random weights."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**config)
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    return diffusers.DDIMPipeline(unet, scheduler)


class Search:
    """Gradient descent on the sphere: z ← √d (z − rate · gradient) / ‖…‖.

    The loss is 100 times the mean squared error of the image, averaged over squares of `factor`².
    With `recompute`, each call of the network is computed anew for its gradient, so that memory
    doesn't grow with the steps.
    """

    def __init__(self, found, steps, noise, target, factor, rate, recompute):
        self.unet = found.unet.eval().requires_grad_(False)
        self.scheduler = found.scheduler.from_config(found.scheduler.config)
        self.scheduler.set_timesteps(steps)
        self.noise = torch.tensor(noise).permute(0, 3, 1, 2)
        self.target = torch.tensor(target).permute(0, 3, 1, 2)
        self.factor, self.rate, self.recompute = factor, rate, recompute

    def images(self, noise):
        x = noise
        for t in self.scheduler.timesteps:
            if self.recompute:
                output = checkpoint(self.unet, x, t, use_reentrant=False).sample
            else:
                output = self.unet(x, t).sample
            x = self.scheduler.step(output, t, x).prev_sample
        return (x + 1) / 2

    def step(self):
        """Do a step. Returns the errors (N,) before it."""
        noise = self.noise.clone().requires_grad_()
        small = F.avg_pool2d(self.images(noise), self.factor)
        l2 = ((small - self.target) ** 2).mean((1, 2, 3))
        (100 * l2).sum().backward()
        moved = noise.detach() - self.rate * noise.grad
        norm = moved.flatten(1).norm(dim=1)[:, None, None, None]
        self.noise = math.sqrt(moved[0].numel()) * moved / norm
        return l2.detach().numpy()
