"""Splits are found by any of the names that public sets use, and classes are not taken for them."""

import pytest

from imagekin.sources.splits import splits_among


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("train test", "train test"),
        ("Training Testing", "train test"),
        ("TRAIN VALID", "train validation"),
        ("seg_train seg_test seg_pred", "train test unlabelled"),
        ("train2017 val2017", "train validation"),
        ("training_set test_set", "train test"),
        ("cars_train cars_test", "train test"),
        ("ILSVRC2012_img_train ILSVRC2012_img_val", "train validation"),
        ("GTSRB_Final_Training_Images GTSRB_Final_Test_Images", "train test"),
        ("TrainSet TestSet", "train test"),
        ("trainval test", "train test"),
        ("train_val test", "train test"),
        ("train", "train"),
        ("val_256 test_256", "validation test"),
        ("Training Test test-multiple_fruits papers", "train test test -"),
        ("bounding_box_train bounding_box_test query", "train test test"),
        ("Train Test Meta", "train test -"),
        ("training validation evaluation", "train validation test"),
        ("train hold-out", "train test"),
        ("bus train car", "- - -"),
        ("steam_train toy_train", "- -"),
        ("steam_train", "-"),
        ("test_tube train_station", "- -"),
        ("a b", "- -"),
        ("contest restrain", "- -"),
    ],
)
def test_names_side_by_side_are_splits_or_classes(names: str, splits: str) -> None:
    found = splits_among(names.split())
    assert [found.get(name, "-") for name in names.split()] == splits.split()
