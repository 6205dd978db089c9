"""PULSE's search in PyTorch, with a StyleGAN 1, for `benchmark.py` to measure ours against.

It is written as a PyTorch programmer would, with library functions, their default layouts and
threads, and one batch for all restarts, on PyTorch's default device. Kernels are scaled beforehand
and, for the fused layers, spread to 4×4. No weight has a gradient. Weights and latents are ours.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FUSED_FROM = 128  # the output side from which upsampling and convolution are one


class Synthesis(nn.Module):
    """The synthesis network with our parameters: styles (N, L, d), noise maps → (N, 3, R, R)."""

    def __init__(self, params):
        super().__init__()
        self.register_buffer("const", channels_first(params["const"]))
        layers = {k: v for k, v in params.items() if "x" in k}
        order = sorted(layers, key=lambda k: (int(k.split("x")[0]), k.endswith("_conv")))
        self.layers = nn.ModuleList(Layer(name, layers[name]) for name in order)
        rgb = params["to_rgb"]
        self.register_buffer("to_rgb", scaled_kernel(rgb["kernel"], 1.0))
        self.register_buffer("to_rgb_bias", tensor(rgb["bias"]))

    def forward(self, w, noise):
        x = self.const.expand(len(w), -1, -1, -1)
        for i, layer in enumerate(self.layers):
            x = layer(x, w[:, i], noise[i])
        return F.conv2d(x, self.to_rgb, self.to_rgb_bias)


class Layer(nn.Module):
    """Convolution (but for the first layer), noise, bias, leaky ReLU, instance norm, style."""

    def __init__(self, name, params):
        super().__init__()
        self.up = name.endswith("_conv_up")
        self.fused = self.up and int(name.split("x")[0]) >= FUSED_FROM
        kernel = None
        if "kernel" in params:
            kernel = scaled_kernel(params["kernel"], math.sqrt(2))
        if self.fused:
            kernel = F.pad(kernel.transpose(0, 1), (1, 1, 1, 1))
            kernel = (
                kernel[..., 1:, 1:]
                + kernel[..., :-1, 1:]
                + kernel[..., 1:, :-1]
                + kernel[..., :-1, :-1]
            )
        self.register_buffer("kernel", kernel)
        self.register_buffer("bias", tensor(params["bias"]))
        self.register_buffer("strength", tensor(params["noise_strength"])[:, None, None])
        style = np.asarray(params["style"]["kernel"])
        self.register_buffer("style", tensor(style.T / math.sqrt(len(style))))
        self.register_buffer("style_bias", tensor(params["style"]["bias"]))
        taps = torch.tensor([0.25, 0.5, 0.25])
        features = len(self.bias)
        self.register_buffer("blur", torch.outer(taps, taps).expand(features, 1, 3, 3).contiguous())

    def forward(self, x, w, noise):
        if self.fused:
            x = F.conv_transpose2d(x, self.kernel, stride=2, padding=1)
        elif self.up:
            x = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), self.kernel, padding=1)
        elif self.kernel is not None:
            x = F.conv2d(x, self.kernel, padding=1)
        if self.up:
            x = F.conv2d(x, self.blur, padding=1, groups=len(self.blur))
        x = x + self.bias[:, None, None] + self.strength * noise
        x = F.instance_norm(F.leaky_relu(x, 0.2), eps=1e-5)
        scale, shift = F.linear(w, self.style, self.style_bias)[..., None, None].chunk(2, dim=1)
        return x * (scale + 1) + shift


class Search:
    """Restarts with the same settings as ours, all in one batch.

    `params` are ours, with the latent fit. `latents` and `frozen` are of N restarts, as
    `Generator.sample` gives them. `target`: (N, h, w, 3). `rates`: the learning rate of each step.
    """

    def __init__(self, params, latents, frozen, target, loss, rates):
        self.synthesis = Synthesis(params["synthesis"])
        self.fit = {name: tensor(value) for name, value in params["latent_fit"].items()}
        self.target = channels_first(target)
        self.loss, self.rates, self.steps = loss, rates, 0
        self.latents = {name: tensor(value).requires_grad_() for name, value in latents.items()}
        self.maps = self.latents | {name: tensor(value) for name, value in frozen.items()}
        self.norms = [norms(x.detach()) for x in self.latents.values()]
        self.optimizer = torch.optim.Adam(self.latents.values())
        self.filter = bicubic(resolution(params) // target.shape[1])

    def synthesize(self):
        """Images (N, 3, R, R) in [0, 1] and the style vectors (N, L, d) they are made from."""
        layers = len(self.synthesis.layers)
        w = F.leaky_relu(self.latents["style"] * self.fit["std"] + self.fit["mean"], 0.2)
        image = self.synthesis(w, [self.maps[f"noise_{i}"] for i in range(layers)])
        return (image + 1) / 2, w

    def images(self):
        """The images (N, R, R, 3) of the latents as they are."""
        with torch.no_grad():
            return self.synthesize()[0].permute(0, 2, 3, 1).cpu().numpy()

    def step(self):
        """One update of all restarts; returns the l2 (N,) before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[self.steps])
        self.optimizer.zero_grad()
        image, w = self.synthesize()
        l2 = ((self.downscale(image) - self.target) ** 2).mean((1, 2, 3))
        total = self.loss.l2 * l2.clamp(min=self.loss.eps) + self.loss.geocross * geocross(w)
        total.sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            for x, norm in zip(self.latents.values(), self.norms, strict=True):
                x.mul_(norm / norms(x))
        self.steps += 1
        return l2.detach().cpu().numpy()

    def downscale(self, image):
        """Bicubic: reflect padding, then one strided convolution for each axis."""
        factor = len(self.filter) // 4
        before, after = 3 * factor // 2, -(-3 * factor // 2)
        image = F.pad(image, (before, after, before, after), mode="reflect")
        rows = self.filter.view(1, 1, -1, 1).expand(3, 1, -1, 1)
        image = F.conv2d(image, rows, stride=(factor, 1), groups=3)
        return F.conv2d(image, rows.transpose(2, 3), stride=(1, factor), groups=3)


def geocross(w):
    """(N, L, d) → (N,)."""
    a, b = w[:, :, None], w[:, None]
    apart = (((a - b) ** 2).sum(-1) + 1e-9).sqrt()
    along = (((a + b) ** 2).sum(-1) + 1e-9).sqrt()
    return (w.shape[-1] * (2 * torch.atan2(apart, along)) ** 2).mean((1, 2)) / 8


def bicubic(factor):
    """The 4k taps of the cubic convolution kernel, a = −½."""
    t = ((torch.arange(4 * factor) + 0.5) / factor - 2).abs()
    inner, outer = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    taps = torch.where(t <= 1, inner, outer)
    return taps / taps.sum()


def norms(x):
    """Norms over all axes but the first two, which are restarts and spheres."""
    axes = tuple(range(2, x.ndim))
    return ((x**2).sum(axes, keepdim=True) + 1e-9).sqrt()


def scaled_kernel(kernel, gain):
    """A stored kernel (h, w, I, O) as PyTorch uses it: (O, I, h, w), times gain / √fan_in."""
    kernel = np.asarray(kernel)
    return tensor(kernel.transpose(3, 2, 0, 1) * (gain / math.sqrt(math.prod(kernel.shape[:3]))))


def channels_first(images):
    return tensor(np.asarray(images).transpose(0, 3, 1, 2))


def tensor(array):
    return torch.tensor(np.ascontiguousarray(array, np.float32))


def resolution(params):
    return max(int(name.split("x")[0]) for name in params["synthesis"] if "x" in name)
