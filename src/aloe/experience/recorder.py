"""An episode as files of a LeRobot v3 dataset.

Schema, statistics and all of `meta/` are made by LeRobot's code. The data file is written here, because LeRobot's writer
embeds the pictures row by row, through files of their own: three times the time of `append`.
"""

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from lerobot.datasets.compute_stats import compute_episode_stats
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.utils import DatasetInfo, update_chunk_file_indices
from lerobot.datasets.video_utils import get_video_duration_in_s
from numpy import ndarray

from aloe.experience.checksums import file_checksum, numbers_checksum, read_seals, seal, seal_path, write_seals
from aloe.experience.commit import Stats
from aloe.experience.index import Row, join_last_file, place
from aloe.experience.pictures import Pictures
from aloe.experience.schema import ACTION, IMAGES, PROPOSED_ACTION, STATE, numbers
from aloe.types import Episode, Source


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Writes the files of the episode that follows the last committed one."""

    root: Path
    info: DatasetInfo
    stats: Stats | None
    tasks: list[str]
    last: Row | None
    """Row of the last committed episode."""

    def stage(self, episode: Episode, pictures: Pictures, staging: Path) -> tuple[LeRobotDatasetMetadata, Row]:
        """Write the episode's files below `staging`, laid out as in the store; the new metadata, and the row with its
        statistics. The episode's own pictures are not looked at."""
        meta = LeRobotDatasetMetadata.create(self.root.name, self.info.fps, {}, root=staging)
        meta.info = copy.deepcopy(self.info)
        meta.stats = self.stats
        meta.tasks = pd.DataFrame({"task_index": range(len(self.tasks))}, index=pd.Index(self.tasks, name="task"))
        # LeRobot looks only at where the last episode ends; to make a Dataset of it takes longer than all the rest.
        meta.episodes = None if self.last is None else cast(Dataset, [self.last])
        meta.save_episode_tasks([episode.task])

        columns = self._columns(episode, meta.tasks.index.tolist().index(episode.task))
        stats = compute_episode_stats({**columns}, self.info.features)
        stats |= pictures.stats()
        start = self.info.total_frames
        row = {"dataset_from_index": start, "dataset_to_index": start + episode.steps, **self._next_file("data")}
        self._write_data(staging / place(self.info.data_path, row, "data"), columns, pictures)
        row |= self._place_videos(staging, meta, pictures)
        meta.save_episode(self.info.total_episodes, episode.steps, [episode.task], stats, row)
        meta.finalize()
        committed = join_last_file(self.root, staging, self.last)
        self._write_seals(staging, committed, meta.info, numbers_checksum(numbers(columns)))
        return meta, committed

    def _write_seals(self, staging: Path, row: Row, info: DatasetInfo, numbers: str) -> None:
        path, index = seal_path(row), row["episode_index"]
        seals = {key: value for key, value in read_seals(self.root, path).items() if int(key) < index}
        files = sorted(found for pattern in ("data/*/*", "videos/*/*/*") for found in staging.glob(pattern))
        checked = {found.relative_to(staging).as_posix(): file_checksum(found) for found in files}
        write_seals(staging / path, {**seals, str(index): seal(row, info, numbers, checked)})

    def _columns(self, episode: Episode, task_index: int) -> dict[str, ndarray]:
        """Every column but the pictures."""
        steps = episode.steps
        proposed = ~np.isnan(episode.proposed_action[:, 0])  # all of a step or none, `_check` has seen to it
        columns = {
            STATE: episode.state,
            ACTION: episode.action,
            PROPOSED_ACTION: np.where(proposed[:, None], episode.proposed_action, episode.action),
            "has_proposal": proposed,
            "next.reward": episode.reward,
            "next.done": episode.terminated,
            "next.truncated": episode.truncated,
            "next.success": episode.success,
            "intervention": episode.source == Source.HUMAN,
            "source": episode.source,
            "policy_version": episode.policy_version,
            "episode_seed": np.full(steps, episode.seed),
            "timestamp": np.arange(steps) / self.info.fps,
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, self.info.total_episodes),
            "index": np.arange(self.info.total_frames, self.info.total_frames + steps),
            "task_index": np.full(steps, task_index),
        }
        shapes = {key: (steps,) if self.info.features[key]["shape"] == (1,) else (steps, -1) for key in columns}
        return {
            key: np.asarray(column, self.info.features[key]["dtype"]).reshape(shapes[key])
            for key, column in columns.items()
        }

    def _next_file(self, key: str) -> dict[str, int]:
        """Where a file of this kind (`data`, or `videos/<column>`) goes that follows the last episode's."""
        chunk, file = 0, 0
        if self.last is not None:
            chunk, file = update_chunk_file_indices(
                self.last[f"{key}/chunk_index"], self.last[f"{key}/file_index"], self.info.chunks_size
            )
        return {f"{key}/chunk_index": chunk, f"{key}/file_index": file}

    def _write_data(self, path: Path, columns: dict[str, ndarray], pictures: Pictures) -> None:
        schema = get_hf_features_from_features(self.info.features).arrow_schema
        arrays = []
        for field in schema:
            if field.name.startswith(IMAGES):
                cells = [
                    {"bytes": png, "path": f"frame-{t:06d}.png"} for t, png in enumerate(pictures.cells[field.name])
                ]
                arrays.append(pa.array(cells, field.type))
            elif columns[field.name].ndim == 2:
                arrays.append(pa.array(list(columns[field.name]), field.type))
            else:
                arrays.append(pa.array(columns[field.name], field.type))
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(arrays, schema=schema), path)

    def _place_videos(self, staging: Path, meta: LeRobotDatasetMetadata, pictures: Pictures) -> dict[str, Any]:
        """Move the encoded videos to where they belong; their part of the row."""
        row = {}
        for key, video in pictures.finish().items():
            position = self._next_file(f"videos/{key}")
            path = staging / place(self.info.video_path, position, f"videos/{key}", video_key=key)
            path.parent.mkdir(parents=True)
            os.replace(video, path)
            row |= position | {
                f"videos/{key}/from_timestamp": 0.0,
                f"videos/{key}/to_timestamp": get_video_duration_in_s(path),
            }
            if self.info.total_episodes == 0:
                meta.update_video_info(key, video_encoder=pictures.encoder)
        return row
