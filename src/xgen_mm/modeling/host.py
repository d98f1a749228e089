"""What differs between the supported versions of transformers, read off the installed one once."""

from dataclasses import fields

from transformers.modeling_outputs import CausalLMOutputWithPast

# transformers 5.24 renamed `past_key_values` to `cache`: in arguments, in outputs, and in what `generate` passes on.
# Before, `cache` is what continuous batching hands to the attention layers, so a model must not take it for the other.
CACHE_NAME = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))
