"""Files and folders appear whole or not at all."""

import pytest

from abft.errors import AbftError
from abft.files import atomic_file, atomic_files, atomic_folder, write_json, write_text
from abft.runs.config import RunConfig, config_values, current_values, resolve


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail():
        with atomic_file(path) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_a_folder_that_fails_does_not_appear(tmp_path):
    def make(fail):
        with atomic_folder(tmp_path / "out") as partial:
            (partial / "one").write_text("1")
            (partial / "one").chmod(0o600)
            if fail:
                raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        make(fail=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()  # an empty one may be there
    make(fail=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["one"]
    (tmp_path / "new").touch()
    assert (tmp_path / "out/one").stat().st_mode == (tmp_path / "new").stat().st_mode
    with pytest.raises(OSError, match="not empty"):
        make(fail=False)


def test_files_that_belong_together(tmp_path):
    def write(fail=False, **texts):
        with atomic_files(tmp_path, owned=("data", "marker")) as partial:
            for name, text in texts.items():
                (partial / name).write_text(text)
            if fail:
                raise OSError("no")

    write(data="1", marker="1", other="1")
    with pytest.raises(OSError, match="no"):
        write(fail=True, data="2", marker="2")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "data": "1",
        "marker": "1",
        "other": "1",
    }
    write(marker="3")  # what belongs to the old marker goes with it
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"marker": "3", "other": "1"}


def test_the_version_of_config_files():
    values = config_values(resolve(RunConfig()))
    assert current_values(values, "here") == {k: v for k, v in values.items() if k != "version"}
    with pytest.raises(AbftError, match="here is of version 99, this abft reads up to 2"):
        current_values({**values, "version": 99}, "here")
    assert current_values({"lr": 0.1}, "a user's file") == {"lr": 0.1}
