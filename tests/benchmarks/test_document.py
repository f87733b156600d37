"""What a run says is what was measured: medians of pairs, verdicts, tables, plots and the document they stand in."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.__main__ import PARTS
from benchmarks.aims import AIMS, MISSED, NOT_MEASURED, REACHED, Aim, judge
from benchmarks.document import BLOCKS, Block, block_sizes_table, contenders_table, markdown, plot, render, write
from benchmarks.measure import Comparison, Part, Setting, compare, measured
from benchmarks.results import Results, load, save
from benchmarks.servers import NBDKIT, QEMU, SNAPCTL
from benchmarks.show import figure, ratio
from benchmarks.svg import Group, bars

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "performance.md"
SVG = "{http://www.w3.org/2000/svg}"

# In the second round all were slowed down alike, in the third one of them alone.
READS = Comparison(
    "random-read-4k",
    "random 4 KiB reads, depth 32",
    "op/s",
    [{SNAPCTL: 90_000, QEMU: 30_000}, {SNAPCTL: 30_000, QEMU: 10_000}, {SNAPCTL: 90_000, QEMU: 10_000}],
    missing={NBDKIT: "nbdkit is not installed (Debian has it in nbdkit)"},
    note="a volume of 512M, full",
)


def table(text: str) -> list[list[str]]:
    """The cells of the first table in a text, without the rule below its head."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not row[0].startswith("--")]


def test_a_ratio_is_the_median_of_pairs_of_one_round():
    assert READS.median(SNAPCTL) == 90_000
    assert READS.median(QEMU) == 10_000
    assert READS.ratio(SNAPCTL, QEMU) == 3


def test_every_other_round_is_in_reverse_order_and_the_warm_up_does_not_count():
    order: list[str] = []
    values = iter(range(100))

    def case(name: str) -> float:
        order.append(name)
        return next(values)

    found = compare("n", "w", "s", {"a": lambda: case("a"), "b": lambda: case("b")}, 2, warm_up=True)

    assert "".join(order) == "baabba"
    assert found.rounds == [{"a": 2, "b": 3}, {"a": 5, "b": 4}]
    assert found.contenders == ["a", "b"]


@pytest.mark.parametrize(
    ("aim", "word"),
    [
        (Aim(READS.name, QEMU, 3.0), REACHED),
        (Aim(READS.name, QEMU, 3.01), MISSED),
        (Aim(READS.name, QEMU, 3.0, at_most=True), REACHED),
        (Aim(READS.name, QEMU, 2.99, at_most=True), MISSED),
        (Aim(READS.name, None, 90_000), REACHED),
        (Aim(READS.name, None, 89_999, at_most=True), MISSED),
        (Aim(READS.name, SNAPCTL, 0.34, at_most=True, ours=QEMU), REACHED),
        (Aim(READS.name, NBDKIT, 0.1), NOT_MEASURED),
    ],
)
def test_an_aim_is_reached_by_what_was_measured(aim: Aim, word: str):
    assert judge(aim, READS).word == word


def test_what_was_not_measured_reaches_no_aim_and_says_why():
    aim = Aim(READS.name, NBDKIT, 0.1)

    assert judge(aim, READS).why == "nbdkit is not installed (Debian has it in nbdkit)"
    assert judge(aim, replace(READS, rounds=[], missing={"all": "fio did not end"})).why == "fio did not end"
    assert judge(aim, None)[1:3] == (None, NOT_MEASURED)


def test_a_part_that_fails_is_told_of_and_the_next_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def fails(_setting: Setting) -> list[Comparison]:
        raise OSError("no room")

    where = Setting(tmp_path, quick=True, runs=None, seconds=1, size=1, large=1, bulk=1, mapped=1)
    found = list(measured([Part("one", fails), Part("two", lambda _: [READS])], where))

    assert [(one.name, one.rounds, one.missing) for one in found[:1]] == [("one", [], {"all": "no room"})]
    assert found[1:] == [READS]
    assert capsys.readouterr().err == "one: no room\n"


def test_results_are_the_same_when_they_are_read_again(tmp_path: Path):
    results = Results({"date": "2026-11-22"}, {READS.name: READS})

    save(tmp_path / "build" / "results.json", results)

    assert load(tmp_path / "build" / "results.json") == results


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0123, "0.01"), (1.5, "1.50"), (12.34, "12.3"), (123.4, "123"), (1234567.8, "1,234,568")],
)
def test_a_figure_has_as_many_digits_as_count(value: float, words: str):
    assert figure(value) == words


def test_a_small_ratio_keeps_two_digits():
    assert [ratio(value) for value in (3.14159, 0.5, 0.0999, 0.00412)] == ["x 3.14", "x 0.50", "x 0.10", "x 0.0041"]


def test_a_table_gives_medians_and_ratios_and_says_what_is_not_installed():
    writes = replace(READS, name="w", work="writes", missing={}, rounds=[{SNAPCTL: 10, QEMU: 40, NBDKIT: 20}])

    assert table(contenders_table([READS, writes])) == [
        ["", SNAPCTL, QEMU, NBDKIT],
        ["random 4 KiB reads, depth 32, op/s", "90,000", "10,000 (x 3.00)", "not installed"],
        ["writes, op/s", "10.0", "40.0 (x 0.25)", "20.0 (x 0.50)"],
    ]


