"""What changes with the files of the data."""

from ml_collections import ConfigDict

from input_pipeline.datasets.data_version import data_facts


def test_folders_elsewhere_are_those_of_the_split(tmp_path):
    places = [tmp_path / "pictures" / split / "a.png" for split in ("train", "val")]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_text("1")
    (tmp_path / "data").mkdir()
    data = ConfigDict(
        {
            "path": str(tmp_path / "data"),
            "train_split": "train[:90%]",
            "image_folder": "../pictures/{split}",
            "mask_folder": "",
            "classes": "",
        }
    )
    ours = [list(data_facts(data, tmp_path / "run", split)) for split in ("", "val")]
    places[1].write_text("22")
    assert list(data_facts(data, tmp_path / "run")) == ours[0]
    assert list(data_facts(data, tmp_path / "run", "val")) != ours[1]
