"""`--assert-attainment`: whether a run was good enough, as an exit code. Consumes a `Summary`."""

import sys
from argparse import ArgumentTypeError

from dopd_loadgen.report.summary import Summary
from dopd_loadgen.report.wording import cut_percent, percent


def verdict(summary: Summary, wanted: float, label: str = "") -> int:
    """0 if the joint attainment is `wanted` or more, else 1, and stderr says by how much it was missed."""
    missed = shortfall(summary, wanted)
    if missed:
        print(f"dopd-loadgen: {label}: {missed}" if label else f"dopd-loadgen: {missed}", file=sys.stderr)
    return int(bool(missed))


def shortfall(summary: Summary, wanted: float) -> str:
    """What is missing to the wanted attainment, empty if nothing is; a run without a request has shown nothing."""
    figures, joint = summary.figures, summary.figures.attainment.joint
    if joint is None:
        return f"an attainment of {wanted * 100:g} % is wanted, and no request was due in the measured window"
    if joint >= wanted:
        return ""
    return (
        f"attainment is {percent(joint)} ({figures.good:,} of {figures.requests:,}), "
        f"{wanted * 100 - cut_percent(joint):.2f} points below the {wanted * 100:g} % that are wanted"
    )


def share(text: str) -> float:
    """For argparse: a number above 0, up to 1. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{text!r}: give a share above 0, up to 1, such as 0.99")
    return value
