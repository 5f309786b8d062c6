"""Parquet files are read in the calling thread: Arrow's own threads were seen to wait for ever beside a video encoder's."""

from functools import partial

import pyarrow.parquet as pq

read_table = partial(pq.read_table, use_threads=False)
