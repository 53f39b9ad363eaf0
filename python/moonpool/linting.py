"""./moonpool lint: clang-format on every C++ file, clang-tidy on the changed ones (or all), as .clang-format and .clang-tidy say."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

from moonpool import packages
from moonpool.building import build_preset, ensure_build_tools
from moonpool.commands import log_path, run_status, tail
from moonpool.console import board
from moonpool.errors import UserError
from moonpool.paths import BUILD, ROOT
from moonpool.provision import ensure_packages

FORMAT_SECONDS = 120
TIDY_SECONDS = 3600


def _git_files(*arguments: str) -> list[Path]:
    listing = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        raise UserError(f"git {' '.join(arguments)}: {listing.stderr.decode().strip()}", "run lint in a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def cpp_files() -> list[Path]:
    """Every C++ file of ours."""
    return [path for path in _git_files("ls-files", "-z", "--cached", "--others", "--exclude-standard") if path.suffix in (".cpp", ".h")]


def changed_files(base: str) -> list[Path]:
    """C++ sources that differ from `base`, uncommitted changes included."""
    return [path for path in _git_files("diff", "-z", "--name-only", base) if path.suffix == ".cpp"]


def check_format(files: list[Path], fix: bool) -> bool:
    """clang-format over the files; with `fix`, in place."""
    mode = ["-i"] if fix else ["--dry-run", "-Werror"]
    with board.row(f"clang-format, {len(files)} files") as row:
        if run_status("clang-format", ["clang-format-14", *mode, *files], timeout=FORMAT_SECONDS) == 0:
            return True
        row.fail("not formatted: ./moonpool lint --fix does it")
    complaints = [line.split(":", 1)[0] for line in log_path("clang-format").read_text().splitlines() if "clang-format-violations" in line]
    board.say("\n".join(dict.fromkeys(complaints)) or tail(log_path("clang-format")))
    return False


def check_tidy(files: list[Path]) -> bool:
    """clang-tidy over the files that the dev preset compiles, one process per core."""
    database = (BUILD / "dev" / "compile_commands.json").read_text()
    known = [path for path in files if f'"{path}"' in database]
    with board.row(f"clang-tidy, {len(known)} files") as row:
        argv = ["xargs", "-0", "-P", str(os.cpu_count() or 1), "-n", "1", "clang-tidy-14", "--quiet", "-p", str(BUILD / "dev")]
        listing = log_path("clang-tidy files")
        listing.write_text("\0".join(str(path) for path in known))
        status = run_status("clang-tidy", [*argv[:1], "-a", listing, *argv[1:]], timeout=TIDY_SECONDS) if known else 0
        if status == 0:
            return True
        row.fail("see below")
    findings = [line for line in log_path("clang-tidy").read_text().splitlines() if ": error:" in line or ": warning:" in line]
    board.say("\n".join(dict.fromkeys(findings)) or tail(log_path("clang-tidy")))
    return False


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./moonpool lint", description="clang-format and clang-tidy over the C++ sources.")
    parser.add_argument("--fix", action="store_true", help="format in place")
    parser.add_argument("--all", action="store_true", help="clang-tidy on all files, not only the changed ones")
    parser.add_argument("--since", default="HEAD", metavar="COMMIT", help="changed means: since this commit (default HEAD: uncommitted)")
    parser.add_argument("--format-only", action="store_true", help="leave clang-tidy out")
    options = parser.parse_args(arguments)
    ensure_build_tools()
    ensure_packages("lint", (*packages.LINT_PACKAGES, *packages.TEST_PACKAGES))
    clean = check_format(cpp_files(), options.fix)
    if not options.format_only:
        files = [path for path in cpp_files() if path.suffix == ".cpp"] if options.all else changed_files(options.since)
        # clang-tidy reads generated headers too, so the code generation has to have run.
        build_preset("dev", timeout=TIDY_SECONDS)
        clean = check_tidy(files) and clean
    board.say("lint: clean" if clean else "lint: not clean")
    return 0 if clean else 1
