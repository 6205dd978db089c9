"""Files that are written whole, and errors told in one line."""

import os
from pathlib import Path


def write(path, content):
    """Write text (as UTF-8) or bytes so that the file is there whole or not at all.

    Written under another name in the same folder, then moved into place. Raises OSError; the file
    that was there before then stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # there no longer, if all went well


def one_line(error):
    """An exception's message on one line, or its type's name if it has none.

    Of an OSError only the reason, "No such file or directory": the caller names the file, the error
    might name a temporary one.
    """
    message = getattr(error, "strerror", None) or str(error)
    return " ".join(message.split()) or type(error).__name__
