#!/usr/bin/env python3
"""Writes what the layer knows of the crates, from Cargo.lock and from the crates themselves:

  nestd-crates.inc    the crates to fetch, with their checksums
  nestd-licenses.inc  the licences of those that are linked, and where their texts are

  python3 yocto/generate.py            writes both
  python3 yocto/generate.py --check    writes nothing, and fails where they are not what would be written,
                                       or where a crate wants a newer Rust than the workspace says
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "yocto/meta-nestd/recipes-nestd/nestd"
# What a device of the layer may be; a crate that only one of them links counts for all.
TARGETS = [
    "aarch64-unknown-linux-gnu",
    "x86_64-unknown-linux-gnu",
    "armv7-unknown-linux-gnueabihf",
    "riscv64gc-unknown-linux-gnu",
]
# The variables' prefix, the package, its features, and the set that is there anyway.
SETS = [
    ("NESTD", "nestd", [], None),
    ("NESTD_TCP", "nestd", ["tcp"], "NESTD"),
    ("NESTD_MISTRALRS", "nestd", ["mistralrs"], "NESTD"),
    ("NESTCTL", "nestctl", [], None),
]
TEXT = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)([-_.].*)?", re.IGNORECASE)
# SPDX's words, and OpenEmbedded's up to wrynose.
WORDS = {"OR": "|", "AND": "&", "/": "|", "(": "(", ")": ")"}


def cargo(*arguments):
    """What cargo prints about the workspace."""
    done = subprocess.run(
        ["cargo", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"generate.py: cargo {' '.join(arguments)} failed")
    return done.stdout


def crates_inc():
    """The list in the form of OpenEmbedded's class cargo-update-recipe-crates."""
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    crates = []
    for package in lock["package"]:
        source = package.get("source")
        if source is None:
            continue  # The workspace's own.
        if not source.startswith("registry+") or "checksum" not in package:
            sys.exit(f"generate.py: {package['name']} is from {source}, and recipes fetch from the registry only")
        crates.append((package["name"], package["version"], package["checksum"]))
    lines = ["# Written by yocto/generate.py.", "", "# from Cargo.lock", "# nooelint: oelint.vars.inconspaces"]
    lines += ['SRC_URI += " \\']
    lines += [f"    crate://crates.io/{name}/{version} \\" for name, version, _ in crates]
    lines += ['"', ""]
    lines += [f'SRC_URI[{name}-{version}.sha256sum] = "{sha256}"' for name, version, sha256 in crates]
    return "\n".join(lines) + "\n"


def linked(package, features):
    """Names and versions of the crates that a binary of the package links, and of the macros in its source."""
    found = set()
    for target in TARGETS:
        tree = cargo(
            "tree", "--locked", "--quiet", "--package", package, "--no-default-features",
            "--features", ",".join(features), "--edges", "normal", "--target", target,
            "--prefix", "none", "--format", "{p}",
        )  # fmt: skip
        for line in tree.splitlines():
            name, version = line.split()[:2]
            found.add((name, version.removeprefix("v")))
    return found


def term(package):
    """A crate's licence as OpenEmbedded writes it, in parentheses where there is a choice."""
    text = package["license"]
    if text is None:
        sys.exit(f"generate.py: {package['name']} {package['version']} names no licence")
    text = re.sub(r"([\w.-]+) WITH ([\w.-]+)", r"\1-with-\2", text)
    words = [WORDS.get(word, word) for word in re.findall(r"[()/]|[\w.+-]+", text)]
    if set(words) & {"&", "(", ")"}:
        text = " ".join(words).replace("( ", "(").replace(" )", ")")
        return f"({text})" if "|" in words and not text.startswith("(") else text
    names = sorted({word for word in words if word != "|"})
    return f"({' | '.join(names)})" if len(names) > 1 else names[0]


def texts(package):
    """The files with a crate's licence, each with its MD5 sum, which is what OpenEmbedded compares."""
    folder = Path(package["manifest_path"]).parent
    names = {file.name for file in folder.iterdir() if file.is_file() and TEXT.fullmatch(file.name)}
    if package["license_file"] and (folder / package["license_file"]).is_file():
        names.add(package["license_file"])
    for name in sorted(names):
        yield name, hashlib.md5((folder / name).read_bytes()).hexdigest()


def variable(name, parts, separator):
    """An assignment with a part a line."""
    lines = [f"    {part}{separator} \\" for part in parts[:-1]] + [f"    {part} \\" for part in parts[-1:]]
    return "\n".join([f'{name} = " \\', *lines, '"', ""])


def licenses_inc(packages):
    """Licences and their texts, by set; a text that several crates have is named once."""
    parts = ["# Written by yocto/generate.py: the licences of the crates that are linked, and their texts.\n"]
    crates, terms, sums = {}, {}, {}
    for prefix, package, features, base in SETS:
        crates[prefix] = linked(package, features)
        terms[prefix], sums[prefix], files = set(), set(), []
        for key in sorted(crates[prefix] - crates.get(base, set())):
            crate = packages[key]
            if crate["source"] is None:
                continue
            terms[prefix].add(term(crate))
            for name, md5 in texts(crate):
                if md5 not in sums[prefix] | sums.get(base, set()):
                    sums[prefix].add(md5)
                    path = f"${{CARGO_VENDORING_DIRECTORY}}/{key[0]}-{key[1]}/{name}"
                    files.append(f"file://{path};md5={md5}")
        new = sorted(terms[prefix] - terms.get(base, set()))
        parts.append(variable(f"{prefix}_CRATE_LICENSES", new, " &"))
        parts.append(variable(f"{prefix}_CRATE_LICENSE_FILES", files, ""))
    return "\n".join(parts)


def too_new(packages):
    """Crates that want a newer Rust than the workspace says; cargo's resolver should have kept them out."""
    def number(version):
        return tuple(int(part) for part in version.split(".")[:2])

    said = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["rust-version"]
    return [
        f"{name} {version} wants Rust {package['rust_version']}, and the workspace has {said}"
        for (name, version), package in sorted(packages.items())
        if package["rust_version"] and number(package["rust_version"]) > number(said)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where something is old")
    check = parser.parse_args().check
    metadata = json.loads(cargo("metadata", "--locked", "--quiet", "--format-version", "1"))
    packages = {(package["name"], package["version"]): package for package in metadata["packages"]}
    problems = too_new(packages)
    for name, text in [("nestd-crates.inc", crates_inc()), ("nestd-licenses.inc", licenses_inc(packages))]:
        file = FOLDER / name
        if file.is_file() and file.read_text() == text:
            continue
        if check:
            problems.append(f"{file.relative_to(ROOT)} is old: run yocto/generate.py")
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    for problem in problems:
        print(f"generate.py: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
