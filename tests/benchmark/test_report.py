"""Tables and plots, from rows alone."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from aloe.benchmark import report, statistics
from aloe.benchmark.ablations import question_section
from aloe.benchmark.critics import critics_section
from aloe.benchmark.overview import OVERVIEW, overview_section
from aloe.benchmark.report import replace_section, write_report
from aloe.benchmark.results import COLUMNS, PLAIN, Results
from aloe.benchmark.suites import ABLATION, QUESTIONS, find_suite
from aloe.benchmark.tables import check_comparable, difference, methods_of, origin_section, suite_section

ROOT = Path(__file__).parents[2]


REPETITIONS = statistics.REPETITIONS  # of the published intervals


@pytest.fixture(autouse=True)
def fewer_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two seeds the resamples are four, so that 200 reach both ends as surely as 2000."""
    monkeypatch.setattr(statistics, "REPETITIONS", 200)


SUCCESSES = {"aloe": (90, 70), "sft": (40, 60)}  # of 100 episodes, at the last round, by seed


def rows(more: tuple[str, ...] = ("disturbance",)) -> list[dict]:
    made = []
    for method, last in SUCCESSES.items():
        for seed in (0, 1):
            for index, successes in ((0, 30), (1, last[seed])):
                for measurement in (PLAIN, *more):
                    made.append(
                        {
                            "suite": "small",
                            "observations": "state",
                            "method": method,
                            "seed": seed,
                            "round": index,
                            "measurement": measurement,
                            "episodes": 10 + 30 * index,
                            "env_steps": 100,
                            "human_steps": 200 * index,
                            "takeovers": 3 * index,
                            "successes": successes if measurement == PLAIN else 20,
                            "evaluation_episodes": 100,
                            "steps_to_success": 25.0,
                            "throughput": 10.0 * successes,
                            "by_task": None,
                            "collecting_seconds": 600.0,
                            "training_seconds": 900.0,
                            "evaluation_seconds": 300.0,
                            "shared_seconds": 1800.0 if index == 0 else 600.0,
                            "config_hash": "abc",
                            "start_hash": "abc",
                            "commit": "1234567",
                            "machine": "2 cores",
                            "trust": None,
                            "ranking": None,
                        }
                    )
    return made


def table(more: tuple[str, ...] = ("disturbance",)) -> pd.DataFrame:
    return pd.DataFrame(rows(more)).astype(COLUMNS)


def test_the_section_has_the_figures_that_follow_from_the_rows():
    section = suite_section(table(), "benchmark-small.png")
    # success 90 and 70 of 100: mean 80, resamples from 70 to 90; 10 * (90 + 70) / 2 = 800 an hour; perturbed 20 of 100
    assert "| `aloe` | 2 | 80 (70 to 90) | 80 | 800 | 40 | 200 | - | 20 (20 to 20) | - |" in section
    assert "| `sft` | 2 | 50 (40 to 60) | 50 | 500 | 40 | 200 | - | 20 (20 to 20) | - |" in section
    # paired: 90 - 40 = 50 and 70 - 60 = 10, so 30, from 10 to 50; every seed of aloe beats every seed of sft
    # after as many human steps, 200 for both, the same; under disturbance all are equal; unseen starts were not measured
    against = "| `sft` | 2 | +30 (+10 to +50) | 1.00 (1.00 to 1.00) | +30 (+10 to +50) | +0 (+0 to +0) | - |"
    assert against in section
    assert "Observations: **state**" in section
    assert "    aloe benchmark small --methods sft aloe --seeds 0 1\n    aloe benchmark-report small" in section
    assert "Commit 1234567; 2 cores." in section
    assert "| `aloe` | 1 | 1 | plain | 40 | 200 | 3 | 70 of 100 | 25 | 700 |" in section
    assert "| `aloe` | 1 | 1 | disturbance | 40 | 200 | 3 | 20 of 100 | 25 | 700 |" in section


def test_methods_are_set_side_by_side_after_as_many_of_the_humans_steps():
    busier = table(())
    busier.loc[(busier["method"] == "aloe") & (busier["round"] == 1), "human_steps"] = 800
    # sft ends after 200 steps, at 40 and 60; there, a quarter of its way, aloe is at 30 + 60 / 4 = 45 and 30 + 40 / 4 = 40
    assert "| `sft` | 2 | +30 (+10 to +50) | 1.00 (1.00 to 1.00) | -7 (-20 to +5) |" in suite_section(busier, None)


