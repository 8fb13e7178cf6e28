"""What a timestep of the Hopper kernels costs at least, by arithmetic: the tables of
docs/performance-gpu.md.

    python bench/hopper_floor.py

Nothing here is measured. Cluster sizes, warps and what lies in registers are read from
csrc/cuda/hopper; rates are those of data sheets and public microbenchmarks. bench/hopper_check.sh
measures them and the kernels.
"""

from __future__ import annotations

import math
import pathlib
import re
from typing import NamedTuple

HOPPER = pathlib.Path(__file__).resolve().parent.parent / "csrc" / "cuda" / "hopper"
PROCESSORS, CLOCK = 132, 1.755e9
SHARED_RATE = 128  # bytes of shared memory a cycle, for each multiprocessor
MEMORY, L2 = 3.35e12, 5.5e12  # bytes/s, H100
TENSOR = {2: 989e12, 4: 495e12}  # FLOP/s by bytes of an operand: 16 bits, tf32
HAND_OFF = {"cluster": 0.35e-6, "grid": 1.2e-6, "block": 0.2e-6}  # guesses
UNITS, BATCHES = (128, 256, 512, 768, 1024, 2048), (1, 16, 64, 256)
SHARED_BYTES = 227 << 10


def read(name):
    return (HOPPER / name).read_text()


def variants(text, kind):
    """{name: (numbers of the typedef)} of the 16-bit and the tf32 variants."""
    found = re.findall(rf"typedef {kind}Variant<([^>]+)> (\w+?)(?:Forward)?;", text)
    return [(name, [int(n) for n in re.findall(r"\b\d+\b", values)]) for values, name in found]


FORWARD = dict(variants(read("forward_cluster.cuh"), "Forward"))
_backward = variants(read("backward_cluster.cuh"), "Backward")
BACKWARD = {2: dict(_backward[:4]), 4: dict(_backward[4:])}
RULES = {
    size: [
        (int(units), variant, int(cluster))
        for units, variant, cluster in re.findall(
            r"\{(\d+), Variant::k(\w+), (\d+)\}",
            re.search(rf"{name}\[\] = (.*?);", read("plan.h"), re.S).group(1),
        )
        if int(cluster)
    ]
    for size, name in ((2, "kSixteenBits"), (4, "kTf32"))
}
GRID_MOST = dict(
    zip((4, 2), map(int, re.search(r"\? (\d+) : (\d+)\)", read("plan.h")).groups()), strict=True)
)


class Step(NamedTuple):
    """Of 8 slots in one block: cycles of its tensor cores and its shared memory; bytes that it
    reads from the L2 cache; how many slots a cluster or group may have; what it takes of them."""

    multiply: float
    shared: float
    l2: int
    most_tiles: int
    bytes_of_tile: int
    fixed_bytes: int


