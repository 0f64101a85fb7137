"""What the compiler made of the CUDA kernels, read from their machine code: no card is needed.

    python tests/bench/sass.py FILE [--arch sm_90] [--kernels REGEX] [--no-spills]

FILE: an object or a library that nvcc has built. Of each kernel: registers, bytes of stack (what
did not fit into registers), and of the loop that reads global memory in the widest pieces: how
many bits at once, how many bytes a turn reads, and the fewest instructions that a turn takes, by
the shortest way from its first to its last, whole and per element that is read. Where a turn may
leave its work out, for what is masked, that way does. Needs cuobjdump, of the toolkit or as triton
brings it, and c++filt.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SIZES = {"double": 8, "float": 4, "__half": 2, "__nv_bfloat16": 2}
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")


@dataclass(frozen=True)
class Instruction:
    at: int
    predicate: str | None
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"0x([0-9a-f]+)", self.operands)
        return int(found[1], 16) if found and self.name.startswith("BRA") else None

    @property
    def falls_through(self) -> bool:
        is_conditional = self.predicate is not None or re.match(r"\s*!?U?P\w", self.operands)
        return bool(is_conditional) or not self.name.startswith(("BRA", "EXIT", "RET"))

    @property
    def read(self) -> int:
        """Bytes of global memory that a thread reads."""
        if not self.name.startswith("LDG"):
            return 0
        bits = re.search(r"\.[US]?(8|16|64|128|256)\b", self.name)
        return int(bits[1]) // 8 if bits else 4


@dataclass(frozen=True)
class Loop:
    """The shortest way around a loop."""

    instructions: int
    read: int  # bytes
    width: int  # of the widest load


def way_around(code: list[Instruction]) -> Loop | None:
    """From the first to the last instruction of a loop by as few as possible."""
    index = {instruction.at: i for i, instruction in enumerate(code)}
    queue, seen = [(1, 0, (0,))], set()
    while queue:
        length, i, way = heapq.heappop(queue)
        if i == len(code) - 1:
            reads = [code[k].read for k in way]
            return Loop(length, sum(reads), max(reads))
        if i in seen:
            continue
        seen.add(i)
        following = [i + 1] if code[i].falls_through else []
        following += [index[t] for t in (code[i].target,) if t in index and index[t] > i]
        for k in following:
            heapq.heappush(queue, (length + 1, k, (*way, k)))
    return None


def hot_loop(code: list[Instruction]) -> Loop | None:
    """Of the innermost loops: the one with the widest loads, and of these the longest."""
    index = {instruction.at: i for i, instruction in enumerate(code)}
    spans = [
        (index[instruction.target], end)
        for end, instruction in enumerate(code)
        if instruction.target in index and index[instruction.target] <= end
    ]
    spans = [(a, b) for a, b in spans if any(i.read for i in code[a : b + 1])]
    inner = [s for s in spans if not any(s != t and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    loops = [loop for a, b in inner if (loop := way_around(code[a : b + 1])) and loop.read]
    return max(loops, key=lambda loop: (loop.width, loop.instructions), default=None)


def cuobjdump(*arguments: str) -> str:
    folders = [os.environ.get("PATH", "")]
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    path = os.pathsep.join(folders)
    program = shutil.which("cuobjdump", path=path)
    if not program:
        raise SystemExit("sass: there is no cuobjdump, of the toolkit or of triton")
    run = [program, *arguments]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(run, check=True, text=True, capture_output=True, env=environment).stdout


def readable(names: list[str]) -> list[str]:
    """What the kernels are called, without namespace and arguments."""
    text = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True)
    lines = (text.stdout or "\n".join(names)).splitlines()
    return [re.sub(r"^void |absgd::|\(.*$", "", line) for line in lines]


def element_size(kernel: str) -> int | None:
    types = [t for t in re.split(r"[<>,\s]+", kernel) if t in SIZES]
    return SIZES[types[0]] if types else None


def newest(file: Path) -> str:
    """Of the architectures that there is code for."""
    found = re.findall(r"sm_\d+", cuobjdump("--list-elf", str(file)))
    if not found:
        raise SystemExit(f"sass: there is no machine code in {file}")
    return max(found, key=lambda arch: int(arch[3:]))


def table(file: Path, arch: str, kernels: str) -> tuple[list[str], list[str]]:
    """The table's lines, and the kernels that spill."""
    of = ("-arch", arch, str(file))
    usage = USAGE.findall(cuobjdump("-res-usage", *of))
    bodies = re.split(r"Function : (\S+)", cuobjdump("-sass", *of))[1:]
    if not usage:
        raise SystemExit(f"sass: {file} has no kernels for {arch}")
    code = {
        name: [Instruction(int(at, 16), *rest) for at, *rest in INSTRUCTION.findall(body)]
        for name, body in zip(bodies[::2], bodies[1::2], strict=True)
    }
    lines = [
        "| kernel | registers | stack | load | bytes a turn | instructions | per element |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    spilling = []
    names = readable([name for name, *_ in usage])
    for kernel, (name, registers, stack) in sorted(zip(names, usage, strict=True)):
        if not re.search(kernels, kernel):
            continue
        loop = hot_loop([i for i in code.get(name, []) if i.name != "NOP"])
        row = [f"`{kernel}`", registers, stack]
        spilling += [kernel] if stack != "0" else []
        if loop:
            size = element_size(kernel)
            each = f"{loop.instructions * size / loop.read:.1f}" if size else ""
            row += [f"{8 * loop.width}", f"{loop.read}", f"{loop.instructions}", each]
        lines.append("| " + " | ".join(row + [""] * (7 - len(row))) + " |")
    return lines, spilling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--arch", help="sm_75, sm_80, sm_90 …: the newest in the file")
    parser.add_argument("--kernels", default="", help="only those whose name matches")
    parser.add_argument("--no-spills", action="store_true", help="a kernel that spills is an error")
    args = parser.parse_args()
    arch = args.arch or newest(args.file)
    print(f"{args.file.name}, {arch}")
    lines, spilling = table(args.file, arch, args.kernels)
    print("\n".join(lines))
    if args.no_spills and spilling:
        raise SystemExit("sass: these spill: " + ", ".join(spilling))


if __name__ == "__main__":
    main()