def test_where_one_policy_has_several_tasks_success_in_each_is_shown():
    told = rows(())
    for row in told:
        lifted = row["successes"] // 2  # the others pushed; each task has half of the 100 episodes
        row["by_task"] = json.dumps({"push": [row["successes"] - lifted, 50], "lift": [lifted, 50]})
    section = suite_section(pd.DataFrame(told).astype(COLUMNS), "x.png")
    assert "| method | seeds | lift | push |" in section
    assert "| the clone | 2 | 30 | 30 |" in section  # 15 of 50 in each, on both seeds
    assert "| `aloe` | 2 | 80 | 80 |" in section  # 45 and 35 of 50
    assert "| `sft` | 2 | 50 | 50 |" in section
    assert "lift" not in suite_section(table(), "x.png")


def test_what_is_not_known_of_single_tasks_is_left_out():
    told = rows()
    for row in told:  # kept since a newer version: not of the start, nor of seed 1; and of a perturbation first
        if (row["method"], row["seed"], row["round"]) == ("aloe", 0, 1):
            row["by_task"] = json.dumps({"push": [50, 50], "lift": [40, 50]})
    section = suite_section(pd.DataFrame(told).astype(COLUMNS), "x.png")
    assert "| method | seeds | lift | push |\n| --- | --- | --- | --- |\n| `aloe` | 1 | 80 | 100 |\n\n" in section
    assert "the clone |" not in section
    perturbed = [row | {"by_task": None} if row["measurement"] == PLAIN else row for row in told]
    assert "| lift |" not in suite_section(pd.DataFrame(perturbed).astype(COLUMNS), "x.png")


def test_hours_count_a_common_start_once_a_seed():
    # without perturbed rows: 2 methods x 2 seeds x 2 rounds of 1800 s are 14,400 s; a start is 1800 + 600 s, and of
    # the four starts two were only copied: 14,400 - 4800 = 9600 s = 2.67 h
    assert "4 cells, 2.7 hours of one core." in suite_section(table(()), "x.png")


def test_hours_count_the_start_that_a_variant_made_for_itself():
    # as above, but sft has starts of its own: none of the four was only copied, so all 14,400 s = 4.0 h
    own = table(()).assign(suite=ABLATION)
    own.loc[own["method"] == "sft", "start_hash"] = "def"
    assert "4 cells, 4.0 hours of one core." in origin_section(own)


def test_cells_of_a_seed_whose_start_was_made_twice_are_not_set_side_by_side():
    other = table()
    mine = (other["method"] == "sft") & (other["seed"] == 1) & (other["round"] == 0)
    other.loc[mine & (other["measurement"] == "disturbance"), "throughput"] += 0.5
    with pytest.raises(ValueError, match=r"seed 1 of small: aloe and sft did not begin alike \(disturbance\)"):
        check_comparable(other)
    other.loc[mine, "start_hash"] = "def"  # a start of its own, as variants of the ablations may have
    assert check_comparable(other.assign(suite=ABLATION)) == 1


def test_methods_stand_in_the_order_of_the_suites_with_unknown_ones_last():
    names = pd.DataFrame({"method": ["zero-fill", "aloe", "sft", "aloe-in-sample"]})
    assert methods_of(names) == ["sft", "aloe", "aloe-in-sample", "zero-fill"]


def test_cells_with_different_budgets_are_not_set_side_by_side():
    short = table()
    short = short[~((short["method"] == "sft") & (short["seed"] == 1) & (short["round"] == 1))]
    with pytest.raises(ValueError, match=r"0 to 1 rounds; .* aloe benchmark small --methods sft --seeds 1"):
        check_comparable(short)
    mixed = table()
    mixed.loc[0, "evaluation_episodes"] = 50
    with pytest.raises(ValueError, match="differ in evaluation_episodes"):
        check_comparable(mixed)


