"""Published generators by name: where their files are, and how one gets onto this machine.

Addresses, file names, licences and digests are what the publishers' own pages say (`Model.page`).
Few have a digest. docs/generators.md has a table for people.
"""

import contextlib
import functools
import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from pulse_jax.files import expanded, near, one_line


class Model(NamedTuple):
    """A published generator: its file, and what its publisher says about it.

    Where it is a folder, `file` is the largest one in it, and `others` are beside it.
    """

    domain: str
    resolution: int  # the side of its images
    architecture: str
    url: str  # of the file
    file: str  # its name
    licence: str
    page: str  # where it is published
    digest: str | None = None  # "sha256:…" or "md5:…", where one is published
    others: tuple[str, ...] = ()

    @property
    def by_hand(self) -> bool:
        """Whether it takes a browser: before a large file, Google Drive shows a page to click."""
        return urlsplit(self.url).hostname == "drive.google.com"


def _stylegan(domain: str, resolution: int, name: str, drive_id: str) -> Model:
    return Model(
        domain,
        resolution,
        "StyleGAN",
        f"https://drive.google.com/uc?id={drive_id}",
        f"karras2019stylegan-{name}.pkl",
        "CC BY-NC 4.0",
        "https://github.com/NVlabs/stylegan",
    )


def _stylegan2(domain: str, resolution: int, name: str) -> Model:
    file = f"stylegan2-{name}-config-f.pkl"
    return Model(
        domain,
        resolution,
        "StyleGAN 2",
        f"https://nvlabs-fi-cdn.nvidia.com/stylegan2/networks/{file}",
        file,
        "Nvidia Source Code License-NC",
        "https://github.com/NVlabs/stylegan2",
    )


def _ada(domain: str, resolution: int, file: str) -> Model:
    return Model(
        domain,
        resolution,
        "StyleGAN 2",
        f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/{file}",
        file,
        "Nvidia Source Code License",
        "https://github.com/NVlabs/stylegan2-ada-pytorch",
    )


def _stylegan3(domain: str, resolution: int, name: str, config: str | None = None) -> Model:
    """Config T or R of StyleGAN 3, or without one a StyleGAN 2 that was published along with it."""
    family, prefix = ("stylegan3", f"stylegan3-{config}") if config else ("stylegan2", "stylegan2")
    file = f"{prefix}-{name}-{resolution}x{resolution}.pkl"
    return Model(
        domain,
        resolution,
        f"StyleGAN 3-{config.upper()}" if config else "StyleGAN 2",
        f"https://api.ngc.nvidia.com/v2/models/nvidia/research/{family}/versions/1/files/{file}",
        file,
        "Nvidia Source Code License",
        "https://github.com/NVlabs/stylegan3",
    )


def _sid(domain: str, file: str) -> Model:
    """A one-step student of EDM's denoiser, for the solver one_step:2.5."""
    return Model(
        domain,
        64,
        "EDM, in one step",
        f"https://huggingface.co/UT-Austin-PML/SiD/resolve/main/{file}",
        file.rpartition("/")[2],
        "Apache 2.0; its teacher's is CC BY-NC-SA 4.0",
        "https://huggingface.co/UT-Austin-PML/SiD",
    )


def _diffusers(
    domain: str, architecture: str, repository: str, licence: str, file: str, *others: str
) -> Model:
    """A pipeline of diffusers, of 256×256 pixels."""
    page = f"https://huggingface.co/{repository}"
    url = f"{page}/resolve/main/{file}"
    return Model(domain, 256, architecture, url, file, licence, page, _DIGESTS.get(url), others)


_WEIGHTS = "diffusion_pytorch_model.bin"
_OPENAI = "openai/diffusers-cd_bedroom256_"
_DIGESTS = {
    f"https://huggingface.co/{_OPENAI}{loss}/resolve/main/unet/{_WEIGHTS}": f"sha256:{digest}"
    for loss, digest in {
        "l2": "371676dd8e30d27b85bd2a630d4c2022fc13b50b77eb41a456ab645cbe61b413",
        "lpips": "67bc6468d2f7683e52921cefaffba4714a3509ea87c72b03f986fc48edf1584d",
    }.items()
}
_FLAT = _WEIGHTS, "config.json", "model_index.json", "scheduler_config.json"
_PARTS = (
    *(f"unet/{_WEIGHTS}", "unet/config.json"),
    *("model_index.json", "scheduler/scheduler_config.json"),
)
_FFHQ, _FFHQ_U = "faces (FFHQ)", "faces, unaligned (FFHQ-U)"
_METFACES, _METFACES_U = "faces in art (MetFaces)", "faces in art, unaligned (MetFaces-U)"
_AFHQ_V2 = "cats, dogs and wild animals (AFHQv2)"

