"""Parquet files are read in the calling thread: Arrow's own threads were seen to wait for ever beside a video encoder's."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def read_table(path: Path, **options: Any) -> pa.Table:
    """`pyarrow.parquet.read_table`, and in one piece: to look up an episode in thousands of row groups takes long."""
    return pq.read_table(path, use_threads=False, **options).combine_chunks()