def test_the_report_fills_its_section_and_leaves_the_rest_of_the_page(tmp_path):
    Results(tmp_path / "results", "small").add(rows())
    page = tmp_path / "results.md"
    page.write_text("before\n\n<!-- benchmark:small -->\nold\n<!-- /benchmark -->\n\nafter\n")
    assert write_report(["small"], tmp_path / "results", page) == [page, tmp_path / "benchmark-small.png"]
    text = page.read_text()
    assert text.startswith("before\n\n<!-- benchmark:small -->\n\nObservations")
    assert text.endswith("</details>\n\n<!-- /benchmark -->\n\nafter\n")
    assert "old" not in text
    assert (tmp_path / "benchmark-small.png").read_bytes().startswith(b"\x89PNG")
    write_report(["small"], tmp_path / "results", page)
    assert page.read_text() == text


def test_ablations_have_a_table_for_each_question_and_no_curves(tmp_path):
    variants = {"sft": "zero-tail"}
    mine = [
        row | {"suite": ABLATION, "method": variants.get(row["method"], row["method"])} for row in rows(("choice",))
    ]
    Results(tmp_path, ABLATION).add(mine)
    page = tmp_path / "results.md"
    names = [ABLATION, *(f"{ABLATION} {question}" for question in QUESTIONS)]
    page.write_text("".join(f"<!-- benchmark:{name} -->\n<!-- /benchmark -->\n" for name in names))
    assert write_report([ABLATION], tmp_path, page) == [page]
    sections = dict(re.findall(r"<!-- benchmark:(.*?) -->(.*?)<!-- /benchmark -->", page.read_text(), re.DOTALL))
    # success of the default 90 and 70, of the variant 40 and 60: 50 and 10 points less, each beside the default of its seed
    default = "| `aloe` | 2 | 30 | 80 (70 to 90) | - | 20 (20 to 20) |" + " - |" * 7
    assert default in sections[f"{ABLATION} ensemble"]
    assert sections[f"{ABLATION} ensemble"].count("\n| ") == 3  # head, rule and the default: no other has been played
    tail = "| `zero-tail` | 2 | 30 | 50 (40 to 60) | -30 (-50 to -10) | 20 (20 to 20) |" + " - |" * 7
    assert f"{default}\n{tail}" in sections[f"{ABLATION} tail"]
    assert "    aloe benchmark ablations-state --methods aloe zero-tail --seeds 0 1\n" in sections[ABLATION]
    assert not list(tmp_path.glob("*.png"))


def test_a_question_of_the_ablations_names_the_critics_figures():
    said = question_section(judged(), "tail")
    assert (
        "| rank correlation of V | bias of V | bias in the starts | error of V | steps from drop to failure "
        "| samples above executed |" in said
    )
    # correlation 0.9 and 0.7; bias in the starts 0.5 and -0.1; samples 0.25 above executed in both
    assert (
        "| `aloe` | 2 | 30 | 80 (70 to 90) | - | - | 0.80 (0.70 to 0.90) | - | +0.20 (-0.10 to +0.50) | - | - "
        "| +0.25 (+0.25 to +0.25) | - |" in said
    )


def test_the_overview_has_every_method_in_every_suite_beside_the_default(tmp_path):
    Results(tmp_path, "small").add(rows(()))
    lone = [row | {"suite": "other", "method": "qc"} for row in rows(()) if (row["method"], row["seed"]) == ("sft", 1)]
    mine = [row | {"suite": "other"} for row in rows(()) if row["method"] == "aloe"]
    Results(tmp_path, "other").add([*lone, *mine])
    Results(tmp_path, ABLATION).add([row | {"suite": ABLATION} for row in rows(())])  # has tables of its own
    page = tmp_path / "results.md"
    page.write_text("<!-- benchmark:overview -->\n<!-- /benchmark -->\n")
    assert write_report([OVERVIEW], tmp_path, page) == [page, tmp_path / "benchmark-overview.png"]
    assert "](benchmark-overview.png)" in page.read_text()
    first, _, second = page.read_text().partition("How far `aloe` is ahead")
    head = "| method | `other` | `small` |\n| --- | --- | --- |\n"
    assert (
        f"{head}| `sft` | - | 50 (40 to 60), 2 |\n| `qc` | 60, 1 | - |\n| `aloe` | 80 (70 to 90), 2 | 80 (70 to 90), 2 |"
        in first
    )
    # 90 - 40 and 70 - 60; of seed 1, the only one of qc, 70 - 60
    assert f"{head}| `sft` | - | +30 (+10 to +50) |\n| `qc` | +10 | - |\n\n" in second


