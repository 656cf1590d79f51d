from __future__ import annotations

import json
import math
from pathlib import Path

from loadtests.report import Check, Report, Table


def test_a_report_is_written_as_it_was_told_with_its_plots(tmp_path: Path) -> None:
    report = Report("any", tmp_path / "reports", "two slots")
    report.say("First.")
    picture = report.picture("-plot.png")
    report.show(Table("Rates", ("server", "req/s"), [["ours", "1"]]))
    report.check([Check.at_most("p99 ms", math.nan, 2.0)])
    report.write(rate=math.nan)
    [document], [markdown] = (list(picture.parent.glob(f"any-*.{end}")) for end in ("json", "md"))
    title, *blocks = markdown.read_text().rstrip().split("\n\n")
    assert title == f"{report.title}:"
    assert blocks == [
        "First.",
        f"![{picture.stem}]({picture.name})",
        "| server | req/s |\n| --- | ---: |\n| ours | 1 |",
        "p99 ms: nan (goal: at most 2: MISSED)",
    ]
    told = json.loads(document.read_text())
    assert (told["setting"], told["rate"], len(told["missed"])) == ("two slots", None, 1)
