"""Generated datasets: folders of Parquet blocks that only ever grow, and the tasks that sources read from them.

<storage>/data/<dataset>/dataset.json                          what an index yields; written first
                         part-<task>-<start>-<stop>.parquet    examples
                         timings/part-...                      milliseconds; the only files that are not reproducible
                         manifest.json                         what belongs to the dataset; written last
"""
