"""mmsegmentation's training pipeline over a folder, for `input.py`."""

import pathlib
import sys
import types

import measure


class MmsegmentationSide:
    """A DataLoader over mmsegmentation's transforms, timed some batches at a time.

    Raises:
      ImportError: mmsegmentation, mmcv or PyTorch is not there.
    """

    def __init__(
        self,
        root: pathlib.Path,
        data,
        num_classes: int,
        batch_size: int,
        workers: int,
        batches: int,
    ):
        _import_mmsegmentation()
        import torch
        from mmcv.transforms import LoadImageFromFile, RandomFlip, RandomResize
        from mmengine.dataset import pseudo_collate
        from mmseg.datasets import BaseSegDataset, transforms

        pipeline = [
            LoadImageFromFile(),
            transforms.LoadAnnotations(),
            RandomResize(
                scale=tuple(data.base_size),
                ratio_range=tuple(data.scale_range),
                keep_ratio=True,
            ),
            transforms.RandomCrop(
                crop_size=tuple(data.crop_size), cat_max_ratio=data.max_class_share
            ),
            RandomFlip(prob=data.flip_rate),
            transforms.PhotoMetricDistortion(),
            transforms.PackSegInputs(),
        ]
        names = [f"class {i}" for i in range(num_classes)]
        dataset = BaseSegDataset(
            data_root=str(root),
            data_prefix={"img_path": "images/train", "seg_map_path": "masks/train"},
            img_suffix=".jpg",
            seg_map_suffix=".png",
            metainfo={"classes": names, "palette": []},
            pipeline=pipeline,
        )
        sampler = torch.utils.data.RandomSampler(dataset, True, num_samples=10**6)
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=pseudo_collate,
            worker_init_fn=_set_up_worker,
            persistent_workers=True,
        )
        self._iterator = iter(loader)
        self._count = batches

    def __call__(self) -> float:
        def fetch():
            for _ in range(self._count):
                next(self._iterator)

        return measure.seconds_of(fetch)

    def close(self) -> None:
        del self._iterator  # Ends its processes.


def _set_up_worker(index: int) -> None:
    """As mmengine sets its workers up."""
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _import_mmsegmentation() -> None:
    """Imports what the pipeline needs, with any mmcv of the second generation.

    mmsegmentation refuses mmcv 2.2 by its number, and imports compiled operators of
    decoders that mmcv-lite does not have. Neither matters to its data pipeline.
    """
    import mmcv

    if "mmseg" not in sys.modules:
        version, mmcv.__version__ = mmcv.__version__, "2.1.0"
        try:
            import mmcv.ops  # noqa: F401
        except ImportError:
            stand_in = types.ModuleType("mmcv.ops")
            stand_in.point_sample = None
            sys.modules["mmcv.ops"] = stand_in
        import mmseg.datasets  # noqa: F401

        mmcv.__version__ = version