def test_the_overview_says_how_far_the_default_is_ahead_after_every_round():
    told = table().replace({"method": {"sft": "filtered"}})
    longer = told[told["round"] == 1].assign(round=2)
    longer.loc[longer["method"] == "aloe", "successes"] = 100
    section = overview_section({"long": pd.concat([told, longer]), "small": told}, "x.png")
    # 90 - 40 and 70 - 60, then 100 - 40 and 100 - 60
    assert section.endswith(
        "| suite | method | round 1 | round 2 |\n| --- | --- | --- | --- |\n"
        "| `long` | `filtered` | +30 (+10 to +50) | +50 (+40 to +60) |\n"
        "| `small` | `filtered` | +30 (+10 to +50) | - |"
    )


def test_the_page_of_a_method_says_what_it_came_to_in_every_suite(tmp_path):
    Results(tmp_path / "results", "small").add(rows())
    page, other = tmp_path / "docs" / "results.md", tmp_path / "docs" / "methods" / "sft.md"
    other.parent.mkdir(parents=True)
    page.write_text("<!-- benchmark:overview -->\n<!-- /benchmark -->\n")
    other.write_text("how it works\n\n<!-- benchmark:method sft -->\n<!-- /benchmark -->\nmore\n")
    assert other in write_report([OVERVIEW], tmp_path / "results", page)
    text = other.read_text()
    assert text.startswith("how it works\n\n<!-- benchmark:method sft -->\n\nSuccess")
    command = "`aloe benchmark small --methods sft aloe --seeds 0 1`"
    assert f"| `small` | 50 (40 to 60) | +30 (+10 to +50) | {command} |" in text
    assert "](../results.md#the-benchmark)" in text
    assert text.endswith("<!-- /benchmark -->\nmore\n")
    other.write_text("<!-- benchmark:method aloe -->\n<!-- /benchmark -->\n")
    write_report([OVERVIEW], tmp_path / "results", page)
    assert "| `small` | 80 (70 to 90) | `aloe benchmark small --methods aloe --seeds 0 1` |" in other.read_text()
    other.write_text("<!-- benchmark:method qc -->\n<!-- /benchmark -->\n")
    with pytest.raises(ValueError, match="qc has no results; play it first"):
        write_report([OVERVIEW], tmp_path / "results", page)


def test_a_page_without_the_section_is_named_and_left_alone(tmp_path):
    Results(tmp_path, "small").add(rows())
    page = tmp_path / "results.md"
    page.write_text("<!-- benchmark:other -->\n<!-- /benchmark -->\n")
    with pytest.raises(ValueError, match="has no place for small; add the lines <!-- benchmark:small -->"):
        write_report(["small"], tmp_path, page)
    assert not (tmp_path / "benchmark-small.png").exists()
    with pytest.raises(ValueError, match=r"there is no .*missing.md"):
        write_report(["small"], tmp_path, tmp_path / "missing.md")


def test_a_section_ends_at_its_own_end(tmp_path):
    text = "<!-- benchmark:a -->1<!-- /benchmark --> between <!-- benchmark:b -->2<!-- /benchmark -->"
    assert replace_section(text, "b", "new", tmp_path) == (
        "<!-- benchmark:a -->1<!-- /benchmark --> between <!-- benchmark:b -->\n\nnew\n\n<!-- /benchmark -->"
    )


def test_a_section_without_its_own_end_does_not_take_the_next_along(tmp_path):
    text = "<!-- benchmark:a -->1 between <!-- benchmark:b -->2<!-- /benchmark -->"
    with pytest.raises(ValueError, match="has no place for a; add the lines"):
        replace_section(text, "a", "new", tmp_path)


def test_seeds_of_a_method_under_different_configs_are_not_averaged():
    mixed = table()
    mixed.loc[(mixed["method"] == "aloe") & (mixed["seed"] == 1), "config_hash"] = "def"
    with pytest.raises(ValueError, match="seeds of aloe in small were played under different configs"):
        check_comparable(mixed)