PUBLISHED = {
    "ffhq1024": _stylegan2(_FFHQ, 1024, "ffhq"),
    "ffhq512": _stylegan3(_FFHQ, 512, "ffhq"),
    "ffhq256": _stylegan3(_FFHQ, 256, "ffhq"),
    "ffhqu1024": _stylegan3(_FFHQ_U, 1024, "ffhqu"),
    "ffhqu256": _stylegan3(_FFHQ_U, 256, "ffhqu"),
    "celebahq256": _stylegan3("faces (CelebA-HQ)", 256, "celebahq"),
    "metfaces1024": _ada(_METFACES, 1024, "metfaces.pkl"),
    "metfacesu1024": _stylegan3(_METFACES_U, 1024, "metfacesu"),
    "afhqcat512": _ada("cats' faces (AFHQ)", 512, "afhqcat.pkl"),
    "afhqdog512": _ada("dogs' faces (AFHQ)", 512, "afhqdog.pkl"),
    "afhqwild512": _ada("wild animals' faces (AFHQ)", 512, "afhqwild.pkl"),
    "afhqv2-512": _stylegan3(_AFHQ_V2, 512, "afhqv2"),
    "brecahad512": _ada("breast tissue, microscopy (BreCaHAD)", 512, "brecahad.pkl"),
    "car512": _stylegan2("cars (LSUN), in the middle 384 rows", 512, "car"),
    "cat256": _stylegan2("cats (LSUN)", 256, "cat"),
    "church256": _stylegan2("churches (LSUN)", 256, "church"),
    "dog256": _stylegan3("dogs (LSUN)", 256, "lsundog"),
    "horse256": _stylegan2("horses (LSUN)", 256, "horse"),
    **{
        f"stylegan3{config}-{name}": _stylegan3(domain, resolution, dataset, config)
        for config in "tr"
        for name, domain, resolution, dataset in (
            ("ffhq1024", _FFHQ, 1024, "ffhq"),
            ("ffhqu1024", _FFHQ_U, 1024, "ffhqu"),
            ("ffhqu256", _FFHQ_U, 256, "ffhqu"),
            ("metfaces1024", _METFACES, 1024, "metfaces"),
            ("metfacesu1024", _METFACES_U, 1024, "metfacesu"),
            ("afhqv2-512", _AFHQ_V2, 512, "afhqv2"),
        )
    },
    "diffusion-stylegan2-ffhq1024": Model(
        _FFHQ,
        1024,
        "StyleGAN 2",
        "https://huggingface.co/zhendongw/diffusion-gan/resolve/main/checkpoints/"
        "diffusion-stylegan2-ffhq.pkl",
        "diffusion-stylegan2-ffhq.pkl",
        "none stated",
        "https://github.com/Zhendong-Wang/Diffusion-GAN",
    ),
    "edm-ffhq64": Model(
        _FFHQ,
        64,
        "EDM",
        "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-ffhq-64x64-uncond-vp.pkl",
        "edm-ffhq-64x64-uncond-vp.pkl",
        "CC BY-NC-SA 4.0",
        "https://github.com/NVlabs/edm",
    ),
    "sid-ffhq64": _sid(_FFHQ, "ffhq64/alpha1.2/network-snapshot-1.200000-498176.pkl"),
    "sid-afhqv2-64": _sid(_AFHQ_V2, "afhq64/alpha1.2/network-snapshot-1.200000-305664.pkl"),
    "ddpm-celebahq256": _diffusers(
        "faces (CelebA-HQ)", "DDPM", "google/ddpm-celebahq-256", "Apache 2.0", *_FLAT
    ),
    "ddpm-ema-church256": _diffusers(
        "churches (LSUN)", "DDPM", "google/ddpm-ema-church-256", "Apache 2.0", *_FLAT
    ),
    **{
        f"cd-{loss}-bedroom256": _diffusers(
            "bedrooms (LSUN)", "consistency model", f"{_OPENAI}{loss}", "MIT", *_PARTS
        )
        for loss in ("l2", "lpips")
    },
    "ldm-celebahq256": _diffusers(
        "faces (CelebA-HQ)",
        "DDPM of latents, VQ decoder",
        "CompVis/ldm-celebahq-256",
        "Apache 2.0",
        *_PARTS,
        f"vqvae/{_WEIGHTS}",
        "vqvae/config.json",
    ),
    "stylegan1-ffhq1024": _stylegan(
        _FFHQ, 1024, "ffhq-1024x1024", "1MEGjdvVpUsu1jB4zrXZN7Y4kBBOzizDQ"
    ),
    "stylegan1-celebahq1024": _stylegan(
        "faces (CelebA-HQ)", 1024, "celebahq-1024x1024", "1MGqJl28pN4t7SAtSrPdSRJSQJqahkzUf"
    ),
    "stylegan1-bedroom256": _stylegan(
        "bedrooms (LSUN)", 256, "bedrooms-256x256", "1MOSKeGF0FJcivpBI7s63V9YHloUTORiF"
    ),
    "stylegan1-car512": _stylegan(
        "cars (LSUN), in the middle 384 rows",
        512,
        "cars-512x384",
        "1MJ6iCfNtMIRicihwRorsM3b7mmtmK9c3",
    ),
    "stylegan1-cat256": _stylegan(
        "cats (LSUN)", 256, "cats-256x256", "1MQywl0FNt6lHu8E_EUqnRbviagS7fbiJ"
    ),
}


