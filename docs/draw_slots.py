"""Draws docs/slots.png: one padded batch, and the same batch in slots."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

BATCH, TIMESTEPS, SLOTS = 12, 30, 3
PADDING, EDGE = "#e3e3e3", "white"


def slot_plan(lengths, slots):
    """Longest first, each into the slot that is free first: (slot, begin, row) per sequence."""
    free = np.zeros(slots, int)
    plan = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        slot = int(np.argmin(free))
        plan.append((slot, free[slot], row))
        free[slot] += lengths[row]
    return plan, free.max()


def cell(axes, x, y, width, color, text=""):
    axes.add_patch(plt.Rectangle((x, y), width, 1, facecolor=color, edgecolor=EDGE, linewidth=0.8))
    if text:
        axes.text(x + width / 2, y + 0.53, text, ha="center", va="center", fontsize=7)


def main():
    drawn = np.random.default_rng(3).beta(1.3, 2.2, BATCH) * TIMESTEPS
    lengths = np.maximum(1, drawn).astype(int)
    lengths[4] = TIMESTEPS
    colors = plt.get_cmap("tab20")(np.arange(BATCH))
    plan, steps = slot_plan(lengths, SLOTS)

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 6.2), height_ratios=[BATCH, SLOTS + 0.8], layout="constrained"
    )
    for row, length in enumerate(lengths):
        for t in range(TIMESTEPS):
            cell(top, t, row, 1, colors[row] if t < length else PADDING)
    top.set_xlim(0, TIMESTEPS)
    top.set_ylim(BATCH, 0)
    top.set_ylabel("row of the batch")
    top.set_xlabel("timestep")
    top.set_title(
        f"Padded batch: {BATCH} x {TIMESTEPS} = {BATCH * TIMESTEPS} row-steps, "
        f"of which {lengths.sum()} exist (grey: padding)",
        fontsize=10,
    )
    for slot, begin, row in plan:
        for t in range(lengths[row]):
            cell(bottom, begin + t, slot, 1, colors[row])
        bottom.text(
            begin + lengths[row] / 2,
            slot + 0.53,
            f"row {row}",
            ha="center",
            va="center",
            fontsize=8,
        )
    bottom.set_xlim(0, steps)
    bottom.set_ylim(SLOTS, 0)
    bottom.set_ylabel("slot")
    bottom.set_xlabel("step of the worker")
    bottom.set_title(
        f"The same batch in {SLOTS} slots: {steps} steps x {SLOTS} = {steps * SLOTS} row-steps; "
        "a slot that becomes free takes the next sequence",
        fontsize=10,
    )
    for axes in (top, bottom):
        axes.set_yticks(np.arange(BATCH if axes is top else SLOTS) + 0.5)
        axes.set_yticklabels(range(BATCH if axes is top else SLOTS))
        axes.tick_params(length=0, labelsize=8)
        for side in axes.spines.values():
            side.set_visible(False)
    figure.savefig(pathlib.Path(__file__).parent / "slots.png", dpi=130)


if __name__ == "__main__":
    main()