def test_methods_without_a_seed_in_common_are_not_paired():
    apart = table()
    apart.loc[apart["method"] == "sft", "seed"] += 2
    assert "| `sft` | 0 | - | 1.00 (1.00 to 1.00) |" in suite_section(apart, "x.png")
    apart.loc[(apart["method"] == "sft") & (apart["seed"] == 2), "seed"] = 0
    assert "| `sft` | 1 | +50 | 1.00 (1.00 to 1.00) |" in suite_section(apart, "x.png")  # of seed 0 alone: 90 - 40


def test_an_ablation_with_a_start_of_its_own_shows_its_clone_and_is_set_beside_the_default_of_its_seed():
    own = table().replace({"method": {"sft": "horizon-1"}}).assign(suite=ABLATION)
    mine = own["method"] == "horizon-1"
    own.loc[mine, "start_hash"] = "def"
    own.loc[mine & (own["round"] == 0) & (own["measurement"] == PLAIN), "successes"] = 40
    said = question_section(own, "horizon")
    assert "| `aloe` | 2 | 30 | 80 (70 to 90) | - |" in said
    assert "| `horizon-1` | 2 | 40 | 50 (40 to 60) | -30 (-50 to -10) |" in said  # 40 - 90 and 60 - 70


def test_a_suite_that_changed_does_not_stand_beside_its_older_rows():
    changed = table()
    changed.loc[changed["method"] == "sft", "start_hash"] = "def"
    with pytest.raises(ValueError, match=r"rows of small began in different ways .*sft.*; play the older cells anew"):
        check_comparable(changed)


def judged() -> pd.DataFrame:
    """`table` with critics of aloe in round 1, judged and ranked; the critics of seed 1 were warned of."""
    found = table()
    mine = (found["method"] == "aloe") & (found["measurement"] == PLAIN)
    for seed, (correlation, bias, warnings) in enumerate([(0.9, 0.5, []), (0.7, -0.1, ["too high"])]):
        numbers = {"episodes": 20, "value_rank_correlation": correlation, "start_bias": bias}
        numbers |= {"q_samples": -0.5, "q_executed": -0.75}
        text = json.dumps({"trust": numbers, "warnings": warnings})
        found.loc[mine & (found["seed"] == seed) & (found["round"] == 1), "trust"] = text
        for version in (0, 1):
            predicted = [version, 1 - version][seed]  # seed 0 in the right order, seed 1 in the wrong one
            values = dict.fromkeys(("aloe", "monte-carlo", "fqe"), predicted)
            said = {"version": version, "success": 0.5 + version / 10, "return": -1.0 + version, **values}
            where = mine & (found["seed"] == seed) & (found["round"] == version)
            found.loc[where, "ranking"] = json.dumps(said | {"steps": 500, "seconds": 60.0})
    return found


def test_the_critics_figures_follow_from_the_rows():
    text = "\n".join(critics_section(judged()))
    assert "judged on 20 fresh episodes" in text
    # the same figures; one seed of two was warned of
    row = (
        "| `aloe` | 1 | 2 | 0.80 (0.70 to 0.90) | - | - | +0.20 (-0.10 to +0.50) | - | - | - | - | - | - "
        "| +0.25 (+0.25 to +0.25) | - | - | 1 |"
    )
    assert row in text
    # Spearman 1 and -1; the best version is picked once, and once the worst
    assert "| `aloe` | `fqe` | return | 2 | 2 | 0.00 (-1.00 to 1.00) | 0.50 (0.00 to 1.00) | - |" in text
    # and whoever took the later version for the better one was right both times
    assert "| `aloe` | `newest` | return | 2 | 2 | 1.00 (1.00 to 1.00) | 0.00 (0.00 to 0.00) | - |" in text
    assert critics_section(table()) == []


def test_critics_that_were_judged_or_ranked_by_other_options_do_not_stand_in_one_table():
    for column, old, new, message in (
        ("trust", '"episodes": 20', '"episodes": 40', "20 and 40 fresh episodes"),
        ("ranking", '"steps": 500', '"steps": 1000', "500 and 1000 steps of ranking critics"),
    ):
        found = judged()
        mine = found[column].notna() & (found["seed"] == 1)
        found.loc[mine, column] = found.loc[mine, column].str.replace(old, new)
        with pytest.raises(ValueError, match=f"{message}.*another --results"):
            critics_section(found)


