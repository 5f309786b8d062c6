"""The run folder: who may go on with it, what is marked as done, and which measurements count."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aloe.experience.windows import WindowConfig
from aloe.run import RunFolder, new_folder, to_plain, write_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 0
    cameras: tuple[str, ...] = ("top", "wrist")
    inner: Inner = field(default_factory=Inner)


class Interrupted(Exception):  # noqa: N818 - stands for a kill
    """Raised in the middle of things."""


def half_way(result: dict) -> None:
    result["episodes"] = 4
    raise Interrupted


def half_written(folder: Path) -> None:
    (folder / "half").touch()
    raise Interrupted


def test_a_config_is_kept_as_json_gives_it_back(tmp_path):
    config = Config(inner=Inner(path=Path("/a/b")))
    RunFolder.open(tmp_path / "run", config)
    expected = {"seed": 0, "cameras": ["top", "wrist"], "inner": {"rate": 0.1, "path": "/a/b"}}
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == expected == to_plain(config)


def test_the_same_config_goes_on_and_another_is_refused_by_its_differences(tmp_path):
    with RunFolder.open(tmp_path / "run", Config()).stage(0, "sft"):
        pass
    RunFolder.open(tmp_path / "run", Config())
    other = Config(seed=3, inner=Inner(rate=0.2))
    with pytest.raises(ValueError, match=r"seed: 0, now 3; inner\.rate: 0\.1, now 0\.2.*another --output-dir"):
        RunFolder.open(tmp_path / "run", other)
    with pytest.raises(ValueError, match=r"inner\.path: None, now /a"):
        RunFolder.open(tmp_path / "run", Config(inner=Inner(path=Path("/a"))))
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == to_plain(Config())


@dataclass(frozen=True, kw_only=True)
class Training:
    accumulate: int = 1
    batch_size: int = 8


@dataclass(frozen=True, kw_only=True)
class Rounds:
    rounds: int = 2
    improve: Training = field(default_factory=Training)


def test_a_run_goes_on_with_less_memory_and_not_with_another_batch(tmp_path):
    with RunFolder.open(tmp_path, Rounds()).stage(0, "sft"):
        pass
    less = Rounds(improve=Training(accumulate=4))
    RunFolder.open(tmp_path, less)
    assert json.loads((tmp_path / "config.json").read_text()) == to_plain(less)
    with pytest.raises(ValueError, match=r"\(improve\.batch_size: 8, now 4\)"):
        RunFolder.open(tmp_path, Rounds(improve=Training(batch_size=4)))


def test_a_run_goes_on_for_more_rounds_and_not_for_fewer_than_it_has_begun(tmp_path):
    run = RunFolder.open(tmp_path, Rounds())
    with run.stage(2, "collect"):
        pass
    with pytest.raises(ValueError, match="has begun round 2 already; give --rounds 2 or more"):
        RunFolder.open(tmp_path, Rounds(rounds=1))
    assert json.loads((tmp_path / "config.json").read_text())["rounds"] == 2
    RunFolder.open(tmp_path, Rounds(rounds=3))
    assert json.loads((tmp_path / "config.json").read_text())["rounds"] == 3


def test_a_folder_in_which_nothing_was_begun_takes_other_options(tmp_path):
    RunFolder.open(tmp_path, Config())
    RunFolder.open(tmp_path, Config(seed=3))
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3
    (tmp_path / "experience").mkdir()  # a store of its own: what is in it was recorded with these options
    with pytest.raises(ValueError, match="seed: 3, now 4"):
        RunFolder.open(tmp_path, Config(seed=4))


def test_looking_whether_a_run_may_go_on_writes_nothing(tmp_path):
    RunFolder.check(tmp_path / "run", Rounds())
    assert not (tmp_path / "run").exists()
    RunFolder.open(tmp_path / "run", Rounds())
    RunFolder.check(tmp_path / "run", Rounds(rounds=3))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["rounds"] == 2


def test_without_resume_an_existing_run_is_refused(tmp_path):
    RunFolder.open(tmp_path / "run", Config(), resume=False)
    with pytest.raises(ValueError, match="leave out --no-resume"):
        RunFolder.open(tmp_path / "run", Config(), resume=False)


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        RunFolder.open(tmp_path, Config())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_whose_config_was_never_finished_is_taken(tmp_path):
    (tmp_path / "config.json.partial").write_text('{"se')
    RunFolder.open(tmp_path, Config())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_stage_is_done_only_when_its_block_has_ended_well(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(Interrupted), run.stage(2, "critic") as result:
        half_way(result)
    assert run.done(2, "critic") is None
    with run.stage(2, "critic") as result:
        assert run.done(2, "critic") is None
        result["episodes"] = 5
    done = run.done(2, "critic")
    assert done is not None
    assert done["episodes"] == 5
    assert done["seconds"] >= 0
    assert run.done(1, "critic") is None
    assert (tmp_path / "rounds" / "002" / "critic.done.json").exists()


def test_json_is_replaced_as_a_whole(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a" / "b.json", {"x": 2, "y": object()})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": 1}


def test_a_new_folder_replaces_the_old_one_only_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "events") as folder:
        (folder / "old").touch()
    with pytest.raises(Interrupted), new_folder(tmp_path / "events") as folder:
        half_written(folder)
    assert [path.name for path in (tmp_path / "events").iterdir()] == ["old"]
    with new_folder(tmp_path / "events") as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "events").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["events"]


def line(index: int, stage: str, step: int, **values: float) -> dict:
    return {"round": index, "stage": stage, "step": step, **values}


def test_measurements_are_kept_in_their_order(tmp_path):
    run = RunFolder(tmp_path)
    assert run.metrics() == []
    log = run.logger(0, "sft")
    log(0, {"loss": 2.0})
    log(20, {"loss": 1.0})
    run.logger(1, "critic")(0, {"q": -0.5})
    assert run.metrics() == [line(0, "sft", 0, loss=2.0), line(0, "sft", 20, loss=1.0), line(1, "critic", 0, q=-0.5)]


def test_going_on_from_a_checkpoint_drops_what_was_measured_after_it(tmp_path):
    run = RunFolder(tmp_path)
    for index, stage in ((0, "sft"), (1, "critic")):
        log = run.logger(index, stage)
        for step in (0, 20, 40):
            log(step, {"loss": float(step)})
    run.logger(1, "critic", first_step=20)(20, {"loss": -1.0})
    assert run.metrics() == [
        *(line(0, "sft", step, loss=float(step)) for step in (0, 20, 40)),
        line(1, "critic", 0, loss=0.0),
        line(1, "critic", 20, loss=-1.0),
    ]


@pytest.mark.parametrize(
    "torn", ['{"round": 0, "stage": "sft", "st', '{"round": 0, "stage": "sft", "step": 20, "loss": 1.0}']
)
def test_a_line_that_a_kill_cut_short_is_none(tmp_path, torn):
    run = RunFolder(tmp_path)
    run.logger(0, "sft")(0, {"loss": 2.0})
    with run.metrics_file.open("a") as file:
        file.write(torn)  # without the newline that would have ended it
    assert run.metrics() == [line(0, "sft", 0, loss=2.0)]
    run.logger(0, "sft", first_step=20)(20, {"loss": 3.0})
    assert run.metrics() == [line(0, "sft", 0, loss=2.0), line(0, "sft", 20, loss=3.0)]


def test_tensorboard_counts_steps_on_from_round_to_round(tmp_path):
    run = RunFolder(tmp_path)
    for index in (1, 2):
        log = run.logger(index, "critic")
        for step in (0, 20, 39):
            log(step, {"loss": float(100 * index + step)})
    run.logger(2, "eval")(0, {"success": 0.5})
    for _ in range(2):  # made anew, not added to
        run.write_tensorboard()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    # 40 steps in each round: the second begins at 40.
    shown = [(event.step, event.value) for event in events.Scalars("critic/loss")]
    assert shown == [(0, 100), (20, 120), (39, 139), (40, 200), (60, 220), (79, 239)]
    assert [event.value for event in events.Scalars("eval/success")] == [0.5]


def test_a_second_process_is_kept_out_of_a_run_that_is_being_worked_on(tmp_path):
    run = RunFolder.open(tmp_path / "run", WindowConfig())
    with run.locked(), pytest.raises(ValueError, match="another aloe works in"), RunFolder(run.root).locked():
        pass
    with run.locked():  # free again
        pass


def test_a_run_that_was_refused_before_it_began_may_record_elsewhere_and_one_that_began_may_not(tmp_path):
    run = RunFolder.open(tmp_path / "run", Config())
    run.record_into(tmp_path / "wrong")
    run.record_into(tmp_path / "right")
    assert run.experience == tmp_path / "right"
    run.round(0).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"records into .*right, not into .*wrong; leave out --dataset\.root"):
        run.record_into(tmp_path / "wrong")
    run.record_into(tmp_path / "right")


def test_a_runs_own_store_may_be_named(tmp_path):
    run = RunFolder.open(tmp_path / "run", Config())
    run.record_into(tmp_path / "run" / "experience")
    assert run.experience == tmp_path / "run" / "experience"
    assert not run.experience.is_symlink()
