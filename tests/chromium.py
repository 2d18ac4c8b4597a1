"""Find a Chromium for the browser tests, or install Debian's; say in one line what failed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find() -> str | None:
    """Return the path of an installed Chromium, the one named by CHROMIUM first."""
    chosen = os.environ.get("CHROMIUM")
    return chosen or next((path for name in NAMES if (path := shutil.which(name))), None)


def install() -> None:
    """Install Debian's package where this user may; raise CalledProcessError or OSError where not."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (
        ["update"],
        ["install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
    ):
        subprocess.run(["apt-get", "-q", *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> int:
    """Make sure that there is a Chromium; return an exit status."""
    if find():
        return 0
    try:
        install()
    except (OSError, subprocess.CalledProcessError) as error:
        print(
            f"The browser tests need Chromium: install it, or set CHROMIUM to its path. ({error})",
            file=sys.stderr,
        )
        return 1
    return 0 if find() else 1


if __name__ == "__main__":
    sys.exit(main())
