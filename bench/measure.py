"""One case and pass: checks every peer's result, times them all, makes the CSV's rows."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import peers
from cases import Case, Data, make_data
from timing import estimate, interleave

CONTROL_LIMIT = 0.05
ERROR_LIMIT = 1e-3  # float32 over some hundred steps reaches 1e-5; a wrong gate order reaches 1
ROUNDS, ROUNDS_SLOW = 30, 8
SLOW_SECONDS = 0.020  # where the fastest peer takes so long, there are fewer rounds

Loaded = dict[str, peers.Peer]
Log = Callable[[str], None]


def load_peers(names: list[str], threads: int, log: Log) -> Loaded:
    """Those that are installed, by name, and always the control; all, if none is named."""
    if unknown := [name for name in names if name not in peers.REGISTRY]:
        raise ValueError(f"unknown peer {unknown[0]}; peers: {', '.join(peers.REGISTRY)}")
    loaded = {peers.CONTROL: peers.load(peers.CONTROL, threads)}
    for name in names or peers.REGISTRY:
        try:
            loaded[name] = peers.load(name, threads)
        except ImportError as missing:
            log(f"{peers.TITLES[name]} is skipped: not installed ({missing})")
    return loaded


def check(case: Case, data: Data, pass_name: str, loaded: Loaded, log: Log):
    """The calls that compute the right thing, and their errors, by name of the peer."""

    def result(peer):
        call, decode = peer.prepare(case, data, pass_name)
        return call, decode(call())

    oracle = peers.load(peers.CONTROL, loaded[peers.CONTROL].threads)
    oracle.dtype = "float64"
    expected = result(oracle)[1]
    calls, errors = {}, {}
    for name, peer in {**loaded, peers.CONTROL_AGAIN: loaded[peers.CONTROL]}.items():
        reason = peer.refuses(case, data, pass_name)
        if reason is None:
            calls[name], values = result(peer)
            errors[name] = peers.error(values, expected, data.mask)
            if not errors[name] <= ERROR_LIMIT:
                reason = f"[red]its result is wrong, relative error {errors[name]:.1e}[/]"
                del calls[name]
        if reason:
            log(f"{case.name} {pass_name} without {peers.TITLES.get(name, name)}: {reason}")
    return calls, errors


def measure(
    case: Case,
    pass_name: str,
    loaded: Loaded,
    rounds: int | None,
    retries: int,
    log: Log,
    on_round: Callable[[int, int], None],
) -> list[dict]:
    """CSV rows of one case and pass, without the limits, the memory and what holds for all.

    Args:
        rounds: None: ROUNDS or ROUNDS_SLOW. retries: how often to measure again, with twice the
            rounds, while the control fails. on_round: called with the rounds done and to do.
    """
    gc.collect()  # the case before: Keras' layers and traced functions are cycles
    data = make_data(case)
    calls, errors = check(case, data, pass_name, loaded, log)
    estimates = {name: estimate(call) for name, call in calls.items()}
    rounds = rounds or (ROUNDS if min(estimates.values()) < SLOW_SECONDS else ROUNDS_SLOW)
    for attempt in range(retries + 1):
        count = rounds * 2**attempt
        samples = interleave(calls, estimates, count, attempt, on_round)
        median = {name: float(np.median(values)) for name, values in samples.items()}
        control = median[peers.CONTROL_AGAIN] / median[peers.CONTROL] - 1
        if abs(control) <= CONTROL_LIMIT:
            break
    shape = {
        name: getattr(case, name)
        for name in ("group", "batch", "timesteps", "input_dim", "units", "directions")
    }
    flops = case.flops(data.valid_steps, pass_name)
    return [
        shape
        | {
            "case": case.name,
            "pass": pass_name,
            "valid_steps": data.valid_steps,
            "valid_fraction": round(data.valid_steps / (case.batch * case.timesteps), 4),
            "peer": name,
            "version": loaded[name.removesuffix("_again")].version,
            "rounds": len(values),
            "median_ms": round(median[name] * 1e3, 5),
            "low_ms": round(float(np.percentile(values, 25)) * 1e3, 5),  # the quartiles
            "high_ms": round(float(np.percentile(values, 75)) * 1e3, 5),
            "best_ms": round(min(values) * 1e3, 5),
            "gflops": round(flops / median[name] / 1e9, 3),
            "control": round(control, 4),
            "void": int(abs(control) > CONTROL_LIMIT),
            "error": f"{errors[name]:.1e}",
        }
        for name, values in samples.items()
    ]
