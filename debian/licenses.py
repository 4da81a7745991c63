#!/usr/bin/env python3
"""Prints which crates of others a package of the workspace links, with their licences and the texts of these.

  python3 debian/licenses.py PACKAGE    for the target and the features that `cargo build` takes
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)([-_.].*)?", re.IGNORECASE)


def cargo(*arguments):
    """What cargo prints about the workspace."""
    done = subprocess.run(["cargo", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"licenses.py: cargo {' '.join(arguments)} failed")
    return done.stdout


def linked(package):
    """Names and versions of the crates that the package links, and of the macros that wrote some of its code."""
    tree = cargo("tree", "--locked", "--quiet", "--package", package, "--edges", "normal", "--prefix", "none", "--format", "{p}")
    return {tuple(line.split()[:2]) for line in tree.splitlines()}


def texts(crate):
    """A crate's files about its licence: their names, and what they say."""
    folder = Path(crate["manifest_path"]).parent
    names = {file.name for file in folder.iterdir() if file.is_file() and TEXT.fullmatch(file.name)}
    if crate["license_file"] and (folder / crate["license_file"]).is_file():
        names.add(crate["license_file"])
    return [(name, (folder / name).read_text(errors="replace").strip()) for name in sorted(names)]


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip())
    package = sys.argv[1]
    wanted = linked(package)
    # Only with the crates of a platform, since cargo fetches what it tells about.
    platform = re.search(r"^host: (.*)$", subprocess.check_output(["rustc", "-vV"], text=True), re.MULTILINE)[1]
    metadata = json.loads(cargo("metadata", "--locked", "--quiet", "--format-version", "1", "--filter-platform", platform))
    crates = [crate for crate in metadata["packages"] if crate["source"] and (crate["name"], f"v{crate['version']}") in wanted]
    crates.sort(key=lambda crate: (crate["name"], crate["version"]))
    print(f"The crates that {package} links: licenses, [N] as a text below, and where the source is.\n")
    numbers = {}
    for crate in crates:
        said = []
        for name, text in texts(crate):
            digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
            number, _, _ = numbers.setdefault(digest, (len(numbers) + 1, f"{crate['name']} {crate['version']}, {name}", text))
            said.append(f"[{number}]")
        print(f"{crate['name']} {crate['version']}: {crate['license'] or 'see the text'}", *said, crate["repository"] or "")
    for number, title, text in numbers.values():
        print(f"\n{'=' * 78}\n[{number}] {title}\n\n{text}")


if __name__ == "__main__":
    main()
