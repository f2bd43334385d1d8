"""A source over raw examples that are read without having been prepared."""

import os

from input_pipeline.datasets import instances
from input_pipeline.files import images
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation.prepared import RawExample


class RawSource:
    """A source of raw examples.

    Args:
      info: the classes.
      raws: the examples.
      options: how images are read.

    Raises:
      DataError: there are none, or two have one name.
    """

    def __init__(
        self,
        info: DatasetInfo,
        raws: list[RawExample],
        options: images.ReadOptions = images.USUAL,
    ):
        self.info = info
        self._raws = raws
        self._options = options
        seen = set()
        for raw in raws:
            if raw.key in seen:
                raise DataError(
                    f"Data set {info.name!r} has two images named {raw.key!r}; rename "
                    "one or remove the copy from the JSON."
                )
            seen.add(raw.key)
        if not raws:
            raise DataError(f"Data set {info.name!r} has no images; add some.")

    def __len__(self) -> int:
        return len(self._raws)

    def __getitem__(self, index: int) -> dict:
        """Returns ``image``, ``label_map``, ``instance_map``, ``name``, ``file_name``
        (the same with its ending) and what else the format tells: ``segments``,
        ``segment_map``, ``instances``, ``image_id``.

        Raises:
          DataError: the image cannot be read or its size is not that of its label, or
            the label is damaged.
        """
        raw = self._raws[index]
        path = self._image(raw)
        image = images.read_image(path, self._options)
        made = raw.make_label()
        label_map = made["label_map"]
        size, label_size = image.shape[:2], label_map.shape
        if size != label_size:
            is_turned = self._options.exif and size == label_size[::-1]
            hint = ", or set data.exif=False if they are of the pixels as stored"
            raise DataError(
                f"Image {path} is {size[1]}x{size[0]} pixels (turned as its EXIF says) "
                f"but its annotations are for {label_size[1]}x{label_size[0]}; export "
                f"them again{hint if is_turned else ''}.",
                kind="size",
            )
        instance_map = instances.from_file(made["instance_map"])
        if raw.image_id is not None:
            made |= {"image_id": raw.image_id}
        names = {"name": raw.key, "file_name": raw.key + os.path.splitext(path)[1]}
        return made | names | {"image": image, "instance_map": instance_map}

    def remarks(self, index: int) -> list[DataError]:
        """What is odd about an example that can be read."""
        raw = self._raws[index]
        found = images.remarks(self._image(raw), self._options)
        return found + (raw.remarks() if raw.remarks else [])

    def _image(self, raw: RawExample) -> str | os.PathLike:
        places = (raw.image, *raw.elsewhere)
        found = next((place for place in places if os.path.exists(place)), None)
        if found is None:
            others = "".join(f", nor {place}" for place in raw.elsewhere)
            raise DataError(f"There is no file {raw.image}{others}; check the paths.")
        return found