def folder(name: str) -> Path:
    """Where a published generator lives on this machine: its file, and what it is converted to."""
    return expanded("~/.cache/pulse_jax/generators") / name


def fetch(name: str, progress: bool = True) -> Path:
    """The path of a published generator's file or folder, downloaded if it isn't there yet.

    A download that was broken off is kept beside it as `FILE.part`, and the next call asks only for
    the rest, as if the published file never changed. The file gets its name when it is complete
    and, if a digest is published, matches it. A file that was put there by hand is taken as it is.
    With `progress`, a bar runs on stderr.

    Raises ValueError for an unknown name. It also does so if a file can't be downloaded: there is
    no connection, the server fails, the download breaks off, the digest is another, the disk is
    full, pooch isn't installed, or Google Drive wants a browser. The message is one line with the
    address and the path to save the file as.
    """
    if name not in PUBLISHED:
        names = near(name, PUBLISHED) or f": they are {', '.join(PUBLISHED)}"
        raise ValueError(f"no published generator {name!r}{names}")
    model = PUBLISHED[name]
    for other in model.others:  # small ones, so that what is missing is told at once
        _fetch(name, model.url.removesuffix(model.file) + other, other, None, False)
    path = _fetch(name, model.url, model.file, model.digest, progress)
    return folder(name) if model.others else path


def _fetch(name: str, url: str, file: str, digest: str | None, progress: bool) -> Path:
    """The path of one file of a published generator."""
    path = folder(name) / file
    if path.is_file():
        return path
    by_hand = f"save {url} as {path}"
    if PUBLISHED[name].by_hand:
        raise ValueError(f"{name}: Google Drive gives it to browsers only, so {by_hand}")
    try:
        import pooch
    except ImportError as error:
        install = 'pip install "pulse_jax[convert]"'
        raise ValueError(f"{name}: to download it, first {install}; or {by_hand}") from error

    pooch.get_logger().setLevel("WARNING")  # it would log where it downloads to
    part = path.with_name(f"{path.name}.part")
    download = functools.partial(_download, part=part, progress=progress)
    try:
        pooch.retrieve(url, digest, path.name, path.parent, downloader=download)
    except OSError as error:
        raise ValueError(f"{name}: download failed: {one_line(error)}; or {by_hand}") from error
    except ValueError as error:
        raise ValueError(
            f"{name}: download failed: its digest isn't {digest}; or {by_hand}"
        ) from error
    return path


def _download(url: str, output_file: str, _: Any, *, part: Path, progress: bool) -> None:
    """A downloader for pooch, which goes on with the file `part` if the server can.

    `part` becomes `output_file` once it is complete. Raises OSError if the download fails.
    """
    import requests  # comes with pooch

    start = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # lengths are then those of the file
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=30)
    except requests.RequestException as error:
        cause = getattr(next(iter(error.args), None), "reason", error)  # requests wraps it
        raise OSError(one_line(cause)) from error
    with response:
        kind = response.headers.get("Content-Type", "")
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code == 206 and span and int(span[1]) == start:
            total = int(span[2])
        elif start and response.status_code in (206, 416):  # not the range that was asked for
            part.unlink()
            return _download(url, output_file, _, part=part, progress=progress)
        elif response.status_code != 200:
            raise OSError(f"the server says {response.status_code} {response.reason}")
        elif kind.startswith(("text/", "application/json")) and part.stem[-5:] != ".json":
            # a login page, a message
            raise OSError(f"the server sends {kind} in its place")
        elif not (length := response.headers.get("Content-Length", "")).isdigit():
            raise OSError("the server doesn't tell the file's length")
        else:
            start, total = 0, int(length)
        unit = {"unit": "B", "unit_scale": True}
        bar = tqdm(desc=part.stem, total=total, initial=start, disable=not progress, **unit)
        complete = False
        with bar, part.open("ab" if start else "wb") as file:
            with contextlib.suppress(requests.RequestException):  # told by `complete`
                for chunk in response.iter_content(2**16):
                    file.write(chunk)
                    bar.update(len(chunk))
                complete = file.tell() == total
            size = file.tell()
    if not complete:
        raise OSError(f"it broke off after {size} of {total} bytes, kept for the next try")
    os.replace(part, output_file)
