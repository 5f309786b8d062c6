"""The small policy as a LeRobot plugin: importing this module registers `tiny_vla`."""

from aloe.policies.tiny_vla.configuration_tiny_vla import TinyVLAConfig
from aloe.policies.tiny_vla.modeling_tiny_vla import TinyVLAPolicy
from aloe.policies.tiny_vla.processor_tiny_vla import make_tiny_vla_pre_post_processors

__all__ = ["TinyVLAConfig", "TinyVLAPolicy", "make_tiny_vla_pre_post_processors"]
