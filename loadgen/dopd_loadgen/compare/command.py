"""`dopd compare`: policies on the same arrivals in virtual time. Consumes the command line; prints and writes it.

Exit codes: 0; 2 for what cannot be run or read; 130 after Ctrl-C, when what was finished is shown all the same.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

from dopd.errors import ConfigError, LoadError
from dopd.obs.log import logs_from
from dopd_loadgen.compare import asked, result, table
from dopd_loadgen.compare.asked import Asked
from dopd_loadgen.compare.campaign import Campaign
from dopd_loadgen.compare.crew import Crashed, crew
from dopd_loadgen.compare.result import Comparison
from dopd_loadgen.compare.shown import shown
from dopd_loadgen.compare.tasks import perform
from dopd_loadgen.compare.wording import grounds
from dopd_loadgen.report.files import write_whole


def main(argv: Sequence[str]) -> int:
    """Run one comparison, or show one that was written before."""
    args = asked.parser().parse_args(argv)
    try:
        with logs_from("warning"):
            if args.from_file is not None:
                comparison = result.read(args.from_file)
            else:
                comparison = compared(asked.asked(args), args.jobs)
            _finish(comparison, args)
    except (LoadError, ConfigError, Crashed) as error:
        print(f"dopd compare: {error}", file=sys.stderr)
        return 2
    return 130 if comparison.interrupted and args.from_file is None else 0


def compared(wanted: Asked, jobs: int) -> Comparison:
    """Run it. Broken off with Ctrl-C, what was finished; a second Ctrl-C ends all. Raises LoadError, ConfigError."""
    campaign: Campaign | None = None
    try:
        with crew(perform, jobs) as work, shown() as tell:
            campaign = Campaign(wanted.wanted, wanted.specs, wanted.settings, work, tell)
            campaign.run()
    except KeyboardInterrupt:
        if campaign is None or not campaign.rows:
            raise
        print("dopd compare: broken off; this was finished:", file=sys.stderr)
        return campaign.comparison(interrupted=True)
    return campaign.comparison()


def _finish(comparison: Comparison, args: Namespace) -> None:
    """Figures are written before pictures are drawn: one that fails costs no figure."""
    if args.json is not None:
        result.write(comparison, args.json)
    table.show(comparison)
    if args.html is None and args.plots is None:
        return
    from dopd_loadgen.compare.page import page
    from dopd_loadgen.compare.pictures import pictures
    from dopd_loadgen.report.canvas import png, svg  # matplotlib, half a second that not everybody needs

    drawn = {ground: pictures(comparison, *ground) for ground in grounds(comparison)}
    if args.html is not None:
        write_whole(args.html, page(comparison, drawn).encode())
    if args.plots is not None:
        for picture in (one for some in drawn.values() for one in some):
            write_whole(args.plots / f"{picture.name}.png", png(picture))
            write_whole(args.plots / f"{picture.name}.svg", svg(picture))