def ceil(n, by):
    return -(-n // by)


def forward_cluster(units, size, variant, cluster):
    values = 64 // size
    tiles, in_registers, *_, most = FORWARD[variant]
    warps, chunks = ceil(units, cluster * tiles * 4), ceil(units, values)
    stored = max(0, chunks - in_registers) * warps * tiles * 1024
    row = 64 * (chunks | 1)
    return Step(
        warps * tiles * chunks * 2,
        (warps * 8 * units * size + stored) / SHARED_RATE,
        0,
        most,
        16 * row,
        stored + 16,
    )


def backward_cluster(units, size, variant, cluster):
    values = 64 // size
    tiles_of_warp, _, *_, cells, most = BACKWARD[size][variant]
    own = ceil(units, cluster * 8) * 8
    warps, tiles, chunks = ceil(own, cells * 4), ceil(cluster * own, 16), ceil(4 * own, values)
    stored = max(0, ceil(tiles, warps) - tiles_of_warp) * warps * chunks * 1024
    parts, row = cluster * own * 8 * 4, 64 * (chunks | 1)
    return Step(
        tiles * chunks * 2,
        (2 * parts + warps * 8 * 4 * own * size + stored) / SHARED_RATE,
        0,
        most,
        2 * parts + 16 * row,
        stored + 16,
    )


def over_grid(depth, size, tiles, in_registers):
    chunks = ceil(ceil(depth, 64 // size), 8)
    stored = 8 * tiles * max(0, chunks - in_registers) * 1024
    sums = 8 * tiles * 512
    return Step(8 * tiles * chunks * 2, (2 * sums + stored) / SHARED_RATE, 8 * depth * size, 4,
                sums, stored)  # fmt: skip


class Plan(NamedTuple):
    kind: str
    blocks: int
    forward: Step
    backward: Step


def plan(units, size):
    for most, variant, cluster in RULES[size]:
        if units <= most:
            steps = (f(units, size, variant, cluster) for f in (forward_cluster, backward_cluster))
            return Plan("cluster" if cluster > 1 else "block", cluster, *steps)
    if units > GRID_MOST[size]:
        return None
    steps = over_grid(units, size, 4, 4), over_grid(4 * units, size, 1, 16)
    return Plan("grid", ceil(units, 16), *steps)


def recurrence(plan, step, batch):
    """(seconds of a timestep of all rows at least, with the hand-off as guessed), unmasked."""
    resident = PROCESSORS // plan.blocks
    for tiles in (1, 2, 4):
        if tiles > step.most_tiles or tiles * step.bytes_of_tile + step.fixed_bytes > SHARED_BYTES:
            break
        slots, at_once = 8 * tiles, min(resident, ceil(batch, 8 * tiles))
        if ceil(batch, slots) <= resident:
            break
    waves = math.ceil(batch / (slots * at_once))
    busy = slots // 8 * max(step.multiply, step.shared) / CLOCK
    l2 = slots // 8 * at_once * plan.blocks * step.l2 / L2
    return waves * max(busy, l2), waves * (max(busy, l2) + HAND_OFF[plan.kind])


def timestep(units, size, batch, training):
    """(at least, with the hand-off as guessed), in seconds; D = U; None: not these kernels'."""
    chosen = plan(units, size)
    if chosen is None:
        return None
    gates, own = 16 * units, size * units  # bytes: 4 values of float32, one of an operand
    product = 2 * 4 * units * units * batch / TENSOR[size]
    first = max(product, batch * (own + gates) / MEMORY)  # x.W
    saved = 20 * units if training else 0
    memory = batch * (gates + own + saved) / MEMORY
    at_least, guessed = recurrence(chosen, chosen.forward, batch)
    total = [first + max(at_least, memory), first + max(guessed, memory)]
    if training:
        memory = batch * (44 * units) / MEMORY
        at_least, guessed = recurrence(chosen, chosen.backward, batch)
        # dX, dW and dR, each of which reads dG again.
        rest = 3 * max(product, batch * (gates + own) / MEMORY)
        total = [total[0] + max(at_least, memory) + rest, total[1] + max(guessed, memory) + rest]
    return tuple(total)


def table(size):
    lines = ["| U | runs on | " + " | ".join(f"B = {batch}" for batch in BATCHES) + " |"]
    lines.append("|---" * (2 + len(BATCHES)) + "|")
    for units in UNITS:
        chosen = plan(units, size)
        if chosen is None:
            lines.append(f"| {units} | the generic kernels |" + " - |" * len(BATCHES))
            continue
        where = {"block": "a block", "cluster": f"clusters of {chosen.blocks}"}
        cells = []
        for batch in BATCHES:
            forward, training = (timestep(units, size, batch, t) for t in (False, True))
            cells.append(" / ".join(f"{1e6 * a:.2f}-{1e6 * b:.2f}" for a, b in (forward, training)))
        name = where.get(chosen.kind, f"groups of {chosen.blocks}")
        lines.append(f"| {units} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pieces():
    """Of 8 slots in one step, forward / backward: what each block, and the L2 cache, is busy."""
    lines = [
        "| U | dtype | multiply | shared memory | L2 cache, for each group |",
        "|---|---|---|---|---|",
    ]
    for size, name in ((2, "16 bits"), (4, "tf32")):
        for units in UNITS:
            chosen = plan(units, size)
            if chosen is None:
                continue
            both = (chosen.forward, chosen.backward)
            multiply, shared = (
                " / ".join(f"{1e6 * getattr(step, what) / CLOCK:.2f}" for step in both)
                for what in ("multiply", "shared")
            )
            l2 = " / ".join(f"{1e6 * chosen.blocks * step.l2 / L2:.2f}" for step in both)
            l2 = l2 + " us" if chosen.kind == "grid" else "-"
            lines.append(f"| {units} | {name} | {multiply} us | {shared} us | {l2} |")
    return "\n".join(lines)


def tables():
    return f"{pieces()}\n\n16 bits:\n\n{table(2)}\n\ntf32:\n\n{table(4)}\n"


if __name__ == "__main__":
    print(tables(), end="")
