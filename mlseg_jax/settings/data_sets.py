"""What is known of each data set whatever the framework."""

NORMALISATIONS = {
    "half": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "unit": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}
"""Mean and standard deviation of uint8 pixels, by name (method.md section 3.1)."""

DATA_SETS = {
    # name: labels C, selected labels K, weight of the multi-label loss
    "pascal_context": (60, 25, 5.0),
    "ade20k": (150, 50, 10.0),
    "coco_stuff": (171, 50, 10.0),
    "ade20k_full": (847, 100, 100.0),
    "coco_lvis": (1284, 100, 300.0),
    # Not in the paper: anyone's own data (it says its labels), and the embedded scenes.
    "folder": (0, 50, "auto"),
    "sign_scenes": (120, 20, "auto"),
}
"""What the paper chose for each data set whatever the framework (method.md 4.4, 9.1);
what depends on both stands in the framework's file. ``auto``: see `resolve`.
"""
