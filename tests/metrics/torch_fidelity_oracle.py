"""What torch-fidelity says of images, all by itself: the oracle of metrics and commands."""

from pathlib import Path

import torch

from edm2lite.metrics.digits_classifier import digits_features


class Rgb(torch.utils.data.Dataset):
    def __init__(self, part):
        self.part = part

    def __len__(self):
        return len(self.part)

    def __getitem__(self, i):
        return self.part[i].expand(3, -1, -1)


def theirs(images, real, extractor, **metrics):
    """Metrics of uint8 images [N, C, H, W] against real ones, with an extractor of its registry."""
    from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Digits(FeatureExtractorBase):
        def __init__(self, name, features_list, feature_extractor_weights_path, **kwargs):
            super().__init__(name, features_list)
            self.net = digits_features(Path(feature_extractor_weights_path))

        @staticmethod
        def get_provided_features_list():
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "features"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, x):
            return (self.net(x),)

    if "digits" not in FEATURE_EXTRACTORS_REGISTRY:  # it belongs to the process, as do the tests
        register_feature_extractor("digits", Digits)
    return calculate_metrics(
        input1=Rgb(images), input2=Rgb(real), cuda=False, verbose=False,
        feature_extractor=extractor.name, feature_extractor_weights_path=str(extractor.weights),
        batch_size=len(images), save_cpu_ram=True, **metrics,
    )  # fmt: skip
