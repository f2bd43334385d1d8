"""Large pictures, a band of rows at a time: as in one pass."""

import numpy as np
import pytest
from fake_model import POLICY, C, FakeModel, fake_engine, make_image, make_settings

from mlseg_jax.inference import bands
from mlseg_jax.inference.views import make_views
from mlseg_jax.label_selection import Selection, SelectionPolicy

pytestmark = pytest.mark.usefixtures("quick_compiles")

BANDS = {
    "windows": {},
    "overlapping": {"stride": (5, 7)},
    "scales, mirrored": {"scales": (0.6, 1.0, 1.7), "flip": True},
    "base size": {"base_size": (50, 31)},
    "per image": {"selection_scope": "per_image"},
    "given": {},
}


@pytest.mark.parametrize("name", BANDS)
def test_bands_of_a_large_picture(monkeypatch, name):
    """As in one pass; windows are run once, though two bands may need them."""
    monkeypatch.setattr(bands, "BAND_HEIGHT", 13)
    engine = fake_engine(FakeModel(), make_settings(**BANDS[name]))
    image, allowed = make_image(61, 38), None
    policy, given = POLICY, None
    if name == "given":
        given = Selection(np.asarray([[7, 2, 4]]), np.asarray([[True, False, True]]), C)
        policy, allowed = SelectionPolicy("given", 3), np.arange(C) % 2 == 0
    ((whole,),) = engine.segment([image], [(policy, given)], allowed)
    counts = []
    run = engine.batches

    def counted(windows):
        counts.append(len(windows))
        return run(windows)

    monkeypatch.setattr(engine, "batches", counted)
    parts = list(bands.segment_in_bands(engine, image, policy, given, allowed))
    views = make_views(image, engine.settings, engine.grid_length)
    passes = 2 if name == "per image" else 1
    assert sum(counts) == passes * sum(view.num_windows for view in views)
    assert [rows.stop for rows, _ in parts] == [13, 26, 39, 52, 61]
    labels = np.concatenate([part.label_maps()[0] for _, part in parts])
    np.testing.assert_array_equal(labels, whole.label_maps()[0])
    scores = np.max([part.scores[0] for _, part in parts], axis=0)
    np.testing.assert_allclose(scores, whole.scores[0], rtol=1e-5, atol=1e-5)
    union = whole.selection.class_ids[whole.selection.valid]
    found = [part.selection.class_ids[part.selection.valid] for _, part in parts]
    assert set(np.concatenate(found)) == set(union)
    _, likely = whole.top_labels(2)
    few = np.concatenate([part.top_labels(2)[1] for _, part in parts], axis=2)
    np.testing.assert_allclose(few, likely, atol=2e-3)


def test_which_pictures_need_bands():
    sliding = fake_engine(FakeModel(), make_settings())
    assert bands.needs_bands(sliding, (9000, 12000))
    assert not bands.needs_bands(sliding, (1000, 1200))
    whole = fake_engine(FakeModel(), make_settings(mode="whole"))
    assert not bands.needs_bands(whole, (9000, 12000))
