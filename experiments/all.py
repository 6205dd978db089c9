"""Repeat the experiments of the model cards, and of four pages in docs/: PAGES, below.

    python experiments/all.py --list
    python experiments/all.py --pages=faces64,results

The commands are those that readers see there. They run one after another in the current folder, and
their results lie in its runs/. What each of them prints is in runs/all/. Experiments go on where
they were stopped. If a command fails, the others still run, and a line at the end names it. All of
it takes hours on two cores. Generators are not trained anew. earth64's map has to be fetched first,
as its card says.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from common import door

from absl import flags

FLAGS = flags.FLAGS
flags.DEFINE_bool("list", False, "The commands are only listed.")
flags.DEFINE_list("pages", None, "Only those of these pages are run. Without it, all are.")

ROOT = Path(__file__).resolve().parents[1]
PAGES = "results", "costs", "photographs", "generators"
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXPERIMENT = re.compile(r"python experiments/(?!train_)")


def main():
    if FLAGS.pages == []:
        raise ValueError("--pages= names nothing")
    pages = {name: ROOT / "docs" / f"{name}.md" for name in PAGES}
    pages |= {path.parent.name: path for path in sorted(ROOT.glob("checkpoints/*/README.md"))}
    for name in FLAGS.pages or []:
        if name not in pages:
            raise ValueError(f"--pages={name} is none of {', '.join(pages)}")
    failed = []
    for name in FLAGS.pages or pages:
        for i, command in enumerate(commands(pages[name]), 1):
            print(f"{name} {i}: {command}", flush=True)
            if not FLAGS.list and not run(command, Path("runs", "all", f"{name}_{i}.txt")):
                failed.append(f"{name} {i}")
    if failed:
        raise ValueError(f"{', '.join(failed)} failed; runs/all/ has what they printed")
    return None if FLAGS.list else "runs/all"


def commands(page):
    """The experiments that a page runs, each on one line."""
    text = "".join(BLOCK.findall(page.read_text(encoding="utf-8")))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line for line in lines if EXPERIMENT.match(line)]


def run(command, log):
    """Run a command, and say whether it succeeded. What it prints goes into a file."""
    _, script, *arguments = shlex.split(command)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, ROOT / script, *arguments]
    with (
        log.open("w", encoding="utf-8") as file,
        door.child(command, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        return process.wait() == 0


if __name__ == "__main__":
    door.run(main)
