"""The sizes and costs of the paper's tables, and what `summary` counts."""

import pathlib
import re

import pytest

from configs import paper
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import count_macs, training_flops
from mlseg_jax.models.macs import Macs

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "paper.md"

# Rows of configs/paper.py: parameters, 1e9 multiply-accumulates as the paper counted
# them (the corrected figures of method.md 14.2 and 14.3, which the printed ones agree
# with but for slips; "2x TranDec" is printed as 78.83) and in truth.
PUBLISHED = {
    "ade20k_baseline": (102_497_580, 78.84, 129.29),
    "coco_stuff_baseline": (102_513_750, 79.24, 129.77),
    "coco_lvis_baseline": (103_370_760, 102.53, 159.04),
    "pascal_context_baseline": (102_428_280, 67.73, None),
    "ade20k_full_baseline": (103_034_270, 92.93, None),
    "ade20k_mlseg": (109_702_138, 78.55, 128.67),
    "coco_stuff_mlseg": (109_734_415, 78.71, 128.84),
    "coco_lvis_mlseg": (111_445_196, 99.59, 152.68),
    "pascal_context_mlseg": (109_563_758, 68.02, None),
    "ade20k_full_mlseg": (110_773_527, 94.38, None),
    # Table 6.
    "coco_stuff_transformer_decoder": (114_265_103, 78.19, None),
    "coco_stuff_global_pooling": (103_235_599, 76.94, None),
    # Table 7.
    "ade20k_encnet": (109_152_642, 84.88, None),
    "coco_stuff_encnet": (109_184_961, 85.28, None),
    "coco_lvis_encnet": (110_897_868, 108.57, None),
    "ade20k_essnet": (101_416_236, 78.04, None),
    "coco_stuff_essnet": (101_432_406, 78.42, None),
    "coco_lvis_essnet": (102_289_416, 100.24, None),
    # Table 8; without the matrix that the released code has not.
    "ade20k_deeplabv3_baseline": (87_206_028, 347.64, 347.39),
    "coco_stuff_deeplabv3_baseline": (87_222_198, 347.68, 347.44),
    "coco_lvis_deeplabv3_baseline": (88_079_208, 350.02, 349.77),
    "ade20k_deeplabv3_mlseg": (91_489_670, 349.09, None),
    "coco_stuff_deeplabv3_mlseg": (91_516_613, 349.17, None),
    "coco_lvis_deeplabv3_mlseg": (92_944_692, 359.47, None),
    "ade20k_large_baseline": (333_234_476, 377.83, 671.07),
    "coco_stuff_large_baseline": (333_256_022, 378.57, 671.96),
    "coco_lvis_large_baseline": (334_397_960, 420.19, 724.18),
    "ade20k_large_mlseg": (345_986_298, 377.18, 669.75),
    "coco_stuff_large_mlseg": (346_029_327, 377.46, 670.03),
    "coco_lvis_large_mlseg": (348_309_964, 422.59, 722.30),
    "ade20k_swin_baseline": (121_415_076, 299.81, None),
    "coco_stuff_swin_baseline": (121_431_246, 299.98, None),
    "coco_lvis_swin_baseline": (122_288_256, 309.34, None),
    "ade20k_swin_mlseg": (125_172_382, 300.48, None),
    "coco_stuff_swin_mlseg": (125_199_325, 300.56, None),
    "coco_lvis_swin_mlseg": (126_627_404, 306.53, None),
    "ade20k_beit_baseline": (441_271_084, 1745.97, None),
    "coco_stuff_beit_baseline": (441_298_006, 1746.52, None),
    "ade20k_beit_mlseg": (455_228_454, 1751.02, None),
    "coco_stuff_beit_mlseg": (455_298_405, 1751.32, None),
    # Not printed: as much more for each class as between the two above.
    "coco_lvis_beit_baseline": (441_271_084 + (1284 - 150) * 1282, None, None),
    "coco_lvis_beit_mlseg": (455_228_454 + (1284 - 150) * 3331 + 2 * 50, None, None),
    # OCE and the oracle have the parameters of what they vary.
    "coco_stuff_mlseg_oce": (109_734_415, None, None),
    "coco_stuff_baseline_oce": (102_513_750, None, None),
    "ade20k_oracle": (102_497_580, None, None),
}


def build(config):
    with config.unlocked():
        config.model.backbone.scan = True  # the same numbers, traced once
    return FunctionalModel.build(config, config.data.num_classes)


def documented():
    """Rows of the page's table: parameters, MACs as the paper's, MACs."""
    row = r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) \|[^|]*\| ([\d.]+) \|$"
    return {name: cells for name, *cells in re.findall(row, PAGE.read_text(), re.M)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    parameters, printed, exact = PUBLISHED[name]
    config = paper.get_config(name)
    model = build(config)
    assert model.num_parameters == parameters
    total = sum(count_macs(config, model).values(), Macs())
    # Swin's with 1,284 classes and the head, as printed, remains 0.1 G above.
    share = 4e-4 if "lvis_swin" in name else 5e-5
    if printed:
        assert abs(total.paper / 1e9 - printed) < max(0.01, share * printed)
    # We project pooled tokens once less than the release.
    assert exact is None or 0.9995 * exact < total.exact / 1e9 < exact + 0.01
    assert training_flops(config, model) == 6 * total.exact
    if name in documented():
        macs = [f"{each / 1e9:.2f}" for each in (total.paper, total.exact)]
        assert documented()[name] == [f"{parameters:,}", *macs]


def test_the_page_has_all_printed_cells():
    assert documented().keys() == {
        name
        for name, (_, printed, _) in PUBLISHED.items()
        if printed and not name.startswith(("pascal_context", "ade20k_full"))
    }


# Millions of parameters of table 8 with the matrix that the release lacks, slips put
# right (method.md 14.3).
WITH_PROJECTION = {
    "ade20k_deeplabv3_mlseg": 91.75,
    "coco_stuff_deeplabv3_mlseg": 91.78,
    "coco_lvis_deeplabv3_mlseg": 93.21,
    "ade20k_swin_mlseg": 125.43,
    "coco_stuff_swin_mlseg": 125.46,
    "coco_lvis_swin_mlseg": 126.89,
    "ade20k_beit_mlseg": 456.28,
    "coco_stuff_beit_mlseg": 456.35,
}


@pytest.mark.parametrize(
    "framework, width", [("deeplabv3", 512), ("swin", 512), ("beit", 1024)]
)
def test_published_parameters_with_the_missing_matrix(framework, width):
    name = f"ade20k_{framework}_mlseg"
    file, _, argument = paper.EXPERIMENTS[name][0].partition(":")
    config = paper.FILES[file].get_config(f"{argument},class_projection=1")
    projected, released = build(config).learned, build(paper.get_config(name)).learned
    (path,) = projected.keys() - released.keys()
    assert projected[path].shape == (width, width)
    for name, printed in WITH_PROJECTION.items():
        if framework in name:
            assert round((PUBLISHED[name][0] + width**2) / 1e6, 2) == printed
