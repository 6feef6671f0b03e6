"""The model: configuration, encoder, pretraining model and processor, registered with the Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining

from ..resolver import hook
from .configuration_croplem import CropLEMConfig, ResolvedFromPretrained
from .image_processing_croplem import CropLEMImageProcessor
from .modeling_croplem import (
    CropLEMForPreTraining,
    CropLEMForPreTrainingOutput,
    CropLEMModel,
    CropLEMModelOutput,
    CropLEMPreTrainedModel,
)

AutoConfig.register("croplem", CropLEMConfig)
AutoModel.register(CropLEMConfig, CropLEMModel)
AutoModelForPreTraining.register(CropLEMConfig, CropLEMForPreTraining)
AutoImageProcessor.register(CropLEMConfig, image_processor_classes={"pil": CropLEMImageProcessor})

# `save_pretrained` then puts the model's files beside the weights, so that a checkpoint works without this library.
CropLEMConfig.register_for_auto_class()
CropLEMModel.register_for_auto_class("AutoModel")
CropLEMForPreTraining.register_for_auto_class("AutoModelForPreTraining")
CropLEMImageProcessor.register_for_auto_class()

# The files that travel to the Hub know nothing of our resolver; here their `from_pretrained` learns it.
ResolvedFromPretrained.resolve = staticmethod(hook)

__all__ = [
    "CropLEMConfig",
    "CropLEMForPreTraining",
    "CropLEMForPreTrainingOutput",
    "CropLEMImageProcessor",
    "CropLEMModel",
    "CropLEMModelOutput",
    "CropLEMPreTrainedModel",
]
