"""ALOE: action-level off-policy evaluation for post-training of vision-language-action policies."""

__version__ = "0.1.0"
