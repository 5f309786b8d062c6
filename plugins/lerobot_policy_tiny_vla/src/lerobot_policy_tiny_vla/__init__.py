"""The name under which LeRobot finds the TinyVLA policy; importing it registers the policy.

The policy itself is in `aloe.policies.tiny_vla`. LeRobot imports every installed distribution whose name
starts with `lerobot_policy_`, and looks for the policy's classes where its config says they are.
"""

from aloe.policies.tiny_vla import TinyVLAConfig, TinyVLAPolicy

__all__ = ["TinyVLAConfig", "TinyVLAPolicy"]
