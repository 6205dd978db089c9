"""A web page on which pictures are upsampled, for this machine alone unless --host says otherwise.

    pulse_jax_web                                # open the address that it prints
    pulse_jax_web --output_dir=large --port=8000

Each search has a folder of its own, OUTPUT_DIR/results/NAME, with all that `pulse_jax` writes.
"""

if __name__ == "__main__":  # before the imports, which take seconds, and of which JAX's may fail
    from pulse_jax import console

    console.web()  # doesn't return

import contextlib
import itertools
import os
import socket
import sys
from tempfile import TemporaryDirectory

from absl import flags

from pulse_jax.console import (
    check_devices,
    logged_to_streams,
    noted_signals,
    parsed,
    use_cores,
    used_cache,
)
from pulse_jax.files import expanded, one_line
from pulse_jax.generators import checkpoint
from pulse_jax.plug_in import is_plug_in
from pulse_jax.upsampling.settings import Settings
from pulse_jax.web.desk import Desk

GRACE = 2  # seconds that open connections have when the server ends


def main() -> None:
    """The console script: serves the page until it is told to end."""
    values = parse(sys.argv)
    with contextlib.ExitStack() as at_end:
        # Gradio reads these as it is imported. It would report its use and look for a newer
        # version, and two servers would keep what is uploaded in one place.
        own = TemporaryDirectory(prefix="pulse_jax_web_", ignore_cleanup_errors=True)
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_TEMP_DIR": at_end.enter_context(own),
        }
        try:
            import uvicorn

            from pulse_jax.web.page import make_app
        except ModuleNotFoundError as error:
            if error.name not in ("gradio", "uvicorn"):
                raise
            sys.exit('pulse_jax_web: the page takes Gradio: pip install "pulse_jax[web]"')
        at_end.enter_context(logged_to_streams("pulse_jax_web: ", str))
        try:
            use_cores()
            check_devices()
            at_end.enter_context(used_cache(values.cache_dir))
            generators = values.generators or bundled()
            for name in itertools.filterfalse(is_plug_in, generators):
                checkpoint.find(name, "--generators")
            desk = Desk(expanded(values.output_dir, "--output_dir").absolute(), generators)
            # uvicorn ends at a signal, and then raises it again, which must not end the process.
            at_end.enter_context(noted_signals())
            at_end.callback(desk.close)
            listening = at_end.enter_context(listen(values.host, values.port))
        except ValueError as error:
            sys.exit(f"pulse_jax_web: {one_line(error)}")
        config = uvicorn.Config(
            make_app(desk), log_level="critical", timeout_graceful_shutdown=GRACE
        )
        host, port = listening.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{port} is the page; Ctrl-C ends it; results go to {desk.results}")
        uvicorn.Server(config).run(sockets=[listening])


def bundled() -> list[str]:
    """The bundled generators. The command's default is the first, which the page begins with."""
    return sorted(checkpoint.bundled(), key=lambda name: (name != Settings.generator, name))


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags' values. An error ends the command with one line."""
    values = flags.FlagValues()  # not those of the other commands in this process
    flags.DEFINE_string(
        "host",
        "127.0.0.1",
        "The page is served at this address. 0.0.0.0 lets in whoever reaches this machine, without "
        "a password.",
        values,
    )
    flags.DEFINE_integer("port", 7860, "It is served at this port.", 0, 65535, flag_values=values)
    flags.DEFINE_string("output_dir", "runs/web", "Results are written into this folder.", values)
    flags.DEFINE_list(
        "generators",
        None,
        "The page offers these generators, with commas between them. Without it, it offers the "
        "bundled ones.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "cache_dir", "~/.cache/pulse_jax", "Compiled programs are kept in this folder.", values
    )
    rest = parsed("pulse_jax_web", __doc__, values, argv)
    if rest:
        sys.exit(f"pulse_jax_web: {rest[0]!r} is no flag, and pictures are given on the page")
    return values


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises ValueError if it can't be had."""
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"--host={host}, --port={port} can't be listened at: {one_line(error)}"
        ) from error