def test_markdown_aligns_columns_and_escapes_bars():
    assert markdown(["", "b|c"], [["long word", "1"]]).splitlines() == [
        "|           | b\\|c |",
        "|-----------|-----:|",
        "| long word |    1 |",
    ]


def test_the_block_size_that_is_faster_on_the_whole_is_favoured():
    rates = replace(READS, rounds=[{"4K": 10, "16K": 40, "64K": 20}])
    times = replace(READS, unit="ms", rounds=[{"4K": 10, "16K": 20, "64K": 10}])

    printed = block_sizes_table([rates, times])

    assert "4K x 1.00, 16K x 1.41, 64K x 1.41" in printed
    assert "favour blocks of **16K**" in block_sizes_table([rates, rates])
    assert "favour blocks of **4K**" in block_sizes_table([times, times])


def test_a_plot_is_well_formed_and_draws_every_figure_to_scale():
    drawn = bars("Reads & <writes>", "axis", [Group("one", [("a", 50, "50 ms"), ("b", 200, "200 ms")])])

    root = ET.fromstring(drawn)
    words = [text.text for text in root.iter(f"{SVG}text")]
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect") if float(bar.attrib["width"]) > 11]
    assert {"Reads & <writes>", "axis", "one", "a", "b", "50 ms", "200 ms", "100 %"} <= set(words)
    assert widths[0] * 4 == pytest.approx(widths[1], abs=1)
    assert all(0 <= float(text.attrib["x"]) <= float(root.attrib["width"]) for text in root.iter(f"{SVG}text"))


BLOCK = Block("serving", "", ["random-read-4k"], plot="Serving")


def test_a_plot_of_a_block_has_what_the_block_has():
    drawn = plot(BLOCK, Results({}, {READS.name: READS}))

    words = [text.text for text in ET.fromstring(drawn).iter(f"{SVG}text")]
    assert {READS.work, "90,000 op/s", "10,000 op/s"} <= set(words)
    assert any("longer is better" in str(word) for word in words)


TEXT = """Before.
<!-- bench:environment -->
old
<!-- /bench:environment -->
Between.
<!-- bench:serving -->
older
<!-- /bench:serving -->
<!-- bench:startup -->
kept
<!-- /bench:startup -->
<!-- bench:aims -->
<!-- /bench:aims -->
After.
"""
RESULTS = Results({"date": "2026-11-22"}, {READS.name: READS})


def test_only_what_stands_between_marks_is_written_anew():
    written = render(TEXT, RESULTS, whole=True)

    assert re.sub(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench:\2 -->)", r"\1\3", written, flags=re.DOTALL) == re.sub(
        r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench:\2 -->)", r"\1\3", TEXT, flags=re.DOTALL
    )
    assert "- date: 2026-11-22" in written
    assert "\n    python -m benchmarks.serving\n\n|" in written
    assert "A volume of 512M, full; 3 rounds." in written
    assert "![Serving](plots/serving.svg)" in written
    assert "older" not in written
    assert "kept" in written
    assert render(written, RESULTS, whole=True) == written


def test_the_table_of_aims_has_them_all():
    rows = table(render(TEXT, RESULTS, whole=True).partition("bench:aims")[2])

    assert len(rows) == 1 + len(AIMS)
    assert rows[1] == ["random 4 KiB reads, depth 32", QEMU, "at least 3", "x 3.00", REACHED]
    assert rows[2][3:] == ["nbdkit is not installed (Debian has it in nbdkit)", NOT_MEASURED]
    assert rows[3] == ["random-write-4k", QEMU, "at least 3", "left out of this run", NOT_MEASURED]


def test_a_run_of_some_parts_leaves_blocks_of_others_alone():
    assert "older" in render(TEXT, RESULTS, whole=False)


def test_plots_are_written_beside_the_document(tmp_path: Path):
    document = tmp_path / "performance.md"
    document.write_text(TEXT)

    write(document, RESULTS, whole=True)

    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["serving.svg"]


def test_document_has_the_marks_of_every_block_and_no_others():
    marks = re.findall(r"<!-- (/?)bench:([\w-]+) -->", DOCUMENT.read_text())

    names = [name for end, name in marks if not end]
    assert sorted(names) == sorted(["environment", "aims", *(block.name for block in BLOCKS)])
    assert marks == [mark for name in names for mark in (("", name), ("/", name))]


def test_the_command_of_every_block_is_one_that_measures_it():
    parts = {part.name for part in PARTS}
    for block in BLOCKS:
        module, _, only = block.command.removeprefix("python -m ").partition(" --only ")
        assert (DOCUMENT.parent.parent / f"{module.replace('.', '/')}.py").exists()
        assert not only or only in parts


def test_every_aim_is_among_what_the_document_shows():
    shown = {name for block in BLOCKS for name in block.comparisons}

    assert {aim.name for aim in AIMS} <= shown


def test_plots_of_the_document_are_there_and_well_formed():
    text = DOCUMENT.read_text()
    for path in re.findall(r"\]\((plots/[\w-]+\.svg)\)", text):
        ET.parse(DOCUMENT.parent / path)