def test_the_command_of_a_ranking_stands_beside_its_figures():
    assert "    aloe benchmark small --methods aloe --seeds 0 1 --rank\n" in suite_section(judged(), None)
    other = judged()  # sft was ranked, too, but on one seed
    of_aloe = other["ranking"].notna() & (other["seed"] == 1)
    other.loc[(other["method"] == "sft") & (other["seed"] == 1) & (other["measurement"] == PLAIN), "ranking"] = [
        *other.loc[of_aloe, "ranking"]
    ]
    said = suite_section(other, None)
    assert "small --methods sft --seeds 1 --rank\n" in said
    assert "small --methods aloe --seeds 0 1 --rank\n" in said
    assert "--rank" not in suite_section(table(), None)


def test_curves_of_one_panel_are_of_the_same_seeds(tmp_path, monkeypatch):
    fewer = table()
    fewer = fewer[(fewer["method"] != "sft") | (fewer["seed"] == 0)]
    drawn = []
    monkeypatch.setattr(report.plt, "close", drawn.append)
    report.draw_curves(fewer, tmp_path / "x.png")
    (figure,) = drawn
    curves = {
        panel.get_title(): [line.get_label() for line in panel.lines] for panel in figure.axes if panel.get_title()
    }
    assert curves == {"seeds 0 1": ["aloe"], "seeds 0": ["sft", "aloe"]}  # sft beside aloe on its own seed
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sft", "aloe"]
    assert figure.get_suptitle() == "small (state)"


def test_curves_show_many_methods_on_the_seeds_that_they_share(tmp_path, monkeypatch):
    fewer = table()
    qc = fewer[fewer["method"] == "sft"].assign(method="qc")
    more = pd.concat([fewer, qc, fewer[fewer["method"] == "aloe"].assign(seed=lambda r: r.seed + 2)])
    drawn = []
    monkeypatch.setattr(report.plt, "close", drawn.append)
    report.draw_curves(more, tmp_path / "x.png")  # two seeds of three methods, not four of one
    (figure,) = drawn
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sft", "qc", "aloe"]
    assert [panel.get_title() for panel in figure.axes] == ["seeds 0 1", ""], "and no panel for what is shown already"


def test_the_overviews_curves_are_of_the_seeds_that_all_have(tmp_path, monkeypatch):
    fewer = table()
    fewer = fewer[(fewer["method"] != "sft") | (fewer["seed"] == 0)]
    lone = fewer[fewer["method"] == "aloe"].assign(method="qc")  # not drawn here
    drawn = []
    monkeypatch.setattr(report.plt, "close", drawn.append)
    report.draw_overview({"small": fewer, "other": lone}, tmp_path / "x.png")
    (figure,) = drawn
    small, other = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ["small, seeds: 1", "other, seeds: 2"]
    # seed 0 alone: 30 of 100, then 40 and 90
    curves = {line.get_label(): line.get_xydata().tolist() for line in small.lines}
    assert curves == {"sft": [[10, 30], [40, 40]], "aloe": [[10, 30], [40, 90]]}
    assert len({line.get_color() for line in small.lines}) == 2
    assert not other.lines
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sft", "aloe"]


def test_the_readme_says_what_the_results_do(monkeypatch):
    monkeypatch.setattr(statistics, "REPETITIONS", REPETITIONS)
    lines = re.findall(r"\(`([a-z-]+)`\) \| (.*) \|", (ROOT / "README.md").read_text())
    assert len(lines) == 6
    for suite, numbers in lines:
        rows, last = Results(ROOT / "results", suite).read(), find_suite(suite).config.rounds
        found = rows[rows["measurement"] == PLAIN].assign(success=lambda r: 100 * r.successes / r.evaluation_episodes)
        *means, over_filtered, over_dagger = numbers.split(" | ")
        assert over_filtered == difference(rows, "aloe", "filtered", last)
        assert over_dagger == difference(rows, "aloe", "dagger", last)
        seeds, clone, *others = (int(mean) for mean in means)
        for method, said in zip(("filtered", "dagger", "aloe"), others, strict=True):
            cells = found[found["method"] == method]
            assert cells["seed"].nunique() == seeds
            assert said == round(cells.loc[cells["round"] == last, "success"].mean())
            assert clone == pytest.approx(cells.loc[cells["round"] == 0, "success"].mean(), abs=1)
