"""What ./moonpool bench measures: shapes, threads, times, and the options that choose among them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Shape:
    """Objects as one call moves them: `batch` objects of `pieces` pieces each."""

    name: str
    object_bytes: int
    batch: int
    pieces: int = 1

    @property
    def small(self) -> bool:
        """Whether it is counted in objects rather than in bytes."""
        return self.object_bytes <= 64 * KIB


SHAPES = (
    Shape("4 KiB", 4 * KIB, 32),
    Shape("64 KiB", 64 * KIB, 32),
    Shape("1 MiB", MIB, 8),
    Shape("16 MiB", 16 * MIB, 1),
    Shape("vLLM block", 30 * 96 * KIB, 24, 30),
)
SHAPE_WORDS = {"4k": "4 KiB", "64k": "64 KiB", "1m": "1 MiB", "16m": "16 MiB", "vllm": "vLLM block"}
OPERATIONS = ("put", "exist", "get", "mixed")
TABLES = ("store", "engine", "master", "allocator", "wire")
PATHS = ("tcp", "best")


@dataclass(frozen=True)
class Options:
    """One run. `limit` is how long a worker may take for one timed part before it is killed."""

    tables: tuple[str, ...] = TABLES
    paths: tuple[str, ...] = PATHS
    shapes: tuple[Shape, ...] = SHAPES
    threads: tuple[int, ...] = (1, 4, 16)
    objects: tuple[int, ...] = (1_000, 1_000_000, 10_000_000)
    rounds: int = 5
    seconds: float = 0.5
    limit: float = 100.0
    segment_bytes: int = 3 * GIB
    json: Path | None = None
    merge: bool = False
    quick: bool = False


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _choice(names: Sequence[str], what: str):  # noqa: ANN202 - argparse's own type
    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        for word in chosen:
            if word not in names:
                raise argparse.ArgumentTypeError(f"{word!r} is no {what}; there are: {', '.join(names)}")
        return chosen

    return parse


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="./moonpool bench",
        description="Measures Moonpool beside Mooncake, Redis, iperf3, a plain socket and memcpy, interleaved in one run, and prints the ratios.",
    )
    made.add_argument("--quick", action="store_true", help="a few minutes: fewer shapes, threads and rounds")
    made.add_argument("--only", type=_choice(TABLES, "table"), default=TABLES, metavar="TABLE,...", help=f"of {', '.join(TABLES)}")
    made.add_argument("--path", choices=(*PATHS, "both"), default="both", help="how our side moves bytes: over TCP alone, by its best path, or each in turn (default)")
    made.add_argument("--shapes", type=_choice(tuple(SHAPE_WORDS), "shape"), metavar="SHAPE,...", help=f"of {', '.join(SHAPE_WORDS)}")
    made.add_argument("--threads", type=_numbers, metavar="N,...", help="threads in the client (1,4,16)")
    made.add_argument("--objects", type=_numbers, metavar="N,...", help="objects at the master for its table (1000,1000000,10000000)")
    made.add_argument("--rounds", type=int, metavar="N", help="how often each cell is measured on every side (5)")
    made.add_argument("--seconds", type=float, metavar="S", help="of one timed part (0.5)")
    made.add_argument("--json", type=Path, metavar="FILE", help="where the results go (bench/out/latest.json)")
    made.add_argument("--merge", action="store_true", help="keep the cells of that file that this run does not measure again")
    made.add_argument("--markdown", action="store_true", help="measure nothing: print the tables of that file as docs/benchmarks.md has them")
    made.add_argument("--update-docs", action="store_true", help="measure nothing: put those tables and plots into docs/")
    made.add_argument("--list", action="store_true", help="only say what would be measured")
    return made


def options_from(parsed: argparse.Namespace) -> Options:
    shapes = tuple(shape for shape in SHAPES if parsed.shapes is None or shape.name in {SHAPE_WORDS[word] for word in parsed.shapes})
    if parsed.quick and parsed.shapes is None:
        shapes = tuple(shape for shape in shapes if shape.name != "64 KiB")
    return Options(
        tables=parsed.only,
        paths=PATHS if parsed.path == "both" else (parsed.path,),
        shapes=shapes,
        threads=parsed.threads or ((1, 4) if parsed.quick else Options.threads),
        objects=parsed.objects or ((1_000, 1_000_000) if parsed.quick else Options.objects),
        rounds=parsed.rounds or (2 if parsed.quick else Options.rounds),
        seconds=parsed.seconds or (0.25 if parsed.quick else Options.seconds),
        limit=20.0 if parsed.quick else Options.limit,
        json=parsed.json,
        merge=parsed.merge,
        quick=parsed.quick,
    )
